"""What an aggregation rule is: a lawful fold over updates.

`init` makes an empty state, `add` folds one update in, `merge` joins two states that were folded apart, `finish` gives
the aggregated delta. The laws, tested for every registered rule (`tests/laws/test_aggregation.py`): `merge` agrees with
`add`; order does not matter, to the bit; scaling all weights changes nothing; finite in, finite out; inputs are not
changed; an empty cohort is refused by name.
"""

from abc import ABC, abstractmethod
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from flsys_ray.core.exact import FixedPoint
from flsys_ray.core.layout import Vector
from flsys_ray.core.registry import Extension, Registry

S = TypeVar("S")


class AggregationRule(Extension, ABC, Generic[S]):
    """A frozen object whose fields are its hyper-parameters. S is the type of its state, which no method changes."""

    @abstractmethod
    def init(self, scale: FixedPoint, size: int) -> S:
        """Return the state of an empty cohort. `scale` holds the limits that every update keeps; `size` is P."""

    @abstractmethod
    def add(self, state: S, delta: Vector, weight: int) -> S:
        """Return the state with one update more: `delta` float32 [P], `weight` >= 1 (its examples)."""

    @abstractmethod
    def merge(self, left: S, right: S) -> S:
        """Return the state of both cohorts together."""

    @abstractmethod
    def finish(self, state: S) -> NDArray[np.float64]:
        """Return the aggregated delta, float64 [P]. Raises `EmptyCohort` if nothing was added."""


RULES: Registry[AggregationRule[Any]] = Registry(AggregationRule, __package__)
