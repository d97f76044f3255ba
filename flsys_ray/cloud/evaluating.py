"""Evaluation assignments made durable: one object a device and version, summed whenever somebody asks.

The book of who has one is the owner's memory. A new owner lists the version's objects, so nobody evaluates twice; what
was out and not back is asked of others again. A version changes with rollbacks too: its number is never used again.
"""

from flsys_ray.cloud import places
from flsys_ray.cloud.evaluations import metrics_of
from flsys_ray.core.coordinator import Coordinator
from flsys_ray.core.evaluating import EvaluationBook
from flsys_ray.core.types import Assignment, Counted, GivenBack, Rejected
from flsys_ray.errors import AlreadyExists, Missing
from flsys_ray.storage.base import ObjectStore
from flsys_ray.wire.schemas import EvaluationRequest, Metrics

LATE_RETRY_S = 30.0


class Evaluating:
    """The evaluation assignments of a model's newest version."""

    def __init__(self, store: ObjectStore, model: str) -> None:
        self._store = store
        self._model = model
        self._book = EvaluationBook(model, None, -1)

    def check_in(self, coordinator: Coordinator, device_id: str, now: float) -> Assignment | None:
        """Return an evaluation assignment for a device that is not given work to train, None if none is wanted."""
        wants, version = coordinator.plan.evaluation, coordinator.version.number
        if (self._book.wants, self._book.version) != (wants, version):
            self._book = EvaluationBook(self._model, wants, version)
            for key in self._store.list(places.version_evaluations(self._model, version)) if wants else ():
                assignment_id, device = places.owner_of(key)
                self._book.settle(Assignment(assignment_id, self._model, version, version, device, now), "counted")
        return self._book.check_in(device_id, now)

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
        return Counted(duplicate)

    def give_back(self, assignment: Assignment) -> GivenBack:
        """Free a slot."""
        self._book.settle(assignment, "given-back")
        return GivenBack(duplicate=False)


def version_metrics(store: ObjectStore, model: str, version: int) -> Metrics | None:
    """Return the sums of a version's evaluation assignments, None before the first. The same in any order."""
    keys = store.list(places.version_evaluations(model, version))
    return metrics_of([EvaluationRequest.model_validate_json(store.get(key).body) for key in keys])
