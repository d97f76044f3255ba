"""Local trainings that were given out, and the groups in which they are computed.

A training's result is needed when its update arrives, in virtual time, and not before. Then the next ones to arrive are
computed with it, as many as the open round still wants: what is lost on the way, or comes when the round is full, is
mostly never computed. Where a round gives out no more work than it wants, each group begins as soon as it is full:
workers compute while other devices still come by. Who is in a group follows from virtual time alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from flsys_ray.core.layout import Vector
from flsys_ray.simulation.executors import Executor, Promise
from flsys_ray.simulation.training import Deltas, Group, Work


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """One work's result: delta float32 [P], mean loss, steps."""

    delta: Vector
    loss: float
    steps: int


@dataclass(frozen=True, slots=True)
class DeskState:
    """All of a desk's state: to be saved, and gone on from."""

    waiting: tuple[tuple[float, Work], ...]
    groups: tuple[tuple[Work, ...], ...]
    taken: frozenset[str]
    bases: Mapping[int, Vector]


@dataclass(slots=True)
class Desk:
    """One model's trainings.

    Attributes:
        model: its name.
        group_size: works in a group, at most.
        at_once: whether a full group begins before a result is needed.
    """

    model: str
    executor: Executor
    group_size: int
    at_once: bool = False
    _waiting: dict[str, tuple[float, Work]] = field(default_factory=dict)
    _groups: list["_Sent"] = field(default_factory=list)
    _places: dict[str, tuple["_Sent", int]] = field(default_factory=dict)
    _taken: set[str] = field(default_factory=set)
    _bases: dict[int, Vector] = field(default_factory=dict)

    def give(self, work: Work, base: Vector, arrives_at: float) -> None:
        """Take a training in, whose update will arrive at an instant."""
        self._bases[work.base] = base
        if work.assignment_id not in self._places:
            self._waiting[work.assignment_id] = (arrives_at, work)
        if self.at_once and len(self._waiting) == self.group_size:
            self._send(tuple(work for _, work in self._waiting.values()))

    def drop(self, assignment_id: str) -> None:
        """Forget a training whose result nobody will ask for."""
        self._waiting.pop(assignment_id, None)
        if assignment_id in self._places:
            self._take(assignment_id)

    def result(self, assignment_id: str, wanted: int) -> Result:
        """Return a training's result, and forget it. `wanted` results, this one included, will probably be needed."""
        if assignment_id not in self._places:
            self._begin(assignment_id, wanted)
        sent, row = self._places[assignment_id]
        deltas = sent.promise.result()
        self.drop(assignment_id)
        return Result(deltas.delta[row], float(deltas.loss[row]), max(1, int(deltas.steps[row])))

    def state(self) -> DeskState:
        """Return the state, without results: they are computed again, in the same groups."""
        groups = tuple(sent.works for sent in self._groups)
        return DeskState(tuple(self._waiting.values()), groups, frozenset(self._taken), dict(self._bases))

    def restore(self, state: DeskState) -> None:
        """Go on from a state."""
        self._bases = dict(state.bases)
        self._waiting = {work.assignment_id: (at, work) for at, work in state.waiting}
        for works in state.groups:
            self._send(works)
        for assignment_id in state.taken:
            self._take(assignment_id)

    def _begin(self, assignment_id: str, wanted: int) -> None:
        """Send the training and those that arrive next to workers, in even groups."""
        order = sorted(self._waiting.values(), key=lambda item: (item[0], item[1].assignment_id))
        ids = [work.assignment_id for _, work in order]
        first = ids.index(assignment_id)
        chosen = [order[first][1], *(work for i, (_, work) in enumerate(order) if i != first)][: max(1, wanted)]
        count = -(-len(chosen) // self.group_size)
        for i in range(count):
            self._send(tuple(chosen[i * len(chosen) // count : (i + 1) * len(chosen) // count]))

    def _send(self, works: tuple[Work, ...]) -> None:
        bases = {work.base: self._bases[work.base] for work in works}
        sent = _Sent(works, self.executor.train(Group(self.model, works, bases)), len(works))
        self._groups.append(sent)
        for row, work in enumerate(works):
            self._waiting.pop(work.assignment_id, None)
            self._places[work.assignment_id] = (sent, row)

    def _take(self, assignment_id: str) -> None:
        """A result is taken. With its last one a group is let go of, and versions that nobody begins with."""
        sent, _ = self._places.pop(assignment_id)
        self._taken.add(assignment_id)
        sent.left -= 1
        if sent.left:
            return
        self._groups.remove(sent)
        self._taken -= {work.assignment_id for work in sent.works}
        needed = {work.base for _, work in self._waiting.values()} | {w.base for one in self._groups for w in one.works}
        self._bases = {number: base for number, base in self._bases.items() if number in needed}


@dataclass(slots=True, eq=False)
class _Sent:
    """A group that workers have, and how many of its results are not taken."""

    works: tuple[Work, ...]
    promise: Promise[Deltas]
    left: int
