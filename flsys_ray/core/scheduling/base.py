"""What a scheduler is: a pure answer to "which model first?" when a device could train several.

Selection and pacing stand behind it: each model still says for itself whether it takes the device. A scheduler only
orders the models, and whoever asks goes down the list until the device has as many assignments as it may carry. So a
wrong or old view of a model costs an order that is not the best one, and never an assignment that should not be.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass

from flsys_ray.core.registry import Extension, Registry


@dataclass(frozen=True, slots=True)
class Demand:
    """What a model wants, at one instant.

    `free_slots` is how many devices its open round would take now, `remaining` how many updates it needs until its plan
    stops (until its round is full, when the plan has no limit), `opened_at` when its round opened (UTC seconds).
    """

    free_slots: int
    remaining: int
    opened_at: float


@dataclass(frozen=True, slots=True)
class Candidate:
    """One model that a device could train.

    `supply` estimates how many different devices could train it, this one included; `served` is how many assignments
    its app was given lately, divided by the app's weight.
    """

    model: str
    app: str
    demand: Demand
    supply: float
    served: float = 0.0


@dataclass(frozen=True, slots=True)
class CheckIn:
    """One device at the door of several models. No model is named twice."""

    device_id: str
    candidates: tuple[Candidate, ...]
    now: float
    seed: int = 0


class Scheduler(Extension, ABC):
    """A frozen object whose fields are its hyper-parameters."""

    @abstractmethod
    def order(self, check_in: CheckIn) -> tuple[str, ...]:
        """Return every candidate's model once, the one to ask first at the front.

        A function of the check-in alone, whatever the order of its candidates.
        """


SCHEDULERS: Registry[Scheduler] = Registry(Scheduler, __package__)
