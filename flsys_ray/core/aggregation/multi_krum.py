"""Multi-Krum: the mean of the `m` updates with the best scores of Krum.

Blanchard, El Mhamdi, Guerraoui, Stainer, "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent",
NeurIPS 2017 (arXiv 1703.02757), section 4 and 5 ("m-Krum"). Every device counts the same.
"""

from typing import Literal

import numpy as np
from pydantic import Field

from flsys_ray.core.aggregation.base import Array, Cohort, WholeCohort
from flsys_ray.core.aggregation.krum import scores
from flsys_ray.core.aggregation.rows import exact_mean, squared_distances
from flsys_ray.core.updates import UpdateReader


class MultiKrum(WholeCohort):
    """Tolerates `f` devices of at least `2 f + 3`; `m` is at most `n - f - 2`, which is the default."""

    name: Literal["multi_krum"] = "multi_krum"
    f: int = Field(1, ge=0, description="how many devices of a cohort may lie")
    m: int | None = Field(None, ge=1, description="how many updates are averaged; default: n - f - 2")

    @property
    def min_updates(self) -> int:
        """`2 f + 3`, and `m + f + 2`."""
        return max(2 * self.f + 3, (self.m or 1) + self.f + 2)

    def aggregate(self, cohort: Cohort, updates: UpdateReader) -> Array:
        """Average the best, summed exactly."""
        distances = squared_distances(cohort.scale, cohort.keys, cohort.size, updates)
        best = np.argsort(scores(distances, self.f), kind="stable")[: self.m or len(cohort.members) - self.f - 2]
        return exact_mean(cohort.scale, [cohort.keys[int(index)] for index in best], cohort.size, updates)
