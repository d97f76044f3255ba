"""What a staleness weight is: a function of how many versions were committed since an update's base version.

Weights of updates are whole numbers, so that sums stay exact and the same to the bit in any order. A weight of examples
times a factor below 1 is therefore counted in units: `2**bits` of them are one example. The limits of the exact sum
are raised by the same power of two, at the price of that many fraction bits.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from flsys_ray.core.registry import Extension, Registry

UNIT_BITS = 8  # one example is 256 units: of ten examples at a factor of 0.1 the weight is off by less than 0.2 %


class StalenessWeight(Extension, ABC):
    """A frozen object whose fields are its hyper-parameters."""

    @property
    def bits(self) -> int:
        """How finely it counts: one example is `2**bits` units."""
        return UNIT_BITS

    @abstractmethod
    def factor(self, staleness: int) -> float:
        """Return the factor, in (0, 1], of an update that is `staleness` >= 0 versions old. 1 for a fresh one."""

    def units(self, examples: int, staleness: int) -> int:
        """Return the weight of an update, in units: at least one, so that what is counted is never nothing."""
        return max(1, round(examples * self.factor(staleness) * (1 << self.bits)))


@dataclass(frozen=True, slots=True)
class Staleness:
    """How a pacing takes updates of earlier rounds: at most `max_staleness` versions old, and with which weight."""

    max_staleness: int
    weight: StalenessWeight


WEIGHTS: Registry[StalenessWeight] = Registry(StalenessWeight, __package__)
