"""What an aggregation rule is: a lawful fold over updates.

`init` makes an empty state, `add` folds one update in, `merge` joins two states that were folded apart, `finish` gives
the aggregated delta. The laws, tested for every registered rule (`tests/laws/test_aggregation.py`): `merge` agrees with
`add`; order does not matter, to the bit; scaling all weights changes nothing; finite in, finite out; inputs are not
changed; an empty cohort is refused by name, and so is one of fewer than `min_updates`.

A rule may carry a control: one vector that goes from version to version, which devices are sent and change a part of
(`scaffold` is one). `next_control` is held to the same laws.

A rule that sums keeps a sum. A rule that must see all updates at once is a `WholeCohort`: its state says which updates
there are, and `finish` reads them block by block.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from flsys_ray.core.exact import FixedPoint
from flsys_ray.core.layout import Vector
from flsys_ray.core.registry import Extension, Registry
from flsys_ray.core.types import Contribution
from flsys_ray.core.updates import UpdateReader
from flsys_ray.errors import CohortTooSmall, EmptyCohort

S = TypeVar("S")
Array = NDArray[np.float64]


class AggregationRule(Extension, ABC, Generic[S]):
    """A frozen object whose fields are its hyper-parameters. S is the type of its state, which no method changes."""

    @property
    def min_updates(self) -> int:
        """The fewest updates that it can aggregate. A plan whose pacing may commit with fewer is refused."""
        return 1

    @property
    def reads_updates(self) -> bool:
        """Whether `finish` reads the updates again."""
        return False

    @property
    def carries_control(self) -> bool:
        """Whether a version has a control, and each update a change of its device's own. Such a rule is a fold."""
        return False

    @property
    def population(self) -> int | None:
        """How many devices there are, if it must know. A plan whose rounds ask more of them at a time is refused."""
        return None

    @abstractmethod
    def init(self, scale: FixedPoint, size: int) -> S:
        """Return the state of an empty cohort. `scale` holds the limits that every update keeps; `size` is P."""

    @abstractmethod
    def add(self, state: S, contribution: Contribution) -> S:
        """Return the state with one update more."""

    @abstractmethod
    def merge(self, left: S, right: S) -> S:
        """Return the state of both cohorts together."""

    @abstractmethod
    def finish(self, state: S, updates: UpdateReader) -> Array:
        """Return the aggregated delta, float64 [P]. `updates` reads what was added.

        Raises:
            EmptyCohort: nothing was added.
            CohortTooSmall: fewer than `min_updates` were.
        """

    def next_control(self, state: S, control: Vector) -> Vector:
        """Return the next version's control, float32 [P], of a rule that carries one. `control` is the base's."""
        return control


@dataclass(frozen=True, slots=True)
class Member:
    """What a `WholeCohort` remembers of one update: all but its delta, and the delta's squared L2 norm."""

    key: str
    weight: int
    loss: float
    steps: int
    squared_norm: float


@dataclass(frozen=True, slots=True)
class Cohort:
    """The updates that were added, and the limits that they keep."""

    scale: FixedPoint
    size: int
    members: tuple[Member, ...] = ()

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys of the members."""
        return tuple(member.key for member in self.members)

    @property
    def shares(self) -> tuple[float, ...]:
        """Each member's share of all examples."""
        total = sum(member.weight for member in self.members)
        return tuple(member.weight / total for member in self.members)


class WholeCohort(AggregationRule[Cohort]):
    """The base of rules that must see all updates at once: `aggregate` is all that is left to write."""

    @property
    def reads_updates(self) -> bool:
        """It does."""
        return True

    def init(self, scale: FixedPoint, size: int) -> Cohort:
        """Return the empty cohort."""
        return Cohort(scale, size)

    def add(self, state: Cohort, contribution: Contribution) -> Cohort:
        """Remember the update, and not its delta."""
        c = contribution
        member = Member(c.key, c.weight, c.loss, c.steps, squared_norm(c.delta))
        return replace(state, members=(*state.members, member))

    def merge(self, left: Cohort, right: Cohort) -> Cohort:
        """Return the union."""
        return replace(left, members=left.members + right.members)

    def finish(self, state: Cohort, updates: UpdateReader) -> Array:
        """Put the members into the order of their keys, and aggregate."""
        members = sorted(state.members, key=lambda member: member.key)
        check_size(self, len(members))
        return self.aggregate(replace(state, members=tuple(members)), updates)

    @abstractmethod
    def aggregate(self, cohort: Cohort, updates: UpdateReader) -> Array:
        """Return the aggregated delta, float64 [P], of at least `min_updates` members in assignment order."""


def squared_norm(delta: NDArray[np.floating[Any]]) -> float:
    """Return the squared L2 norm of a vector: squares in float64, summed by numpy's pairwise order."""
    return float(np.sum(np.square(delta, dtype=np.float64)))


def check_size(rule: AggregationRule[Any], count: int) -> None:
    """Raise `EmptyCohort` or `CohortTooSmall` if `count` updates are too few for a rule."""
    if count == 0:
        raise EmptyCohort(f"{rule.name}: no update was added")
    if count < rule.min_updates:
        raise CohortTooSmall(f"{rule.name}: {count} updates, at least {rule.min_updates} are needed")


RULES: Registry[AggregationRule[Any]] = Registry(AggregationRule, __package__)
