"""The mean of the updates, each weighted by its examples: FederatedAveraging.

McMahan, Moore, Ramage, Hampson, Agüera y Arcas, "Communication-Efficient Learning of Deep Networks from Decentralized
Data", AISTATS 2017 (arXiv 1602.05629), Algorithm 1: `w <- sum_k (n_k / n) w_k`, here on deltas.
"""

from typing import Literal

from flsys_ray.core.aggregation.base import AggregationRule, Array
from flsys_ray.core.exact import ExactSum, FixedPoint
from flsys_ray.core.types import Contribution
from flsys_ray.core.updates import UpdateReader


class WeightedMean(AggregationRule[ExactSum]):
    """`sum_k n_k delta_k / sum_k n_k`, summed exactly.

    >>> import numpy as np
    >>> from flsys_ray.core.updates import HeldUpdates
    >>> rule = WeightedMean()
    >>> state = rule.init(FixedPoint(max_updates=2, max_weight=10, max_abs=1.0), 1)
    >>> state = rule.add(state, Contribution("a", np.array([0.5], dtype=np.float32), weight=3))
    >>> state = rule.add(state, Contribution("b", np.array([-0.5], dtype=np.float32), weight=1))
    >>> rule.finish(state, HeldUpdates())
    array([0.25])
    """

    name: Literal["weighted_mean"] = "weighted_mean"

    def init(self, scale: FixedPoint, size: int) -> ExactSum:
        """Return the empty sum."""
        return ExactSum.zero(scale, size)

    def add(self, state: ExactSum, contribution: Contribution) -> ExactSum:
        """Add `weight * delta`."""
        return state.add(contribution.delta, contribution.weight)

    def merge(self, left: ExactSum, right: ExactSum) -> ExactSum:
        """Add two sums."""
        return left.merge(right)

    def finish(self, state: ExactSum, updates: UpdateReader) -> Array:
        """Divide by the sum of weights."""
        return state.mean()
