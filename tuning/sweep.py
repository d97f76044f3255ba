"""A sweep as its YAML file says it. Nothing here runs anything."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, ValidationError, field_validator, model_validator

from flsys_ray.errors import InvalidInput, NotFound
from tuning.space import AnyDimension, Grid, Listed

OWN_FIELDS = {"seed": "seeds", "stopping": "rounds", "stopping.versions": "rounds"}
READY = Path(__file__).with_name("sweeps")
Metric = Literal["accuracy", "macro_f1"]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class GridSearch(_Section):
    """Every combination of the lists."""

    name: Literal["grid"] = "grid"


class RandomSearch(_Section):
    """Independent draws, each trained to the end."""

    name: Literal["random"] = "random"


class AshaSearch(_Section):
    """Independent draws, of which the worse ones end early (Li et al. 2020, arXiv 1810.05934, algorithm 2)."""

    name: Literal["asha"] = "asha"
    grace: int = Field(1, ge=1, description="versions that every trial trains")
    reduction: float = Field(3.0, gt=1, description="at each rung the best 1/reduction of the trials so far go on")


class OptunaSearch(_Section):
    """Draws that learn from earlier trials: Optuna's TPE (Bergstra et al. 2011, NeurIPS 24)."""

    name: Literal["optuna"] = "optuna"


def _name_of(value: Any) -> Any:
    if isinstance(value, str):
        return value
    return value.get("name", "random") if isinstance(value, Mapping) else getattr(value, "name", None)


AnySearch = Annotated[
    Annotated[GridSearch, Tag("grid")]
    | Annotated[RandomSearch, Tag("random")]
    | Annotated[AshaSearch, Tag("asha")]
    | Annotated[OptunaSearch, Tag("optuna")],
    Discriminator(
        _name_of, custom_error_type="search", custom_error_message="the searches are grid, random, asha and optuna"
    ),
]


class Sweep(_Section):
    """All of a sweep. Fields that `flsys simulate` has as options mean the same here.

    Attributes:
        data: the data set.
        builtin: the model. Default: by the form of the data.
        plan: what all trials have in common. Default: the model's own plan.
        space: dotted fields of the plan, and the values that each may take.
        search: how configurations are found.
        trials: configurations to try; with a field that has a `grid`, draws of the other fields.
        rounds: versions that a trial trains.
        seeds: each configuration is trained once with each; figures are means.
        seed: of the draws, and of the choice of test users.
        metric: what the best configuration has most of, on validation users, after the last version.
        target: of the metric: what "to target" figures count up to.
    """

    data: str
    builtin: str | None = None
    plan: dict[str, Any] | None = None
    space: dict[str, AnyDimension] = Field(min_length=1)
    search: AnySearch = RandomSearch()
    trials: int | None = Field(None, ge=1, le=100_000)
    rounds: int = Field(ge=1)
    seeds: tuple[Annotated[int, Field(ge=0, lt=2**31)], ...] = Field((0,), min_length=1)
    seed: int = Field(0, ge=0, lt=2**31)
    metric: Metric = "accuracy"
    target: float = Field(gt=0, le=1)
    trainer: Literal["fast", "program"] = "fast"
    devices: int | None = Field(None, ge=1)
    examples: int | None = Field(None, ge=1)
    classes_per_device: int | None = Field(None, ge=1)
    shared: str | None = None
    shared_part: float | None = Field(None, gt=0, le=1)
    drop_out: float = Field(0.0, ge=0, le=1)
    traces: Path | None = None
    ideal: bool = False
    check_in_every_s: float = Field(15.0, ge=0)
    evaluate_every: int = Field(1, ge=1)

    @field_validator("search", mode="before")
    @classmethod
    def _bare_name(cls, value: Any) -> Any:
        if isinstance(value, str):
            return {"name": value}
        return {"name": "random", **value} if isinstance(value, Mapping) else value

    @field_validator("seeds")
    @classmethod
    def _each_seed_once(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if len(set(value)) != len(value):
            raise ValueError(f"a seed is there twice: {', '.join(map(str, value))}")
        return value

    @model_validator(mode="after")
    def _fields_are_the_spaces_to_vary(self) -> "Sweep":
        for name in self.space:
            if name in OWN_FIELDS:
                raise ValueError(f"space: {name!r} cannot be varied: the sweep's {OWN_FIELDS[name]!r} sets it")
        return self

    @model_validator(mode="after")
    def _search_fits_the_space(self) -> "Sweep":
        grids = [name for name, dimension in self.space.items() if isinstance(dimension, Grid)]
        if self.search.name == "grid":
            ranges = [name for name, dimension in self.space.items() if not isinstance(dimension, Listed)]
            if ranges:
                raise ValueError(f"search grid: {', '.join(ranges)}: a range has no list of values: give a grid")
            if self.trials is not None:
                raise ValueError("search grid: it tries every combination: leave `trials` out")
        elif self.trials is None:
            raise ValueError(f"search {self.search.name}: say with `trials` how many configurations to try")
        elif self.search.name == "optuna" and grids:
            raise ValueError(f"search optuna: {', '.join(grids)}: it draws every field: give a choice, not a grid")
        return self

    def to_json(self) -> str:
        """Return the sweep as JSON, every default written out: two sweeps are the same if it is."""
        return json.dumps(self.model_dump(mode="json"), indent=2) + "\n"


def parse_sweep(text: str, name: str = "sweep") -> Sweep:
    """Return the sweep in a YAML text. Raises `InvalidInput` naming the fields."""
    try:
        value = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise InvalidInput(f"{name}: not YAML: {error}") from error
    try:
        return Sweep.model_validate({} if value is None else value)
    except ValidationError as error:
        problems = []
        for problem in error.errors():
            place = ".".join(str(part) for part in problem["loc"])
            message = problem["msg"].removeprefix("Value error, ")
            problems.append(f"{place}: {message}" if place else message)
        raise InvalidInput(f"{name}: {'; '.join(problems)}") from error


def find_sweep(name: str) -> Path:
    """Return the file of a sweep: a path, or the name of a ready one. Raises `NotFound` that lists these."""
    path = Path(name)
    if path.is_file():
        return path
    ready = {file.stem: file for file in sorted(READY.glob("*.yaml"))}
    if name not in ready:
        raise NotFound(f"no sweep {name!r}: there is no such file, and the ready ones are {', '.join(ready)}")
    return ready[name]
