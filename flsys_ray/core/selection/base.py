"""What a selector is: a pure answer to "does this candidate get an assignment now?".

The pacing has already said that a slot is free; a selector only chooses who gets it. Its answer is a function of the
view, so the same round on another machine chooses the same devices. What it may know of devices is what their counted
updates said: see `history`.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from flsys_ray.core.registry import Extension, Registry
from flsys_ray.core.selection.history import NO_HISTORY, History


@dataclass(frozen=True, slots=True)
class Candidacy:
    """One device at the door of one round.

    `slots` is how many devices the round takes in all, `candidates` an estimate of how many different devices came by
    in the last rounds (this one included), `elapsed_fraction` the share of the round's time that is over. `history` is
    empty unless the selector reads it.
    """

    device_id: str
    seed: int
    round: int
    slots: int
    candidates: float
    elapsed_fraction: float
    history: History = NO_HISTORY


class Selector(Extension, ABC):
    """A frozen object whose fields are its hyper-parameters."""

    reads_history: ClassVar[bool] = False
    reads_labels: ClassVar[bool] = False  # asks devices how many examples of each class they train on

    @abstractmethod
    def chooses(self, candidacy: Candidacy) -> bool:
        """Return whether this device gets one of the free slots."""


SELECTORS: Registry[Selector] = Registry(Selector, __package__)
