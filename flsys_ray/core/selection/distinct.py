"""How many different devices came by: an estimate in constant memory.

Bar-Yossef, Jayram, Kumar, Sivakumar, Trevisan, "Counting Distinct Elements in a Data Stream", RANDOM 2002, algorithm 1
in its k-minimum-values form: of uniform hashes, the k-th smallest u says that there are about (k - 1) / u elements.
"""

from bisect import bisect_left
from dataclasses import dataclass
from functools import lru_cache

K = 256


@dataclass(frozen=True, slots=True)
class DistinctCount:
    """The K smallest hashes seen. Exact below K elements; relative standard error about 6 % above."""

    smallest: tuple[float, ...] = ()

    def add(self, hashed: float) -> "DistinctCount":
        """Return the count with one element's hash in [0, 1) added. An element added twice counts once."""
        place = bisect_left(self.smallest, hashed)
        if place >= K or (place < len(self.smallest) and self.smallest[place] == hashed):
            return self
        return DistinctCount((*self.smallest[:place], hashed, *self.smallest[place:])[:K])

    def merge(self, other: "DistinctCount") -> "DistinctCount":
        """Return the count of the union."""
        if not (self.smallest and other.smallest):
            return self if self.smallest else other
        return _merged(self, other)

    def estimate(self) -> float:
        """Return the estimated number of distinct elements."""
        if len(self.smallest) < K:
            return float(len(self.smallest))
        return (K - 1) / self.smallest[-1]


@lru_cache(maxsize=64)  # most devices that come by change neither count
def _merged(one: DistinctCount, other: DistinctCount) -> DistinctCount:
    both = dict.fromkeys(sorted(one.smallest + other.smallest))  # two sorted runs: faster than a set of both
    return DistinctCount(tuple(both)[:K])
