"""SCAFFOLD: each device's steps are corrected by how its gradient differs from that of all, so that it does not drift.

Karimireddy, Kale, Mohri, Reddi, Stich, Suresh, "SCAFFOLD: Stochastic Controlled Averaging for Federated Learning",
ICML 2020 (arXiv 1910.06378), Algorithm 1 with option II. A device trains with `y <- y - lr (g(y) - c_i + c)` from the
version x and afterwards has `c_i+ = c_i - c + (x - y) / (K lr)`; it uploads `y - x` and `c_i+ - c_i`. Of the updates S:

    delta = mean_S (y_i - x),  c <- c + |S| / N mean_S (c_i+ - c_i)

Both means are uniform, as in the paper: a weight (the examples) plays no part. The server's learning rate is the server
optimizer's.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from pydantic import Field

from flsys_ray.core.aggregation.base import AggregationRule, Array
from flsys_ray.core.exact import ExactSum, FixedPoint
from flsys_ray.core.layout import Vector
from flsys_ray.core.types import Contribution
from flsys_ray.core.updates import UpdateReader


@dataclass(frozen=True, slots=True, eq=False)
class TwoSums:
    """The sum of deltas, and the sum of the changes of the devices' controls."""

    deltas: ExactSum
    changes: ExactSum


class Scaffold(AggregationRule[TwoSums]):
    """Both summed exactly.

    >>> from flsys_ray.core.updates import HeldUpdates
    >>> rule, half = Scaffold(devices=4), np.array([0.5], dtype=np.float32)
    >>> state = rule.init(FixedPoint(max_updates=2, max_weight=1, max_abs=8.0), 1)
    >>> for key in ("a", "b"):
    ...     state = rule.add(state, Contribution(key, half, weight=1, control=4 * half))
    >>> rule.finish(state, HeldUpdates()), rule.next_control(state, half)
    (array([0.5]), array([1.5], dtype=float32))
    """

    name: Literal["scaffold"] = "scaffold"
    devices: int = Field(1000, ge=1, le=10**9, description="N: the devices of the population, at least a round's slots")

    @property
    def carries_control(self) -> bool:
        """It does."""
        return True

    @property
    def population(self) -> int:
        """N."""
        return self.devices

    def init(self, scale: FixedPoint, size: int) -> TwoSums:
        """Return the empty sums."""
        return TwoSums(ExactSum.zero(scale, size), ExactSum.zero(scale, size))

    def add(self, state: TwoSums, contribution: Contribution) -> TwoSums:
        """Add a delta and a change. Raises `ValueError` for an update without a change."""
        if contribution.control is None:
            raise ValueError(f"scaffold: update {contribution.key} has no control")
        return TwoSums(state.deltas.add(contribution.delta, 1), state.changes.add(contribution.control, 1))

    def merge(self, left: TwoSums, right: TwoSums) -> TwoSums:
        """Add both sums."""
        return TwoSums(left.deltas.merge(right.deltas), left.changes.merge(right.changes))

    def finish(self, state: TwoSums, updates: UpdateReader) -> Array:
        """Return the mean of the deltas."""
        return state.deltas.mean()

    def next_control(self, state: TwoSums, control: Vector) -> Vector:
        """Move the control by the mean change, times the share of the devices that took part (at most all)."""
        share = min(state.changes.count, self.devices) / self.devices
        return (control.astype(np.float64) + share * state.changes.mean()).astype(np.float32)
