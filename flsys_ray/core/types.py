"""The nouns of the platform, and the sign of a delta.

The sign, said once: `delta = trained - base` on the device, and `next = base + optimizer(aggregate(deltas))` in the
cloud. An update that helps is added, never subtracted.

Instants are UTC seconds as float, durations seconds (`_s`).
"""

from dataclasses import dataclass
from typing import Literal

from flsys_ray.core.layout import Vector

Reason = Literal[
    "already-contributed",  # this device's assignment of this round is done
    "deadline-passed",  # the assignment's deadline is over
    "finished",  # the plan's stopping condition is met
    "given-back",  # the device gave this assignment back
    "not-scheduled",  # the device was given work of other models
    "not-selected",  # the selector chose others this time
    "not-training",  # the model is a draft, paused, finished or archived
    "round-closing",  # the round is about to close: come back in a moment
    "round-full",  # enough devices are at work
    "round-over",  # the round of the assignment has closed
    "too-stale",  # more versions were committed since the update's base version than the plan allows
    "unusable",  # the update's values, length or example count cannot be used
    "wrong-model",  # the assignment is of another model
]


@dataclass(frozen=True, slots=True)
class Assignment:
    """Work for one device: train `version` of `model` and upload the delta before `deadline` (UTC seconds)."""

    assignment_id: str
    model: str
    round: int
    version: int
    device_id: str
    deadline: float


@dataclass(frozen=True, slots=True, eq=False)
class Update:
    """What a device uploads for an assignment.

    `delta` is float32 [P], trained minus base parameters. `loss` is the mean training loss. `sha256` is the hash of
    the uploaded bytes, which a version's manifest repeats, `num_bytes` how many they were. `num_steps` are the local
    steps taken. `control` is the change of the device's control, float32 [P], for a rule that carries one. `train_s`
    is how long training took, `labels` how many examples of each class there were: None where the device says nothing.
    """

    assignment: Assignment
    delta: Vector
    num_examples: int
    loss: float
    sha256: str = ""
    num_steps: int = 1
    num_bytes: int = 0
    control: Vector | None = None
    train_s: float | None = None
    labels: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Contribution:
    """What an aggregation rule sees of one counted update.

    `key` is its assignment id: the order of keys is the order of every sum that is not exact. `delta` is float32 [P],
    `weight` its examples (at least 1, cut to the plan's limit, in units of the staleness weight if there is one),
    `loss` the mean training loss, `steps` the local steps taken (at least 1). `control` is as in the update.
    """

    key: str
    delta: Vector
    weight: int
    loss: float = 0.0
    steps: int = 1
    control: Vector | None = None


@dataclass(frozen=True, slots=True)
class Rejected:
    """A refusal that is part of normal life. Come back after `retry_after_s`; `detail` is for people."""

    reason: Reason
    retry_after_s: float
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Counted:
    """The update is in its round; `duplicate`: it was there before."""

    duplicate: bool


@dataclass(frozen=True, slots=True)
class GivenBack:
    """The assignment is free again; `duplicate`: it was before."""

    duplicate: bool


@dataclass(frozen=True, slots=True)
class Counters:
    """The cohort of a round. At every instant: assigned = counted + late + given_back + pending.

    `pending` is open work. When the round closes, what is pending becomes `late`: its chance is gone, whether or not
    the device is ever heard of again. Work that outlives its round stays `pending`, and is assigned in the next one.
    """

    assigned: int = 0
    counted: int = 0
    late: int = 0
    given_back: int = 0
    pending: int = 0

    @property
    def reconciles(self) -> bool:
        """Whether the sum holds."""
        return self.assigned == self.counted + self.late + self.given_back + self.pending


@dataclass(frozen=True, slots=True)
class UpdateRef:
    """One line of a version's manifest: which update is in it, how it counted, and the hash of its bytes.

    `weight` is what the rule was given: its examples, in units of the plan's staleness weight if it has one. The rest
    is as in the update: what selectors may know of a device is read from these lines.
    """

    assignment_id: str
    device_id: str
    num_examples: int
    sha256: str
    weight: int
    staleness: int = 0
    loss: float = 0.0
    num_steps: int = 1
    train_s: float | None = None
    labels: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class OptimizerState:
    """The state of a server optimizer after `step` steps: one float32 [P] vector a slot, in the order of its slots."""

    step: int = 0
    vectors: tuple[Vector, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Version:
    """One committed version: `parameters` float32 [P], and what is needed to go on from it.

    That is the server optimizer's state, and the `control`, float32 [P], of an aggregation rule that carries one.
    """

    number: int
    parameters: Vector
    optimizer_state: OptimizerState
    control: Vector | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Commit:
    """A new version and the updates that made it, in assignment order."""

    version: Version
    updates: tuple[UpdateRef, ...]
    delta_norm: float


@dataclass(frozen=True, slots=True, eq=False)
class RoundSummary:
    """How a round ended. `commit` is None when it missed its quorum: the next round starts from the same version."""

    round: int
    version: int
    opened_at: float
    closed_at: float
    counters: Counters
    num_examples: int
    mean_loss: float | None
    update_bytes: int
    commit: Commit | None
