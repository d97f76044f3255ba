"""Every JSON message of `/v1`. The OpenAPI document is generated from these.

Durations are seconds (`_s`), sizes bytes, instants UTC seconds as float. Names of models and apps are lower-case;
those of models are the app's own: two apps may use the same.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, StringConstraints

from flsys_ray.core.ids import model_name
from flsys_ray.core.plan import Eligibility, LocalTraining, TrainingPlan
from flsys_ray.core.types import Reason

SAFETENSORS = "application/vnd.safetensors"
PROGRAM = "application/vnd.flsys.program"
PROBLEM = "application/problem+json"
ASSIGNMENT_HEADER = "Flsys-Assignment"

Name = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
OwnName = Annotated[Name, BeforeValidator(model_name)]  # of a model's id, `app/name`, the name: an app is told no more
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
State = Literal["draft", "training", "paused", "finished", "archived"]


class Message(BaseModel):
    """The base of all messages: immutable, strict about misspelt fields, no NaN or infinity."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Problem(BaseModel):
    """An error, RFC 9457. `type` ends in the error's stable code."""

    type: str
    title: str
    status: int
    detail: str
    instance: str | None = None
    fields: list[str] | None = Field(None, description="the input's fields that are wrong, dotted")
    retry_after_s: float | None = None


# Phones ----------------------------------------------------------------------------------------------------------


class EnrolRequest(Message):
    """A phone asks to take part. The same `installation_id` gives the same device, however often it asks."""

    installation_id: str = Field(min_length=8, max_length=200, description="random, made once by the installed app")
    nonce: str | None = Field(None, max_length=1000, description="of `POST /v1/devices/nonce`, if the app attests")
    attestation: str | None = Field(None, max_length=16_384, description="evidence over nonce and installation id")


class EnrolReply(Message):
    """A device's identity. The token goes into `Authorization: Bearer`."""

    device_id: str
    token: str
    expires_at: float


class Conditions(Message):
    """What the cloud must know to choose work for a device. Why a device is eligible never leaves it."""

    program_format: int = Field(1, ge=1, description="the newest program format that the device can run")
    available_s: float | None = Field(None, gt=0, description="how long the device expects to stay available")


class ModelCandidacy(Message):
    """What a device could do for one model."""

    model: Name
    version: int | None = Field(None, ge=0, description="the newest version that the device holds")
    examples: int = Field(ge=0, description="how many examples it could train on")


class CheckInRequest(Message):
    """A device says what it could do now."""

    conditions: Conditions = Conditions()
    models: list[ModelCandidacy] = Field(min_length=1, max_length=100)


class ProgramLink(Message):
    """Where a program is, and the hash of the whole file."""

    url: str
    sha256: Sha256


class WeightsLink(Message):
    """Where a version's parameters are, and the hash of the whole file."""

    url: str
    sha256: Sha256


class ControlLink(Message):
    """Where the control of the base version is (see `aggregation: scaffold`), and the hash of the whole file."""

    url: str
    sha256: Sha256


class AugmentationMessage(Message):
    """What a device does to its examples before it trains on them. One that cannot gives the assignment back."""

    transforms: list[dict[str, JsonValue]] = Field([], description="applied in this order, drawn anew in each epoch")
    shared: ProgramLink | None = Field(None, description="reserved: a set of examples to mix in")


class UploadLink(Message):
    """Where the update goes, and what it may be. The device takes the first of `encodings` that it can do."""

    url: str
    encodings: list[str] = Field(["float32"], description="names, the plan's own first; `float32` is always among them")
    compression: dict[str, JsonValue] | None = Field(
        None, description="the first of `encodings` with its hyper-parameters; null: float32"
    )
    max_bytes: int


class AssignmentMessage(Message):
    """Work for the device; URLs are relative.

    `token` goes into the `Flsys-Assignment` header of the `PUT` on `upload.url`, of `DELETE` and of
    `PUT .../evaluation`, beside the device's own token.
    """

    assignment_id: str
    token: str
    kind: Literal["train", "evaluate"] = Field(
        "train", description="`evaluate`: no update, only `PUT .../evaluation`; `round` is the version's number then"
    )
    model: Name
    round: int
    version: int
    program: ProgramLink
    weights: WeightsLink
    augmentation: AugmentationMessage | None = None
    label_counts: bool = Field(
        default=False, description="the plan asks how many examples of each class were trained on; may be left out"
    )
    control: ControlLink | None = Field(
        None, description="train with it, and upload the change of the device's own as a second tensor, `control`"
    )
    local: LocalTraining
    upload: UploadLink
    deadline_s: float = Field(description="seconds from now")
    serving: bool = Field(
        default=True, description="the base version is fit for inference: no other one has been promoted"
    )


class Rejection(Message):
    """Why there is no assignment of this model now."""

    model: Name
    reason: Reason | Literal["unknown-model", "unavailable"]


class CheckInReply(Message):
    """Zero or more assignments, and when to come back. `eligibility` is that of each model's plan."""

    assignments: list[AssignmentMessage]
    rejections: list[Rejection]
    eligibility: dict[str, Eligibility]
    retry_after_s: float


class UpdateReply(Message):
    """The update is durable and in its round; `duplicate`: it was there before."""

    status: Literal["counted"] = "counted"
    duplicate: bool


class GiveBackRequest(Message):
    """Why the device gives its assignment back."""

    reason: Literal["not-eligible", "not-enough-data", "failed", "restarted", "out-of-time", "withdrawn"] = "failed"


class ClassCounts(Message):
    """Of one class, by its index in the manifest's `classes`: how many examples, and how many of them were correct."""

    label: int = Field(ge=0)
    count: int = Field(ge=1)
    correct: int = Field(ge=0)


class EvaluationRequest(Message):
    """How the assignment's version does on the device's own held-out examples.

    `per_class` names each class that has examples once; its sums are `count` and `correct`.
    """

    loss_sum: float = Field(ge=0)
    correct: int = Field(ge=0)
    count: int = Field(ge=1)
    per_class: list[ClassCounts] | None = Field(None, max_length=10_000)


class EvaluationReply(Message):
    """The evaluation is durable."""

    status: Literal["counted"] = "counted"
    duplicate: bool


# Developers and operators ----------------------------------------------------------------------------------------


class Quotas(Message):
    """What one app may use. Beyond it the answer is 429 with `Retry-After`."""

    models: int = Field(1_000, ge=0, description="that are not archived")
    stored_bytes: int = Field(10**12, ge=0, description="of programs and counted updates")
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
