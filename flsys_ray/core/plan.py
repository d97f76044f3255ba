"""The training plan: everything about how a model trains, as one frozen pydantic model.

YAML, HTTP, Python and Tune spell it alike. An example:

    pacing: {name: rounds, cohort: 24, deadline_s: 60}
    selection: uniform
    aggregation: weighted_mean
    server_optimizer: {name: adam, learning_rate: 0.03}
    local: {epochs: 2, learning_rate: 0.05}
    stopping: {versions: 20}
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails

from flsys_ray.core.aggregation.base import RULES, AggregationRule
from flsys_ray.core.exact import FixedPoint
from flsys_ray.core.optimizers.base import OPTIMIZERS, ServerOptimizer
from flsys_ray.core.pacing.base import PACINGS, Pacing
from flsys_ray.core.pacing.deadline import Rounds
from flsys_ray.core.registry import OneOf, Registry
from flsys_ray.core.selection.base import SELECTORS, Selector
from flsys_ray.core.selection.uniform import Uniform
from flsys_ray.errors import PlanInvalid

ENCODINGS: Registry[Any] = Registry("Encoding", "flsys_ray.compression")
TRANSFORMS: Registry[Any] = Registry("Transform", "flsys_ray.augmentation")

if TYPE_CHECKING:
    AnyRule = AggregationRule[Any]
    AnyOptimizer = ServerOptimizer
    AnySelector = Selector
    AnyPacing = Pacing
else:
    AnyRule = RULES.union("weighted_mean")
    AnyOptimizer = OPTIMIZERS.union("sgd")
    AnySelector = SELECTORS.union("uniform")
    AnyPacing = PACINGS.union("rounds")


_EXTENSIONS: dict[str, Registry[Any]] = {
    "pacing": PACINGS,
    "selection": SELECTORS,
    "aggregation": RULES,
    "server_optimizer": OPTIMIZERS,
    "compression": ENCODINGS,
    "download": ENCODINGS,
}


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class LocalTraining(_Section):
    """What a device does with an assignment. The batch size is the program's."""

    epochs: int = Field(1, ge=1, le=1000)
    learning_rate: float = Field(0.05, gt=0)
    proximal_mu: float = Field(0.0, ge=0, description="FedProx's mu (Li et al. 2020, arXiv 1812.06127, eq. 2)")
    max_steps: int | None = Field(None, ge=1, description="stop after so many batches, whatever the epochs")


class LocalPlan(LocalTraining):
    """Local training whose steps shrink from version to version (Li et al. 2020, arXiv 1907.02189, theorem 1)."""

    learning_rate_decay: float = Field(1.0, gt=0, le=1, description="the rate's factor from one version to the next")

    def at(self, version: int) -> LocalTraining:
        """Return what a device does that begins with this version."""
        rate = max(self.learning_rate * self.learning_rate_decay**version, 1e-30)  # which float32 can say
        return LocalTraining(**self.model_dump(exclude={"learning_rate_decay"}) | {"learning_rate": rate})


class Augmentation(_Section):
    """What a device trains on beside its own examples, and how it changes sensor windows in each epoch, in order."""

    share: float = Field(0.0, ge=0, le=1, description="part of the model's shared set that each device mixes in")
    transforms: tuple[Annotated[Any, OneOf(TRANSFORMS, "jitter")], ...] = Field((), max_length=16)


class Eligibility(_Section):
    """When a device may train. The device judges it on its own, and its reasons never leave it."""

    charging: bool = True
    idle: bool = True
    unmetered: bool = True
    min_battery_fraction: float = Field(0.3, ge=0, le=1)
    min_examples: int = Field(10, ge=1)


class Limits(_Section):
    """What one update may hold. Exact sums are scaled by these."""

    max_examples: int = Field(10_000, ge=1, description="an update's weight is cut to this many examples")
    max_abs_delta: float = Field(1024.0, gt=0, description="an update with a larger value is refused")
    max_norm: float | None = Field(
        None, gt=0, description="an update whose L2 norm is larger is refused; null: none is"
    )


class Stopping(_Section):
    """When the model is finished. Without a limit it trains until it is stopped."""

    versions: int | None = Field(None, ge=1)


class FederatedEvaluation(_Section):
    """Devices that are not asked to train a version may be asked to evaluate it, without training."""

    every: int = Field(1, ge=1, description="versions whose number is a multiple of this are evaluated")
    cohort: int = Field(16, ge=1, le=100_000, description="devices that evaluate one version")
    deadline_s: float = Field(600.0, gt=0, le=7 * 86400)


class TrainingPlan(_Section):
    """How one model trains. Raises `PlanInvalid` through `parse_plan` when it contradicts itself."""

    pacing: AnyPacing = Rounds()
    selection: AnySelector = Uniform()
    aggregation: AnyRule = Field("weighted_mean", validate_default=True)
    server_optimizer: AnyOptimizer = Field("sgd", validate_default=True)
    augmentation: Augmentation = Augmentation()
    compression: Annotated[Any, OneOf(ENCODINGS, "float32")] = Field("float32", validate_default=True)
    download: Annotated[Any, OneOf(ENCODINGS, "float32")] = Field("float32", validate_default=True)
    local: LocalPlan = LocalPlan()
    eligibility: Eligibility = Eligibility()
    limits: Limits = Limits()
    stopping: Stopping = Stopping()
    evaluation: FederatedEvaluation | None = Field(None, description="default: no evaluation assignments")
    seed: int = Field(0, ge=0, lt=2**31)

    @model_validator(mode="after")
    def _sums_cannot_overflow(self) -> "TrainingPlan":
        try:
            self.scale()
        except PlanInvalid as error:
            raise ValueError(error.message) from error
        return self

    @model_validator(mode="after")
    def _every_cohort_is_large_enough_for_the_rule(self) -> "TrainingPlan":
        needed, fewest = self.aggregation.min_updates, self.pacing.min_updates
        if fewest >= needed:
            return self
        text = (
            f"{self.aggregation.name} needs at least {needed} updates, and a version may be committed with {fewest}: "
            "raise the quorum and the cohort, or have the rule tolerate fewer"
        )
        raise ValueError(text) from PlanInvalid(text, ("pacing", "aggregation"))

    @model_validator(mode="after")
    def _a_round_asks_no_more_devices_than_there_are(self) -> "TrainingPlan":
        population, slots = self.aggregation.population, self.pacing.slots
        if population is None or slots <= population:
            return self
        text = f"{self.aggregation.name} has {population} devices, and a round asks {slots} at a time"
        raise ValueError(text) from PlanInvalid(text, ("pacing", "aggregation.devices"))

    @model_validator(mode="after")
    def _controls_are_of_plain_steps_in_step(self) -> "TrainingPlan":
        if not self.aggregation.carries_control:
            return self
        name = self.aggregation.name
        if self.pacing.staleness is not None:
            text = f"{name} needs the pacing rounds, without late updates: a control belongs to one version"
            raise ValueError(text) from PlanInvalid(text, ("pacing", "aggregation"))
        if self.local.proximal_mu > 0:
            text = f"{name} corrects plain gradients: it cannot be combined with local.proximal_mu"
            raise ValueError(text) from PlanInvalid(text, ("local.proximal_mu", "aggregation"))
        if self.compression.name != "float32":
            text = f"{name} needs its control and delta as they are: it cannot be combined with compression"
            raise ValueError(text) from PlanInvalid(text, ("compression", "aggregation"))
        return self

    def scale(self) -> FixedPoint:
        """Return the fixed-point scale of this plan's sums."""
        staleness = self.pacing.staleness
        unit_bits = staleness.weight.bits if staleness is not None else 0
        return FixedPoint(self.pacing.max_updates, self.limits.max_examples << unit_bits, self.limits.max_abs_delta)

    def to_yaml(self) -> str:
        """Return the plan as YAML, every default written out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False)


def parse_plan(value: object) -> TrainingPlan:
    """Return the plan in a mapping (from JSON or YAML). Raises `PlanInvalid` naming the fields."""
    return _parsed(TrainingPlan.model_validate, value)


def parse_plan_json(body: bytes) -> TrainingPlan:
    """Return the plan in a JSON text. Raises `PlanInvalid`."""
    return _parsed(TrainingPlan.model_validate_json, body)


def _parsed(parse: Callable[[Any], TrainingPlan], value: object) -> TrainingPlan:
    try:
        return parse(value)
    except ValidationError as error:
        problems = [(_fields(e), e["msg"].removeprefix("Value error, ")) for e in error.errors()]
        text = "; ".join(f"{', '.join(fields)}: {message}" if fields else message for fields, message in problems)
        raise PlanInvalid(f"plan: {text}", tuple(name for fields, _ in problems for name in fields)) from error


def _fields(problem: ErrorDetails) -> tuple[str, ...]:
    """Return the dotted names of the fields of one problem, spelt as in YAML."""
    cause = getattr(problem.get("ctx", {}).get("error"), "__cause__", None)
    if isinstance(cause, PlanInvalid):
        return cause.fields
    loc: list[str] = []
    registry: Registry[Any] | None = None
    for part in map(str, problem["loc"]):
        if registry is None or part not in registry.classes:  # pydantic names the chosen class, which is no field
            loc.append(part)
        registry = _EXTENSIONS.get(part) if len(loc) == 1 else RULES if part == "inner" else None
    return (".".join(loc),) if loc else ()


def parse_plan_yaml(text: str) -> TrainingPlan:
    """Return the plan in a YAML text. Raises `PlanInvalid` for broken YAML too."""
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a ValueError: "2021-13-45" looks like a date
        raise PlanInvalid(f"plan: not YAML: {error}") from error
    return parse_plan({} if value is None else value)
