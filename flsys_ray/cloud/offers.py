"""What a model answers to a device that checks in."""

from dataclasses import dataclass

from flsys_ray.cloud.journal import Head, VersionRef
from flsys_ray.cloud.versions import control_of, mixed_in
from flsys_ray.compression.base import Encoding
from flsys_ray.compression.float32 import FLOAT32
from flsys_ray.core.coordinator import Coordinator
from flsys_ray.core.ids import is_evaluation
from flsys_ray.core.plan import Augmentation, Eligibility, LocalTraining
from flsys_ray.core.scheduling.base import Demand
from flsys_ray.core.types import Assignment, Rejected
from flsys_ray.wire.developer_schemas import PublicForm, VersionInfo


@dataclass(frozen=True, slots=True)
class Offer:
    """An assignment, and all that the device must be told with it.

    `serving`: the base version is fit for inference too, since no other one has been promoted. `control_sha256` is the
    control to train with, for a rule that carries one, `compression` how the plan wants updates encoded,
    `label_counts` whether its selector asks how many examples of each class there are. Of the set `shared_sha256` the
    device mixes in the share that `augmentation` says, drawn by `seed`. It trains from the version's `public` form, if
    that has one.
    """

    assignment: Assignment
    program_sha256: str
    plan_sha256: str
    weights_sha256: str
    parameters: int
    local: LocalTraining
    serving: bool = True
    control_sha256: str | None = None
    compression: Encoding = FLOAT32
    augmentation: Augmentation | None = None
    shared_sha256: str | None = None
    seed: int = 0
    public: PublicForm | None = None
    label_counts: bool = False


def offer_of(head: Head, coordinator: Coordinator, work: Assignment, base: VersionRef | VersionInfo) -> Offer:
    """Return the offer of an assignment that a model's open round gave out, of this base version."""
    control, evaluates = None, is_evaluation(work.assignment_id)
    if head.version is not None and not evaluates:
        control = control_of(head.version, coordinator.version)
    return Offer(
        assignment=work,
        program_sha256=str(head.program_sha256),
        plan_sha256=head.round_plan_sha256,
        weights_sha256=base.weights_sha256,
        parameters=coordinator.layout.size,
        local=coordinator.plan.local.at(work.version),
        serving=head.promoted in (None, work.version),
        control_sha256=control,
        compression=coordinator.plan.compression,
        augmentation=None if evaluates else coordinator.plan.augmentation,
        shared_sha256=None if evaluates else mixed_in(coordinator.plan, head),
        seed=coordinator.plan.seed,
        public=None if evaluates else base.public,
        label_counts=coordinator.plan.selection.reads_labels and not evaluates,
    )


@dataclass(frozen=True, slots=True)
class CheckInAnswer:
    """What one model has for a device that checks in."""

    outcome: Offer | Rejected
    eligibility: Eligibility
    demand: Demand | None = None
