"""What a sweep varies: dotted fields of the plan, each with the values that it may take.

    space:
      selection: {choice: [uniform, oort]}
      local.epochs: {randint: [1, 4]}
      server_optimizer.learning_rate: {loguniform: [0.1, 2.0]}

A value of a list is written as compact JSON where it must be a plain scalar (in tables, and for Optuna).
"""

import json
import math
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag, model_validator

from flsys_ray.core.rng import generator

Value = str | float | int
DIGITS = 4


class Dimension(BaseModel):
    """The values of one field. `kind` is its only field, and names it in YAML."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)
    kind: ClassVar[str]

    def at(self, place: float) -> Value:
        """Return the value at a place in [0, 1)."""
        raise NotImplementedError

    def near(self, value: Value) -> Value:
        """Return a value that a search has made as a sweep writes it."""
        return value

    def probes(self) -> tuple[Value, ...]:
        """Return the values that are tried out before a sweep starts: all of a list, both ends of a range."""
        raise NotImplementedError


class Listed(Dimension):
    """A field with a list of values."""

    def values(self) -> tuple[Value, ...]:
        """Return all values, as JSON."""
        return tuple(written(value) for value in getattr(self, self.kind))

    def at(self, place: float) -> Value:
        """Return the value at a place in [0, 1)."""
        return self.values()[int(place * len(self.values()))]

    def probes(self) -> tuple[Value, ...]:
        """Return all values."""
        return self.values()

    @model_validator(mode="after")
    def _each_once(self) -> "Listed":
        try:
            self.values()
        except TypeError as error:  # a date, which YAML makes of 2020-01-01
            raise ValueError(f"a value is neither text, number, list nor mapping: {error}") from error
        if len(set(self.values())) != len(self.values()):
            raise ValueError(f"a value is there twice: {', '.join(map(str, self.values()))}")
        return self


class Choice(Listed):
    """One of a list."""

    kind: ClassVar[str] = "choice"
    choice: tuple[Any, ...] = Field(min_length=1)


class Grid(Listed):
    """Each of a list: every draw of the other fields is tried with every value."""

    kind: ClassVar[str] = "grid"
    grid: tuple[Any, ...] = Field(min_length=1)


class Ranged(Dimension):
    """A field with the two ends of its values."""

    def probes(self) -> tuple[Value, ...]:
        """Return both ends."""
        low, high = getattr(self, self.kind)
        return low, high

    @model_validator(mode="after")
    def _in_order(self) -> "Ranged":
        low, high = getattr(self, self.kind)
        if not low < high:
            raise ValueError(f"the low end comes first, and is smaller: got [{low}, {high}]")
        return self


class Uniform(Ranged):
    """A number between two, drawn uniformly."""

    kind: ClassVar[str] = "uniform"
    uniform: tuple[float, float]

    def at(self, place: float) -> Value:
        """Return the value at a place in [0, 1)."""
        low, high = self.uniform
        return self.near(low + place * (high - low))

    def near(self, value: Value) -> Value:
        """Return the number with few digits."""
        return rounded(float(value), self.uniform)


class LogUniform(Ranged):
    """A number between two positive ones, its logarithm drawn uniformly."""

    kind: ClassVar[str] = "loguniform"
    loguniform: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]

    def at(self, place: float) -> Value:
        """Return the value at a place in [0, 1)."""
        low, high = map(math.log, self.loguniform)
        return self.near(math.exp(low + place * (high - low)))

    def near(self, value: Value) -> Value:
        """Return the number with few digits."""
        return rounded(float(value), self.loguniform)


class RandInt(Ranged):
    """A whole number between two, both included."""

    kind: ClassVar[str] = "randint"
    randint: tuple[int, int]

    def at(self, place: float) -> Value:
        """Return the value at a place in [0, 1)."""
        low, high = self.randint
        return low + int(place * (high - low + 1))


KINDS: dict[str, type[Dimension]] = {kind.kind: kind for kind in (Choice, Grid, Uniform, LogUniform, RandInt)}


def _kind_of(value: Any) -> str | None:
    if isinstance(value, Dimension):
        return value.kind
    return next(iter(value), None) if isinstance(value, Mapping) else None


AnyDimension = Annotated[
    Annotated[Choice, Tag("choice")]
    | Annotated[Grid, Tag("grid")]
    | Annotated[Uniform, Tag("uniform")]
    | Annotated[LogUniform, Tag("loguniform")]
    | Annotated[RandInt, Tag("randint")],
    Discriminator(
        _kind_of,
        custom_error_type="dimension",
        custom_error_message=f"say one of {', '.join(KINDS)}, such as {{choice: [a, b]}}",
    ),
]

Space = Mapping[str, Dimension]
Configuration = Mapping[str, Value]


def written(value: Any) -> str:
    """Return a value of a list as compact JSON; a plain name as it is."""
    if isinstance(value, str):
        return value
    return json.dumps(value, separators=(", ", ": "))


def meant(dimension: Dimension, value: Value) -> Any:
    """Return what a value of a configuration stands for in the plan."""
    listed = getattr(dimension, dimension.kind)
    if not isinstance(dimension, Listed):
        return value
    return next(item for item in listed if written(item) == value)


def rounded(value: float, ends: tuple[float, float]) -> float:
    """Return a number with few digits, still between the ends."""
    return min(max(float(f"{value:.{DIGITS}g}"), ends[0]), ends[1])


def combinations(space: Space) -> Iterator[dict[str, Value]]:
    """Yield every combination of the values of lists, the last field's changing fastest."""
    names = list(space)
    for values in product(*(space[name].probes() for name in names)):
        yield dict(zip(names, values, strict=True))


def draw(space: Space, seed: int, number: int) -> dict[str, Value]:
    """Return draw `number` of the fields. A field's value depends on (seed, number, field) alone."""
    return {
        name: dimension.at(float(generator(seed, "sweep", number, name).random())) for name, dimension in space.items()
    }


def count(space: Space) -> int | None:
    """Return how many configurations there are; None if a field is drawn from a range of numbers that are not whole."""
    total = 1
    for dimension in space.values():
        if isinstance(dimension, RandInt):
            total *= dimension.randint[1] - dimension.randint[0] + 1
        elif isinstance(dimension, Listed):
            total *= len(dimension.values())
        else:
            return None
    return total
