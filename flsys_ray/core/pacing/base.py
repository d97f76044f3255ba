"""What a pacing is: pure decisions on the state of the open round."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

from flsys_ray.core.registry import Extension, Registry
from flsys_ray.core.staleness.base import Staleness
from flsys_ray.core.types import Counters

Decision = Literal["wait", "commit", "close"]


@dataclass(frozen=True, slots=True)
class RoundView:
    """The open round: when its first assignment was given (UTC seconds), its cohort, and what time it is."""

    started_at: float
    counters: Counters
    now: float


class Pacing(Extension, ABC):
    """A frozen object whose fields are its hyper-parameters."""

    @property
    @abstractmethod
    def slots(self) -> int:
        """How many devices a round takes at a time."""

    @property
    @abstractmethod
    def max_updates(self) -> int:
        """The most updates that one version can hold: exact sums are scaled by it.

        It leaves room above the cohort. After a restart every update that is durable is taken in, since any of them may
        have been acknowledged, and devices that were assigned before the restart come back beside new ones.
        """

    @property
    @abstractmethod
    def min_updates(self) -> int:
        """The fewest updates that a version is ever committed with."""

    @property
    def asynchronous(self) -> bool:
        """Whether assignments outlive their round. A device that is done then gets new work at once."""
        return False

    @property
    def staleness(self) -> Staleness | None:
        """How updates of earlier rounds count in the open one; None: not at all."""
        return None

    @abstractmethod
    def free_slots(self, view: RoundView) -> int:
        """Return how many assignments may be given now."""

    @abstractmethod
    def decide(self, view: RoundView) -> Decision:
        """Return whether the round goes on, commits a version, or closes without one."""

    @abstractmethod
    def deadline(self, view: RoundView) -> float:
        """Return the instant by which an assignment given now must be back to count in the round that gave it."""

    def assignment_deadline(self, view: RoundView) -> float:
        """Return the instant by which it must be back to count at all."""
        return self.deadline(view)

    @abstractmethod
    def elapsed_fraction(self, view: RoundView) -> float:
        """Return the share of the round's time that is over, 0 to 1."""


PACINGS: Registry[Pacing] = Registry(Pacing, __package__)
