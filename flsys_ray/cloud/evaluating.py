"""Evaluation assignments made durable: one object a device and version, summed whenever somebody asks.

The book of who has one is the owner's memory. A new owner lists the version's objects, so nobody evaluates twice; what
was out and not back is asked of others again. A version changes with rollbacks too: its number is never used again.
"""

from dataclasses import asdict, dataclass

from flsys_ray.cloud import places
from flsys_ray.cloud.evaluations import metrics_of
from flsys_ray.cloud.journal import Head
from flsys_ray.core.evaluating import EvaluationBook
from flsys_ray.core.plan import FederatedEvaluation, TrainingPlan
from flsys_ray.core.types import Assignment, Counted, GivenBack, Rejected
from flsys_ray.errors import AlreadyExists, Missing
from flsys_ray.storage.base import ObjectStore
from flsys_ray.wire.developer_schemas import EvaluationProgress, Metrics, RoundCounters
from flsys_ray.wire.schemas import EvaluationRequest

LATE_RETRY_S = 30.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which version is to be evaluated, and how."""

    plan: FederatedEvaluation
    version: int


@dataclass(frozen=True, slots=True)
class Seen:
    """What is told of evaluation assignments: how far they are, and what they found of the last round's version."""

    progress: EvaluationProgress | None = None
    assigned: Metrics | None = None


def wanted(head: Head, plan: TrainingPlan) -> Wanted | None:
    """Return what a model wants to be evaluated now, None for nothing.

    While it trains that is the version to train, if its number is a multiple of `every`. Once it is finished it is the
    version that serves, whatever its number. `plan` is the newest: no round has to end before it holds.
    """
    if plan.evaluation is None or head.version is None or head.serving is None:
        return None
    if head.state == "training" and head.version.number % plan.evaluation.every == 0:
        return Wanted(plan.evaluation, head.version.number)
    if head.state == "finished":
        return Wanted(plan.evaluation.model_copy(update={"every": 1}), head.serving)
    return None


class Evaluating:
    """The evaluation assignments of the version that a model has evaluated."""

    def __init__(self, store: ObjectStore, model: str) -> None:
        self._store = store
        self._model = model
        self._book = EvaluationBook(model, None, -1)
        self._known: tuple[int, Metrics | None] = (-1, None)

    def check_in(self, head: Head, plan: TrainingPlan, device_id: str, now: float) -> Assignment | None:
        """Return an evaluation assignment for a device that is not given work to train, None if none is wanted."""
        wants = wanted(head, plan)
        return self._open(wants, now).check_in(device_id, now) if wants is not None else None

    def seen(self, head: Head, plan: TrainingPlan, now: float) -> Seen:
        """Return what is told; the sums are kept until the next report, and read again then."""
        progress, wants = None, wanted(head, plan)
        if wants is not None:
            counters = RoundCounters(**asdict(self._open(wants, now).counters(now)))
            progress = EvaluationProgress(version=wants.version, cohort=wants.plan.cohort, counters=counters)
        if plan.evaluation is None or head.last_round is None:
            return Seen(progress)
        if self._known[0] != head.last_round.version:
            last = head.last_round.version
            self._known = (last, version_metrics(self._store, self._model, last))
        return Seen(progress, self._known[1])

    def report(self, assignment: Assignment, metrics: EvaluationRequest, now: float) -> Counted | Rejected:
        """Store one. A repeat is a duplicate, and the first one stays; after the deadline only a repeat is taken."""
        work = assignment
        key = places.version_evaluation(self._model, work.version, work.assignment_id, work.device_id)
        try:
            if now <= work.deadline:
                self._store.put_new(key, metrics.model_dump_json().encode())
                duplicate = False
            else:
                self._store.get(key, 0, 0)
                duplicate = True
        except AlreadyExists:
            duplicate = True
        except Missing:
            return Rejected("deadline-passed", LATE_RETRY_S)
        self._book.settle(work, "counted")
        self._known = (-1, None)
        return Counted(duplicate)

    def give_back(self, assignment: Assignment) -> GivenBack:
        """Free a slot."""
        self._book.settle(assignment, "given-back")
        return GivenBack(duplicate=False)

    def _open(self, wants: Wanted, now: float) -> EvaluationBook:
        if (self._book.wants, self._book.version) != (wants.plan, wants.version):
            self._book = EvaluationBook(self._model, wants.plan, wants.version)
            for key in self._store.list(places.version_evaluations(self._model, wants.version)):
                id_, device = places.owner_of(key)
                work = Assignment(id_, self._model, wants.version, wants.version, device, now)
                self._book.settle(work, "counted")
        return self._book


def version_metrics(store: ObjectStore, model: str, version: int) -> Metrics | None:
    """Return the sums of a version's evaluation assignments, None before the first. The same in any order."""
    keys = store.list(places.version_evaluations(model, version))
    return metrics_of([EvaluationRequest.model_validate_json(store.get(key).body) for key in keys])
