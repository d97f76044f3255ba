"""Who evaluates the newest version: the book that is kept of one version's evaluation assignments (sans-IO).

They have slots and ids of their own: nothing here opens, fills or closes a round. A device evaluates a version once.
"""

from dataclasses import dataclass
from typing import Literal

from flsys_ray.core.ids import evaluation_id
from flsys_ray.core.plan import FederatedEvaluation
from flsys_ray.core.types import Assignment, Counters

Outcome = Literal["pending", "counted", "given-back"]


@dataclass(frozen=True, slots=True)
class _Entry:
    assignment: Assignment
    outcome: Outcome


class EvaluationBook:
    """The evaluation assignments of one version. `wants` is the plan's; None: there are none."""

    def __init__(self, model: str, wants: FederatedEvaluation | None, version: int) -> None:
        self.model = model
        self.wants = wants
        self.version = version
        self._entries: dict[str, _Entry] = {}

    def counters(self, now: float) -> Counters:
        """Return what became of them. At every instant: assigned = counted + late + given_back + pending."""
        entries = self._entries.values()
        pending = sum(entry.outcome == "pending" and now <= entry.assignment.deadline for entry in entries)
        counted = sum(entry.outcome == "counted" for entry in entries)
        given_back = sum(entry.outcome == "given-back" for entry in entries)
        late = len(entries) - pending - counted - given_back
        return Counters(assigned=len(entries), counted=counted, late=late, given_back=given_back, pending=pending)

    def check_in(self, device_id: str, now: float) -> Assignment | None:
        """Return work for a device that has nothing to train: the same while it is open, anew when it came too late."""
        if self.wants is None or self.version % self.wants.every:
            return None
        key = evaluation_id(self.model, self.version, device_id)
        entry = self._entries.get(key)
        if entry is not None and entry.outcome != "pending":
            return None
        if entry is not None and now <= entry.assignment.deadline:
            return entry.assignment
        counters = self.counters(now)
        if counters.counted + counters.pending >= self.wants.cohort:
            return None
        deadline = now + self.wants.deadline_s
        work = Assignment(key, self.model, self.version, self.version, device_id, deadline)
        self._entries[key] = _Entry(work, "pending")
        return work

    def settle(self, assignment: Assignment, outcome: Literal["counted", "given-back"]) -> None:
        """Set what became of an assignment of this version, given out here or before a restart. Counted stays so."""
        if assignment.version != self.version:
            return
        entry = self._entries.get(assignment.assignment_id)
        if entry is None or entry.outcome != "counted":
            self._entries[assignment.assignment_id] = _Entry(assignment, outcome)
