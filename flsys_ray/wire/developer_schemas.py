"""What developers and operators send and are told: models, rounds, versions, apps. `schemas` has what phones are."""

from typing import Literal

from pydantic import Field

from flsys_ray.core.plan import TrainingPlan
from flsys_ray.wire.schemas import ClassCounts, Message, Name, OwnName, Sha256, State


class Quotas(Message):
    """What one app may use. Beyond it the answer is 429 with `Retry-After`."""

    models: int = Field(1_000, ge=0, description="that are not archived")
    stored_bytes: int = Field(10**12, ge=0, description="of programs, shared sets and counted updates")
    checkins_per_min: int = Field(600_000, ge=1, description="of all its devices, at each replica of the cloud")
    upload_bytes_per_min: int = Field(
        60 * 10**9, ge=1, description="of all updates, repeats and refused ones too, at each replica of the cloud"
    )
    devices: int = Field(10**8, ge=0, description="that ever enrolled; each counts once")
    devices_per_hour: int = Field(10**6, ge=1, description="new ones")


class CreateApp(Message):
    """An operator registers a third-party app, or gives it other quotas; null leaves those that it has."""

    name: Name
    quotas: Quotas | None = None


class AppCreated(Message):
    """The app's newest key, and the one for its phones. Asking again gives the same."""

    app_id: Name
    key: str
    enrol_key: str = Field("", description="opens enrolment alone: the one to ship with the app")
    generations: list[int] = Field([1], description="of keys that are good")
    next_generation: int = Field(2, description="of the key that a rotation makes")
    quotas: Quotas = Quotas()


class PlanRequest(Message):
    """`PUT /v1/models/{model}`: create the model, or give it a new plan from the next round on."""

    plan: TrainingPlan = TrainingPlan()


class PromoteRequest(Message):
    """Which version inference uses from now on; null: always the newest."""

    version: int | None = Field(ge=0, lt=10**9)


class RollbackRequest(Message):
    """Which version training goes on from."""

    version: int = Field(ge=0, lt=10**9)


class RoundCounters(Message):
    """The cohort funnel: assigned = counted + late + given_back + pending."""

    assigned: int = 0
    counted: int = 0
    late: int = 0
    given_back: int = 0
    pending: int = 0


class Metrics(Message):
    """Federated evaluation, summed over the devices that reported."""

    loss: float
    accuracy: float
    examples: int
    devices: int
    per_class: list[ClassCounts] | None = Field(None, description="summed over the devices that reported them")


class OpenRound(Message):
    """The round that is open now."""

    round: int
    version: int
    opened_at: float
    counters: RoundCounters
    update_bytes: int = Field(0, description="of the counted updates, as uploaded")
    candidates: int = Field(
        0, description="devices that asked for work in the last rounds, an estimate; from 0 when the model is reloaded"
    )


class EvaluationProgress(Message):
    """How far the evaluation assignments of a version are. The counters reconcile as those of a round do.

    What is out and not back is the owner's to know: of a model that nobody has called lately, only what was counted.
    """

    version: int
    cohort: int = Field(description="how many devices the plan asks for")
    counters: RoundCounters


class ModelInfo(Message):
    """One model at this moment."""

    model: OwnName
    app_id: Name
    state: State
    version: int | None
    program_sha256: Sha256 | None
    weights_sha256: Sha256 | None
    shared_sha256: Sha256 | None = Field(None, description="of the newest shared set, if one was put")
    serving: int | None = Field(None, description="the version that inference uses: the newest, or a promoted one")
    promoted: bool = Field(default=False, description="`serving` is pinned and does not follow the newest version")
    parameters: int | None
    open_round: OpenRound | None
    rounds_closed: int
    last_metrics: Metrics | None = Field(
        description="of the version that the last round began with: on its cohort's held-out examples, and of "
        "evaluation assignments; a device that did both counts twice"
    )
    evaluation: EvaluationProgress | None = Field(None, description="evaluation assignments, if the plan asks for any")
    plan: TrainingPlan


class RoundInfo(Message):
    """A round that is over. `committed` is the version that it made, None if it missed its quorum."""

    round: int
    version: int
    committed: int | None
    opened_at: float
    closed_at: float
    counters: RoundCounters
    num_examples: int
    mean_loss: float | None
    delta_norm: float | None
    evaluation: Metrics | None = Field(description="of the base version, on the cohort's held-out examples")
    update_bytes: int = Field(0, description="of the counted updates, as uploaded")
    download_bytes: int = Field(
        0, description="of versions that were sent in it, in any way and to whomever, as far as replicas have told"
    )


class RoundsReply(Message):
    """Rounds, oldest first."""

    model: Name
    rounds: list[RoundInfo]


class UpdateLine(Message):
    """One update in a version."""

    assignment_id: str
    device_id: str
    num_examples: int
    sha256: str
    weight: int | None = Field(None, description="as the rule was given it; None (before there were two): the examples")
    staleness: int = Field(0, description="versions committed since the update's base version")
    loss: float = Field(0.0, description="the device's mean training loss")
    num_steps: int = 1
    train_s: float | None = Field(None, description="how long the device trained, if it says so")
    labels: tuple[int, ...] | None = Field(
        None, description="examples of each class, if the plan's selector asks and the phone's app agrees"
    )


class PublicStep(Message):
    """A step to a public form from the one whose full file has the hash `before`."""

    before: Sha256
    sha256: Sha256
    size_bytes: int
    encoding: str


class PublicForm(Message):
    """What phones train from in place of a version, where the plan compresses downloads: see docs/compression.md.

    `sha256` is of its parameters in full, `half_sha256` of the file with the same in half precision; `steps` lead to it
    one after the other.
    """

    sha256: Sha256
    half_sha256: Sha256
    steps: tuple[PublicStep, ...] = ()


class VersionInfo(Message):
    """A version's manifest: what made it. Version 0 has no round and no updates."""

    model: OwnName
    version: int
    weights_sha256: Sha256
    optimizer_sha256: Sha256
    optimizer_step: int
    program_sha256: Sha256
    plan_sha256: Sha256
    round: int | None
    committed_at: float
    updates: list[UpdateLine]
    restored_from: int | None = Field(None, description="the older version whose parameters it has, after a rollback")
    control_sha256: Sha256 | None = Field(None, description="of the control that the aggregation rule carries")
    shared_sha256: Sha256 | None = Field(
        None, description="of the shared set of which its round's devices mixed some in"
    )
    public: PublicForm | None = Field(None, description="what phones train from, if the plan compresses downloads")


class VersionEvaluation(Message):
    """What phones found about a version. Each of the three is None before the first report."""

    model: Name
    version: int
    classes: list[str]
    metrics: Metrics | None = Field(description="`cohort` and `assigned` together; a device in both counts twice")
    cohort: Metrics | None = Field(
        None, description="of devices that had it to train from, on examples held out there; of rounds that are over"
    )
    assigned: Metrics | None = Field(None, description="of devices with an evaluation assignment")


class VersionsReply(Message):
    """Versions, oldest first, without their updates."""

    model: Name
    versions: list[int]


class ModelsReply(Message):
    """The app's models, by name."""

    models: list[ModelInfo]


class OverviewReply(Message):
    """Every app's models, by app and name: the operator's view."""

    models: list[ModelInfo]


class InferRequest(Message):
    """Examples in the program's input shape (the manifest's `input_shape`), nested lists."""

    instances: list[list[float] | list[list[float]] | list[list[list[float]]]] = Field(min_length=1, max_length=256)
    version: int | None = Field(None, ge=0)


class InferReply(Message):
    """Scores [N, C] (probabilities), and the class with the highest one."""

    model: Name
    version: int
    classes: list[str]
    scores: list[list[float]]
    labels: list[str]


class Health(Message):
    """Alive or ready."""

    status: Literal["ok"] = "ok"
