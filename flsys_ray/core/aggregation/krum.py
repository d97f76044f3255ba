"""Krum: the one update that is nearest to its nearest others.

Blanchard, El Mhamdi, Guerraoui, Stainer, "Machine Learning with Adversaries: Byzantine Tolerant Gradient Descent",
NeurIPS 2017 (arXiv 1703.02757), section 4: the score of update i is the sum of its squared distances to the `n - f - 2`
updates that are nearest to it; the lowest score wins. Every device counts the same.
"""

from typing import Literal

import numpy as np
from pydantic import Field

from flsys_ray.core.aggregation.base import Array, Cohort, WholeCohort
from flsys_ray.core.aggregation.rows import exact_mean, squared_distances
from flsys_ray.core.updates import UpdateReader


class Krum(WholeCohort):
    """Tolerates `f` devices of at least `2 f + 3`. Of equal scores the first in assignment order wins."""

    name: Literal["krum"] = "krum"
    f: int = Field(1, ge=0, description="how many devices of a cohort may lie")

    @property
    def min_updates(self) -> int:
        """The paper's condition, `n > 2 f + 2`."""
        return 2 * self.f + 3

    def aggregate(self, cohort: Cohort, updates: UpdateReader) -> Array:
        """Return the winner."""
        distances = squared_distances(cohort.scale, cohort.keys, cohort.size, updates)
        winner = cohort.keys[int(np.argmin(scores(distances, self.f)))]
        return exact_mean(cohort.scale, [winner], cohort.size, updates)


def scores(distances: Array, f: int) -> Array:
    """Return Krum's score of each update, float64 [n], from the squared distances [n, n]: one neighbour at least."""
    count = len(distances)
    others = distances.copy()
    np.fill_diagonal(others, np.inf)
    nearest: Array = np.sort(others, axis=1)[:, : max(1, count - f - 2)]
    score: Array = np.sum(nearest, axis=1)
    return score
