"""q-FedAvg: devices with a larger loss move the model more, so that it serves all of them more equally.

Li, Sanjabi, Beirami, Smith, "Fair Resource Allocation in Federated Learning", ICLR 2020 (arXiv 1905.10497),
Algorithm 2, on deltas. The paper's `Delta w_k = L (w - w_k)` is `-L delta_k` here, so that

    delta = sum_k p_k F_k^q delta_k / sum_k p_k (q F_k^(q-1) L |delta_k|^2 + F_k^q)

Two things differ, and are said: F_k is the mean *training* loss that a device reports with its update, each example's
before the step that used it, and not the loss of the base version on all its examples; and the paper draws device k
with probability p_k, where here devices are drawn alike and `p_k = n_k / n` is a weight. With q = 0 it is FedAvg.
"""

from typing import Literal

import numpy as np
from pydantic import Field

from flsys_ray.core.aggregation.base import Array, Cohort, WholeCohort
from flsys_ray.core.aggregation.rows import weighted_sum
from flsys_ray.core.updates import UpdateReader, blocks

SMALLEST_LOSS = 1e-10  # as in the authors' code: a power of 0 must not be infinite


class QFedAvg(WholeCohort):
    """Sums run in assignment order, in float64. Not robust: whoever claims a large loss moves the model."""

    name: Literal["q_fedavg"] = "q_fedavg"
    q: float = Field(1.0, ge=0, le=10, description="0: FedAvg; the larger, the more the worst-served devices count")
    lipschitz: float = Field(20.0, gt=0, le=1e6, description="L: 1 / local.learning_rate")

    def aggregate(self, cohort: Cohort, updates: UpdateReader) -> Array:
        """Add once, with losses relative to the largest: only their ratios matter, and no power can overflow."""
        largest = max(_loss(member.loss) for member in cohort.members)
        numerators, denominator = [], 0.0
        for member, share in zip(cohort.members, cohort.shares, strict=True):
            loss = _loss(member.loss) / largest
            numerators.append(share * loss**self.q)
            curvature = self.q * loss ** (self.q - 1) * self.lipschitz * member.squared_norm / largest
            denominator += share * (curvature + loss**self.q)
        delta = np.empty(cohort.size)
        for where, rows in blocks(updates, cohort.keys, cohort.size):
            delta[where] = weighted_sum([numerator / denominator for numerator in numerators], rows)
        return delta


def _loss(loss: float) -> float:
    return max(loss, 0.0) + SMALLEST_LOSS
