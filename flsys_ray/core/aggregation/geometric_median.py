"""The geometric median: the point with the smallest weighted sum of distances to the updates.

Pillutla, Kakade, Harchaoui, "Robust Aggregation for Federated Learning" (RFA), IEEE TSP 70, 2022 (arXiv 1912.13445),
equation (4) and Algorithm 2, the smoothed Weiszfeld algorithm:
`beta_k = alpha_k / max(nu, |v - delta_k|)`, `v <- sum_k beta_k delta_k / sum_k beta_k`, with `alpha_k = n_k / n`.
"""

import math
from typing import Literal

import numpy as np
from pydantic import Field

from flsys_ray.core.aggregation.base import Array, Cohort, WholeCohort
from flsys_ray.core.aggregation.rows import squared_distances_to, weighted_sum
from flsys_ray.core.updates import UpdateReader, blocks


class GeometricMedian(WholeCohort):
    """Tolerates devices that hold less than half of the examples.

    It begins at 0, the version that everybody began from, and not at the mean, which one device can move anywhere.
    Each iteration reads all updates once. Sums run in assignment order, in float64.
    """

    name: Literal["geometric_median"] = "geometric_median"
    iterations: int = Field(4, ge=1, le=100, description="R: each reads all updates once")
    nu: float = Field(1e-6, gt=0, description="smoothing: distances below it count as it")

    def aggregate(self, cohort: Cohort, updates: UpdateReader) -> Array:
        """Take `iterations` steps."""
        center = np.empty(cohort.size)
        squared = np.array([member.squared_norm for member in cohort.members])
        for _ in range(self.iterations):
            coefficients = self._coefficients(cohort, squared)
            squared = np.zeros(len(squared))
            for where, rows in blocks(updates, cohort.keys, cohort.size):
                center[where] = weighted_sum(coefficients, rows)
                squared = squared_distances_to(center[where], rows, squared)
        return center

    def _coefficients(self, cohort: Cohort, squared: Array) -> list[float]:
        pairs = zip(cohort.shares, squared.tolist(), strict=True)
        betas = [share / max(self.nu, math.sqrt(distance)) for share, distance in pairs]
        total = math.fsum(betas)
        return [beta / total for beta in betas]
