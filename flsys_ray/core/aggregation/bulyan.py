"""Bulyan: Krum chooses a set of updates, and each coordinate is the mean of its values nearest to its median.

El Mhamdi, Guerraoui, Rouault, "The Hidden Vulnerability of Distributed Learning in Byzantium", ICML 2018
(arXiv 1802.07927), section 4, with A = Krum: Krum is run again and again, each winner taken out of the candidates,
until `theta = n - 2 f` are chosen; then the `beta = theta - 2 f` values of each coordinate that are nearest to the
median of the chosen are averaged. Every device counts the same.
"""

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from flsys_ray.core.aggregation.base import Array, Cohort, WholeCohort
from flsys_ray.core.aggregation.krum import scores
from flsys_ray.core.aggregation.rows import squared_distances
from flsys_ray.core.exact import FixedPoint
from flsys_ray.core.updates import UpdateReader, blocks


class Bulyan(WholeCohort):
    """Tolerates `f` devices of at least `4 f + 3`, also those that hide a large error in one coordinate."""

    name: Literal["bulyan"] = "bulyan"
    f: int = Field(1, ge=0, description="how many devices of a cohort may lie")

    @property
    def min_updates(self) -> int:
        """The paper's condition, `n >= 4 f + 3`."""
        return 4 * self.f + 3

    def aggregate(self, cohort: Cohort, updates: UpdateReader) -> Array:
        """Choose, then average around the median, exactly."""
        distances = squared_distances(cohort.scale, cohort.keys, cohort.size, updates)
        keys = [cohort.keys[index] for index in _chosen(distances, self.f)]
        mean = np.empty(cohort.size)
        for where, rows in blocks(updates, keys, cohort.size):
            rows.sort(axis=0)
            mean[where] = _mean_around_median(cohort.scale, rows, len(keys) - 2 * self.f)
        return mean


def _chosen(distances: Array, f: int) -> list[int]:
    """Return the `n - 2 f` updates that Krum chooses one after the other, in assignment order."""
    left = np.arange(len(distances))
    while len(left) > 2 * f:
        best = int(np.argmin(scores(distances[np.ix_(left, left)], f)))
        left = np.delete(left, best)
    return sorted(set(range(len(distances))) - set(left.tolist()))


def _mean_around_median(scale: FixedPoint, rows: NDArray[np.float32], keep: int) -> Array:
    """Return the mean of the `keep` values of each column nearest to its median. Columns are sorted.

    They lie side by side: of both ends the one that is further away goes, the upper one of two that are equally far.
    """
    count, width = rows.shape
    middle = (rows[(count - 1) // 2].astype(np.float64) + rows[count // 2]) / 2
    columns = np.arange(width)
    first = np.zeros(width, dtype=np.intp)
    for size in range(count, keep, -1):
        first += middle - rows[first, columns] > rows[first + size - 1, columns] - middle
    sums = np.zeros((count + 1, width), dtype=np.int64)
    np.cumsum(scale.encode(rows), axis=0, out=sums[1:])
    return scale.mean(sums[first + keep, columns] - sums[first, columns], keep)
