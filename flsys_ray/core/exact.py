"""Exact sums: weighted vectors added as 64-bit integers.

Each value is scaled by a power of two and rounded to an integer once; integer addition is associative, so the sum is
the same to the bit in any order of arrival, on any number of replicas, and after any restart. The scale follows from
limits that are known before the first update arrives, so that no sum can overflow.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from flsys_ray.core.layout import Vector
from flsys_ray.errors import EmptyCohort, PlanInvalid

MAX_TOTAL = 2**63 - 1
MIN_FRACTION_BITS = 16
MAX_FRACTION_BITS = 40
_EXACT_IN_FLOAT64 = 2**52
_BLOCK = 12_288  # values whose intermediate results stay in a core's cache, in memory that the allocator keeps


@dataclass(frozen=True)
class FixedPoint:
    """A scale for sums of at most `max_updates` vectors with |value| <= `max_abs` and 1 <= weight <= `max_weight`.

    `fraction_bits` b is the largest for which `max_updates * max_weight * (max_abs * 2**b + 1/2) <= 2**63 - 1` and
    `max_abs * 2**b <= 2**52` (so that scaling in float64 is exact). One value is off by at most `2**-(b + 1)`.
    Raises `PlanInvalid` when fewer than 16 bits are left.
    """

    max_updates: int
    max_weight: int
    max_abs: float

    def __post_init__(self) -> None:
        if self.fraction_bits < MIN_FRACTION_BITS:
            raise PlanInvalid(
                f"exact sums: {self.max_updates} updates x {self.max_weight} examples x values up to {self.max_abs:g} "
                f"leave {self.fraction_bits} fraction bits, at least {MIN_FRACTION_BITS} are needed: lower one of them",
                ("pacing", "limits.max_examples", "limits.max_abs_delta"),
            )

    @cached_property
    def fraction_bits(self) -> int:
        """b: values are multiples of 2**-b."""
        top = math.ceil(self.max_abs)
        bits = MAX_FRACTION_BITS
        while bits >= 0 and not self._fits(top, bits):
            bits -= 1
        return bits

    def _fits(self, top: int, bits: int) -> bool:
        scaled = top << bits
        return scaled <= _EXACT_IN_FLOAT64 and self.max_updates * self.max_weight * (scaled + 1) <= MAX_TOTAL

    def encode(self, values: Vector) -> NDArray[np.int64]:
        """Scale and round half to even: float [P] to int64 [P]. The caller has checked that |values| <= `max_abs`."""
        scaled = values.astype(np.float64)
        scaled *= 2.0**self.fraction_bits  # exact, and faster than ldexp
        return np.rint(scaled, out=scaled).astype(np.int64)

    def mean(self, total: NDArray[np.int64], weight: int) -> NDArray[np.float64]:
        """Return `total / weight`, float64 [P], of a total in units of the scale.

        Quotient and remainder are divided apart, since a total may need more bits than a float64 has: the result
        depends on the ratio of total and weight only, so scaling all weights changes nothing.
        """
        quotient, remainder = np.divmod(total, weight)
        return np.ldexp(quotient + remainder / weight, -self.fraction_bits)


@dataclass(frozen=True, eq=False)
class ExactSum:
    """A weighted sum of vectors: `total` int64 [P] in units of the scale, the sum of weights, the number of vectors."""

    scale: FixedPoint
    total: NDArray[np.int64]
    weight: int = 0
    count: int = 0

    @classmethod
    def zero(cls, scale: FixedPoint, size: int) -> "ExactSum":
        """Return the empty sum of vectors of length `size`."""
        return cls(scale, np.zeros(size, dtype=np.int64))

    def add(self, values: Vector, weight: int) -> "ExactSum":
        """Return the sum with `weight * values` added. Block by block: memory is read and written once."""
        total = np.empty_like(self.total)
        for start in range(0, total.size, _BLOCK):
            block = slice(start, start + _BLOCK)
            term = self.scale.encode(values[block])
            term *= weight
            np.add(self.total[block], term, out=total[block])
        return ExactSum(self.scale, total, self.weight + weight, self.count + 1)

    def merge(self, other: "ExactSum") -> "ExactSum":
        """Return the sum of both, which must have the same scale."""
        return ExactSum(self.scale, self.total + other.total, self.weight + other.weight, self.count + other.count)

    def mean(self) -> NDArray[np.float64]:
        """Return the weighted mean, float64 [P]. Raises `EmptyCohort` for an empty sum."""
        if self.weight == 0:
            raise EmptyCohort("mean: no update was added")
        return self.scale.mean(self.total, self.weight)
