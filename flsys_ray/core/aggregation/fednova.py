"""FedNova: updates are averaged a step, so that devices which took more steps do not decide where the model goes.

Wang, Liu, Liang, Joshi, Poor, "Tackling the Objective Inconsistency Problem in Heterogeneous Federated Optimization",
NeurIPS 2020 (arXiv 2007.07481), equation (6) with `a_k = (1, ..., 1)`, plain local SGD:

    delta = tau_eff sum_k p_k delta_k / tau_k,  tau_eff = sum_k p_k tau_k,  p_k = n_k / n

With a proximal term (`local.proximal_mu`) or a stateful local optimizer the paper's `|a_k|_1` is not the number of
steps.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field

from flsys_ray.core.aggregation.base import AggregationRule, Array, check_size
from flsys_ray.core.exact import ExactSum, FixedPoint
from flsys_ray.core.types import Contribution
from flsys_ray.core.updates import UpdateReader


@dataclass(frozen=True, slots=True, eq=False)
class NormalisedSum:
    """`sum_k n_k delta_k / tau_k`, and `sum_k n_k tau_k`."""

    deltas: ExactSum
    steps: int = 0


class FedNova(AggregationRule[NormalisedSum]):
    """Summed exactly. Steps are what a device claims: they are cut, since `tau_eff` multiplies everything."""

    name: Literal["fednova"] = "fednova"
    max_steps: int = Field(1000, ge=1, description="an update's steps are cut to this many")

    def init(self, scale: FixedPoint, size: int) -> NormalisedSum:
        """Return the empty sums."""
        return NormalisedSum(ExactSum.zero(scale, size))

    def add(self, state: NormalisedSum, contribution: Contribution) -> NormalisedSum:
        """Add a delta a step."""
        steps = min(contribution.steps, self.max_steps)
        per_step = np.divide(contribution.delta, steps, dtype=np.float64)
        added = state.deltas.add(per_step, contribution.weight)
        return NormalisedSum(added, state.steps + contribution.weight * steps)

    def merge(self, left: NormalisedSum, right: NormalisedSum) -> NormalisedSum:
        """Add both sums."""
        return NormalisedSum(left.deltas.merge(right.deltas), left.steps + right.steps)

    def finish(self, state: NormalisedSum, updates: UpdateReader) -> Array:
        """Multiply the mean by `tau_eff`."""
        check_size(self, state.deltas.count)
        return state.deltas.mean() * (state.steps / state.deltas.weight)
