"""Every JSON message of `/v1`. The OpenAPI document is generated from these.

Durations are seconds (`_s`), sizes bytes, instants UTC seconds as float. Names of models and apps are lower-case;
those of models are the app's own: two apps may use the same.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, JsonValue, StringConstraints

from flsys_ray.core.ids import model_name
from flsys_ray.core.plan import Eligibility, LocalTraining
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


class HalfLink(Message):
    """Where the parameters are in half precision: the same numbers in half the bytes."""

    url: str
    sha256: Sha256


class StepLink(Message):
    """Where an encoded step is, from the parameters whose file has the hash `before`."""

    before: Sha256
    url: str
    sha256: Sha256
    encoding: str = Field(description="the name of the encoding: a device that does not know it takes another way")


class WeightsLink(Message):
    """Where a version's parameters are, and the hash of the whole file.

    There may be smaller ways to have the very same file: `half`, or for a device that holds what they start from, the
    last of `steps`, one after the other.
    """

    url: str
    sha256: Sha256
    half: HalfLink | None = None
    steps: list[StepLink] = Field([], description="each begins where the one before it ends")

    @property
    def smaller(self) -> tuple[HalfLink | StepLink, ...]:
        """The files of all smaller ways."""
        return (*self.steps, *([self.half] if self.half is not None else []))


class ControlLink(Message):
    """Where the control of the base version is (see `aggregation: scaffold`), and the hash of the whole file."""

    url: str
    sha256: Sha256


class SharedSetLink(Message):
    """Of which set the device mixes a share into its training examples: safetensors, `x` [N, ...] and `y` int32 [N].

    Which examples these are follows from `seed`, the device's id and N: see docs/augmentation.md.
    """

    url: str
    sha256: Sha256
    share: float = Field(gt=0, le=1)
    seed: int


class AugmentationMessage(Message):
    """What a device does to its examples before it trains on them. One that cannot gives the assignment back."""

    transforms: list[dict[str, JsonValue]] = Field([], description="applied in this order, drawn anew in each epoch")
    shared: SharedSetLink | None = Field(None, description="a set of examples to mix in, before the transforms")


class UploadLink(Message):
    """Where the update goes, and what it may be. The device takes the first of `encodings` that it can do."""

    url: str
    encodings: list[str] = Field(["float32"], description="names, the plan's own first; `float32` is always among them")
    compression: dict[str, JsonValue] | None = Field(
        None, description="the first of `encodings` with its hyper-parameters; null: float32"
    )
    max_bytes: int
    staged: str | None = Field(
        None, description="`POST` there gives an address to put the update to; null: only `url` takes it"
    )


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

    @property
    def shared(self) -> SharedSetLink | None:
        """The set of which a share is mixed in."""
        return self.augmentation.shared if self.augmentation is not None else None

    @property
    def extras(self) -> tuple[ControlLink | SharedSetLink, ...]:
        """The files that it needs beside program and version."""
        return tuple(link for link in (self.control, self.shared) if link is not None)


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
