"""A rule around a rule: each update is scaled before the inner rule sees it, when it is added and when it is read."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any

import numpy as np
from pydantic import ConfigDict, model_validator

from flsys_ray.core.aggregation.base import RULES, AggregationRule, Array, check_size, squared_norm
from flsys_ray.core.aggregation.weighted_mean import WeightedMean
from flsys_ray.core.exact import FixedPoint
from flsys_ray.core.layout import Vector
from flsys_ray.core.registry import OneOf
from flsys_ray.core.types import Contribution
from flsys_ray.core.updates import UpdateReader


@dataclass(frozen=True, slots=True)
class Wrapped:
    """The inner rule's state, and the factor of each update by its key."""

    inner: Any
    factors: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True, slots=True)
class _ScaledUpdates:
    """An `UpdateReader` that gives `factor * delta`, to the bit what was added."""

    updates: UpdateReader
    factors: Mapping[str, float]

    def block(self, keys: Sequence[str], start: int, stop: int) -> Vector:
        """Return scaled elements `start:stop` of the deltas of `keys`."""
        rows = self.updates.block(keys, start, stop)
        rows *= np.array([[self.factors[key]] for key in keys], dtype=np.float32)
        return rows


class Rescaling(AggregationRule[Wrapped]):
    """The base of rules that scale each update by a factor of its norm: `factor` is all that is left to write."""

    model_config = ConfigDict(defer_build=True)  # `inner` may be any rule: they are not all known yet

    inner: Annotated[AggregationRule[Any], OneOf(RULES, "weighted_mean")] = WeightedMean()

    @model_validator(mode="after")
    def _scales_all_of_an_update(self) -> "Rescaling":
        if self.inner.carries_control:
            raise ValueError(f"{self.name} cannot wrap {self.inner.name}: it would scale deltas, not their controls")
        return self

    @abstractmethod
    def factor(self, norm: float) -> float:
        """Return what an update with this L2 norm is multiplied by, 0 to 1."""

    @property
    def min_updates(self) -> int:
        """The inner rule's."""
        return self.inner.min_updates

    @property
    def reads_updates(self) -> bool:
        """Whether the inner rule does."""
        return self.inner.reads_updates

    def init(self, scale: FixedPoint, size: int) -> Wrapped:
        """Return the inner rule's empty cohort."""
        return Wrapped(self.inner.init(scale, size))

    def add(self, state: Wrapped, contribution: Contribution) -> Wrapped:
        """Add a scaled update."""
        factor = self.factor(float(np.sqrt(squared_norm(contribution.delta))))
        scaled = replace(contribution, delta=contribution.delta * np.float32(factor))
        return Wrapped(self.inner.add(state.inner, scaled), (*state.factors, (contribution.key, factor)))

    def merge(self, left: Wrapped, right: Wrapped) -> Wrapped:
        """Merge by the inner rule."""
        return Wrapped(self.inner.merge(left.inner, right.inner), left.factors + right.factors)

    def finish(self, state: Wrapped, updates: UpdateReader) -> Array:
        """Finish by the inner rule, which reads scaled updates."""
        check_size(self, len(state.factors))
        return self.inner.finish(state.inner, _ScaledUpdates(updates, dict(state.factors)))
