"""What a replica sends to a model's owner at once, and how the owner takes it: as if it came one after the other."""

from collections.abc import Sequence
from dataclasses import dataclass

from flsys_ray.cloud import places
from flsys_ray.cloud.stored_updates import to_update
from flsys_ray.core.aggregation.partial import Line, Partial, folded
from flsys_ray.core.coordinator import Coordinator
from flsys_ray.core.layout import Layout
from flsys_ray.core.plan import TrainingPlan
from flsys_ray.core.types import Counted, Rejected, Update
from flsys_ray.errors import UpdateUnusable
from flsys_ray.storage.base import ObjectStore
from flsys_ray.wire.tensors import decode_update

UNUSABLE_RETRY_S = 30.0


@dataclass(frozen=True, slots=True)
class OpenRound:
    """The round of a model that is open, and the version that it starts from: what was true at some moment."""

    round: int
    version: int

    def staleness(self, update: Update) -> int:
        """Return how many versions old an update will be if this round takes it."""
        work = update.assignment
        return self.version - work.version if work.round != self.round else 0


@dataclass(frozen=True, slots=True, eq=False)
class Batch:
    """Updates of one model that are objects of its store.

    `partial` folds them under the plan of the hash; of `others`, repeats for example, there are the lines only.
    `sent_bytes` of versions the replica sent since its last batch.
    """

    plan_sha256: str
    partial: Partial
    others: tuple[Line, ...] = ()
    sent_bytes: int = 0

    @property
    def lines(self) -> tuple[Line, ...]:
        """All of them, in the order of the answers."""
        return self.partial.lines + self.others


@dataclass(frozen=True, slots=True)
class BatchAnswer:
    """What became of each update of a batch, and the round that is open afterwards: None if there is none."""

    outcomes: tuple[Counted | Rejected, ...]
    open: OpenRound | None


@dataclass(frozen=True, slots=True, eq=False)
class Ready:
    """An update that was checked and is an object of the store. `fresh`: this upload made the object."""

    update: Update
    plan_sha256: str
    fresh: bool

    @property
    def kind(self) -> tuple[int, str]:
        """Only updates of one round under one plan go together: after its end none of them counts any more."""
        return self.update.assignment.round, self.plan_sha256


def batch_of(ready: Sequence[Ready], plan: TrainingPlan, size: int, seen: OpenRound | None) -> Batch:
    """Fold the fresh ones of some updates of one kind, with the weights that they have if `seen` is still open.

    The order of the lines is that of `in_order`.
    """
    fresh = [each.update for each in ready if each.fresh]
    ages = [seen.staleness(update) if seen is not None else 0 for update in fresh]
    lines = [Line.of(update) for update in fresh]
    weights = [line.ref(plan, max(0, age)).weight for line, age in zip(lines, ages, strict=True)]
    others = tuple(Line.of(each.update) for each in ready if not each.fresh)
    return Batch(ready[0].plan_sha256, folded(plan, size, fresh, weights), others)


def in_order(ready: Sequence[Ready], outcomes: Sequence[Counted | Rejected]) -> list[Counted | Rejected]:
    """Return the outcomes of a batch in the order of the updates that it was made of."""
    fresh = iter(outcomes[: sum(each.fresh for each in ready)])
    others = iter(outcomes[sum(each.fresh for each in ready) :])
    return [next(fresh if each.fresh else others) for each in ready]


def submit_stored(coordinator: Coordinator, store: ObjectStore, line: Line, now: float) -> Counted | Rejected:
    """Count an update of which only the line is at hand: what is not refused as it is, is read from the store."""
    work = line.assignment
    answer = coordinator.answer(work, now)
    if answer is not None:
        return answer
    update = read_update(store, line, coordinator.layout, coordinator.plan)
    if isinstance(update, str):
        return Rejected("unusable", UNUSABLE_RETRY_S, update)
    return coordinator.submit(update, now)


def read_update(store: ObjectStore, line: Line, layout: Layout, plan: TrainingPlan) -> Update | str:
    """Return an update as it lies in the store, or what is wrong with it under this plan."""
    work = line.assignment
    body = store.get(places.update(work.model, work.round, work.assignment_id, work.device_id)).body
    try:
        control = plan.aggregation.carries_control
        return to_update(work, decode_update(body, layout, plan.limits.max_abs_delta, control=control), body)
    except UpdateUnusable as error:
        return error.message
