"""What a selector is: a pure answer to "does this candidate get an assignment now?".

The pacing has already said that a slot is free; a selector only chooses who gets it. Its answer is a function of the
view, so the same round on another machine chooses the same devices.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from flsys_ray.core.registry import Extension, Registry


@dataclass(frozen=True, slots=True)
class Candidacy:
    """One device at the door of one round.

    `slots` is how many devices the round takes in all, `candidates` an estimate of how many different devices came by
    in the last rounds (this one included), `elapsed_fraction` the share of the round's time that is over.
    """

    device_id: str
    seed: int
    round: int
    slots: int
    candidates: float
    elapsed_fraction: float


class Selector(Extension, ABC):
    """A frozen object whose fields are its hyper-parameters."""

    @abstractmethod
    def chooses(self, candidacy: Candidacy) -> bool:
        """Return whether this device gets one of the free slots."""


SELECTORS: Registry[Selector] = Registry(Selector, __package__)
