"""Federated evaluations of a round's base version: one a device, durable, summed when asked."""

import math
from collections import Counter
from collections.abc import Sequence

from flsys_ray.cloud import places
from flsys_ray.core.types import Assignment
from flsys_ray.errors import AlreadyExists, InvalidInput
from flsys_ray.storage.base import ObjectStore
from flsys_ray.wire.developer_schemas import Metrics
from flsys_ray.wire.schemas import ClassCounts, EvaluationRequest

MAX_COUNT = 2**31 - 1
MAX_LOSS_SUM = 1e30


def check_evaluation(metrics: EvaluationRequest, classes: Sequence[str]) -> None:
    """Raises `InvalidInput` for what no device can have measured: its sum with others might not be a number."""
    if metrics.count > MAX_COUNT:
        raise InvalidInput(f"evaluation: 'count' is larger than {MAX_COUNT}")
    if metrics.correct > metrics.count:
        raise InvalidInput(f"evaluation: 'correct' is larger than 'count' ({metrics.count})")
    if metrics.loss_sum > MAX_LOSS_SUM:
        raise InvalidInput(f"evaluation: 'loss_sum' is larger than {MAX_LOSS_SUM:g}")
    if metrics.per_class is not None:
        _check_classes(metrics, metrics.per_class, classes)


def _check_classes(metrics: EvaluationRequest, found: Sequence[ClassCounts], classes: Sequence[str]) -> None:
    labels = [each.label for each in found]
    if len(set(labels)) != len(labels) or max(labels, default=0) >= len(classes):
        raise InvalidInput(f"evaluation: 'per_class' must name each of the {len(classes)} classes at most once")
    if any(each.correct > each.count for each in found):
        raise InvalidInput("evaluation: 'per_class': 'correct' is larger than 'count'")
    if (sum(e.count for e in found), sum(e.correct for e in found)) != (metrics.count, metrics.correct):
        raise InvalidInput("evaluation: the sums of 'per_class' are not 'count' and 'correct'")


def metrics_of(reports: Sequence[EvaluationRequest]) -> Metrics | None:
    """Return the sums over devices, or None if there are none. The same in any order."""
    if not reports:
        return None
    examples = sum(report.count for report in reports)
    return Metrics(
        loss=math.fsum(report.loss_sum for report in reports) / examples,
        accuracy=sum(report.correct for report in reports) / examples,
        examples=examples,
        devices=len(reports),
        per_class=_class_sums(reports),
    )


def combined(*found: Metrics | None) -> Metrics | None:
    """Return the sums of sums, or None if there are none. A device that is in two of them counts twice."""
    parts = [part for part in found if part is not None]
    if not parts:
        return None
    examples = sum(part.examples for part in parts)
    return Metrics(
        loss=math.fsum(part.loss * part.examples for part in parts) / examples,
        accuracy=math.fsum(part.accuracy * part.examples for part in parts) / examples,
        examples=examples,
        devices=sum(part.devices for part in parts),
        per_class=_class_sums(parts),
    )


def _class_sums(reports: Sequence[EvaluationRequest | Metrics]) -> list[ClassCounts] | None:
    counts, correct = Counter[int](), Counter[int]()
    for report in reports:
        for each in report.per_class or ():
            counts[each.label] += each.count
            correct[each.label] += each.correct
    return [ClassCounts(label=n, count=counts[n], correct=correct[n]) for n in sorted(counts)] or None


class Evaluations:
    """The evaluations of one open round."""

    def __init__(self, store: ObjectStore, model: str) -> None:
        self._store = store
        self._model = model
        self._by_assignment: dict[str, EvaluationRequest] = {}

    def add(self, assignment: Assignment, metrics: EvaluationRequest) -> bool:
        """Store one and take it in. Returns whether the assignment's was there before; the first one stays."""
        key = places.evaluation(self._model, assignment.round, assignment.assignment_id, assignment.device_id)
        try:
            self._store.put_new(key, metrics.model_dump_json().encode())
        except AlreadyExists:
            self._take_in(key)  # another owner may have stored it, and died before it was asked for the sums
            return True
        self._by_assignment[assignment.assignment_id] = metrics
        return False

    def recover(self, round_: int) -> None:
        """Take in what the store has of a round."""
        for key in self._store.list(places.evaluations(self._model, round_)):
            self._take_in(key)

    def metrics(self) -> Metrics | None:
        """Return the sums over all devices, or None before the first. The same in any order of arrival."""
        return metrics_of(list(self._by_assignment.values()))

    def _take_in(self, key: str) -> None:
        assignment_id = places.owner_of(key)[0]
        if assignment_id not in self._by_assignment:
            metrics = EvaluationRequest.model_validate_json(self._store.get(key).body)
            self._by_assignment[assignment_id] = metrics
