"""The mean of what is left of each coordinate without its largest and smallest values.

Yin, Chen, Ramchandran, Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", ICML 2018
(arXiv 1803.01498), Definition 2 and Algorithm 1, option II. Every device counts the same.
"""

import math
from typing import Literal

import numpy as np
from pydantic import Field

from flsys_ray.core.aggregation.base import Array, Cohort, WholeCohort
from flsys_ray.core.updates import UpdateReader, blocks


class TrimmedMean(WholeCohort):
    """Leaves out `fraction` of the values at each end, rounded up, and keeps one or two at least."""

    name: Literal["trimmed_mean"] = "trimmed_mean"
    fraction: float = Field(0.2, ge=0, lt=0.5, description="beta: the share of devices that it tolerates")

    def aggregate(self, cohort: Cohort, updates: UpdateReader) -> Array:
        """Sort each coordinate, and add the middle exactly."""
        count = len(cohort.members)
        cut = min(math.ceil(round(self.fraction * count, 6)), (count - 1) // 2)
        mean = np.empty(cohort.size)
        for where, rows in blocks(updates, cohort.keys, cohort.size):
            rows.sort(axis=0)
            total = cohort.scale.encode(rows[cut : count - cut]).sum(axis=0)
            mean[where] = cohort.scale.mean(total, count - 2 * cut)
        return mean
