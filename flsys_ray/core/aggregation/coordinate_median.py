"""The median of the updates, coordinate by coordinate.

Yin, Chen, Ramchandran, Bartlett, "Byzantine-Robust Distributed Learning: Towards Optimal Statistical Rates", ICML 2018
(arXiv 1803.01498), Definition 1 and Algorithm 1, option I. Every device counts the same: a weight is what it claims.
"""

from typing import Literal

import numpy as np

from flsys_ray.core.aggregation.base import Array, Cohort, WholeCohort
from flsys_ray.core.updates import UpdateReader, blocks


class CoordinateMedian(WholeCohort):
    """The middle value, or the mean of the two middle ones. Tolerates fewer than half of the devices."""

    name: Literal["coordinate_median"] = "coordinate_median"

    def aggregate(self, cohort: Cohort, updates: UpdateReader) -> Array:
        """Sort each coordinate."""
        median = np.empty(cohort.size)
        upper = len(cohort.members) // 2
        lower = (len(cohort.members) - 1) // 2
        for where, rows in blocks(updates, cohort.keys, cohort.size):
            rows.sort(axis=0)
            median[where] = (rows[lower].astype(np.float64) + rows[upper]) / 2
        return median
