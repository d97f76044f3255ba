"""The coordinator: the state machine of one model that trains (sans-IO).

Events and the time go in, outcomes come out. It opens no file, asks no clock and draws no random number: the same
sequence of calls gives the same versions, to the bit, behind HTTP, in a simulation and in a sweep.

Who drives it keeps three rules:

1. `tick(now)` comes before any other call at that time: rounds end in `tick` only.
2. An update is durable before `submit`; a summary is durable before anything else is told to anyone.
3. `now` never runs backwards far: a clock that jumps back only makes rounds longer.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import numpy as np

from flsys_ray.core.distinct import DistinctCount
from flsys_ray.core.layout import Layout, Vector
from flsys_ray.core.pacing.base import RoundView
from flsys_ray.core.plan import TrainingPlan
from flsys_ray.core.rng import unit
from flsys_ray.core.selection.base import Candidacy
from flsys_ray.core.types import (
    Assignment,
    Commit,
    Contribution,
    Counted,
    Counters,
    GivenBack,
    Reason,
    Rejected,
    RoundSummary,
    Update,
    UpdateRef,
    Version,
)
from flsys_ray.core.updates import HeldUpdates, UpdateReader

Outcome = Literal["pending", "counted", "given-back"]
SOON_S = 1.0
MAX_ABS_LOSS = float(np.finfo(np.float32).max)  # losses weighted and summed in float64 then stay finite
CANDIDATE_ROUNDS = 8  # who came by in the last 8 to 16 rounds is a candidate of this one
_COUNTER: dict[Outcome, str] = {"pending": "pending", "counted": "counted", "given-back": "given_back"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One assignment of the open round: whose, what became of it, and the update's line once it is counted."""

    device_id: str
    outcome: Outcome
    ref: UpdateRef | None = None
    loss: float = 0.0
    num_bytes: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """All of a coordinator's state at one instant: `Coordinator.restore` makes an equal one of it."""

    version: Version
    round: int
    opened_at: float
    started_at: float | None
    entries: tuple[tuple[str, Entry], ...]
    fold: Any
    held: tuple[tuple[str, Vector], ...]
    candidates: DistinctCount
    earlier_candidates: DistinctCount
    last_duration_s: float | None


class Coordinator:
    """One model's training, from one version to the next.

    Args:
        model: the model's name, for assignments.
        layout: the leaves of its parameter vector.
        plan: how it trains.
        version: the version that the open round starts from.
        round_: the number of the open round.
        opened_at: when it opened, UTC seconds. Its clock starts with its first assignment: a model that no device
            asks for waits in one open round.
        updates: reads counted updates again, for a rule that needs them. Without one their deltas are held in memory.
    """

    def __init__(
        self,
        model: str,
        layout: Layout,
        plan: TrainingPlan,
        version: Version,
        *,
        round_: int,
        opened_at: float,
        updates: UpdateReader | None = None,
    ) -> None:
        self.model = model
        self.layout = layout
        self.plan = plan
        self.version = version
        self.round = round_
        self.opened_at = opened_at
        self.started_at: float | None = None
        self._entries: dict[str, Entry] = {}
        self._counters = Counters()
        self._scale = plan.scale()
        self._fold = plan.aggregation.init(self._scale, layout.size)
        self._held = HeldUpdates() if updates is None and plan.aggregation.reads_updates else None
        self._updates = updates or self._held or HeldUpdates()
        self._candidates = DistinctCount()
        self._earlier_candidates = DistinctCount()
        self._last_duration_s: float | None = None

    # Reading -----------------------------------------------------------------------------------------------------

    @property
    def counters(self) -> Counters:
        """The cohort of the open round."""
        return self._counters

    @property
    def update_bytes(self) -> int:
        """The bytes of the open round's counted updates, as they were uploaded."""
        return sum(entry.num_bytes for entry in self._entries.values())

    @property
    def candidates(self) -> float:
        """How many different devices asked for work in the last rounds: an estimate, from nothing after a restart."""
        return self._candidates.merge(self._earlier_candidates).estimate()

    @property
    def finished(self) -> bool:
        """Whether the plan's stopping condition is met."""
        limit = self.plan.stopping.versions
        return limit is not None and self.version.number >= limit

    def next_deadline(self) -> float | None:
        """Return the instant at which `tick` will end the open round at the latest; None before its clock starts."""
        if self.started_at is None or self.finished:
            return None
        return self.plan.pacing.deadline(self._view(self.started_at))

    # Events ------------------------------------------------------------------------------------------------------

    def check_in(self, device_id: str, now: float) -> Assignment | Rejected:
        """A device asks for work. Asking again while its assignment is open gives the same assignment."""
        if self.finished:
            return self._rejected("finished", device_id, now)
        self._candidates = self._candidates.add(unit(self.plan.seed, "candidate", 0, device_id))
        assignment = self._assignment(device_id, now)
        entry = self._entries.get(assignment.assignment_id)
        if entry is not None and entry.outcome != "pending":
            return self._rejected("already-contributed", device_id, now)
        view = self._view(now)
        if now >= assignment.deadline or self.plan.pacing.decide(view) != "wait":
            return Rejected("round-closing", SOON_S)
        if entry is None:
            refusal = self._admission(device_id, view)
            if refusal is not None:
                return self._rejected(refusal, device_id, now)
            self._record(assignment.assignment_id, Entry(device_id, "pending"), now)
        return assignment

    def submit(self, update: Update, now: float) -> Counted | Rejected:
        """A device's update, durable already. A repeat is a duplicate, never a second count.

        An assignment that this coordinator does not remember, of the open round, is honest work given out before a
        restart: it is taken in as if it had been assigned here.
        """
        refusal = self._misplaced(update.assignment, now)
        if refusal is not None:
            return refusal
        key = update.assignment.assignment_id
        entry = self._entries.get(key, Entry(update.assignment.device_id, "pending"))
        if entry.outcome == "counted":
            return Counted(duplicate=True)
        if entry.outcome == "given-back":
            return self._rejected("given-back", entry.device_id, now)
        if self._counters.counted >= self.plan.pacing.max_updates:
            return self._rejected("round-over", entry.device_id, now)
        flaw = self._flaw(update)
        if flaw:
            return Rejected("unusable", self._retry_after_s(entry.device_id, now), flaw)
        ref = self._add(key, update)
        self._record(key, Entry(entry.device_id, "counted", ref, update.loss, update.num_bytes), now)
        return Counted(duplicate=False)

    def give_back(self, assignment: Assignment, now: float) -> GivenBack | Rejected:
        """A device cannot do its assignment. Its slot is free again; the device waits for the next round."""
        refusal = self._misplaced(assignment, now)
        if refusal is not None:
            return refusal
        key = assignment.assignment_id
        entry = self._entries.get(key, Entry(assignment.device_id, "pending"))
        if entry.outcome == "counted":
            return self._rejected("already-contributed", entry.device_id, now)
        self._record(key, replace(entry, outcome="given-back"), now)
        return GivenBack(duplicate=entry.outcome == "given-back")

    def tick(self, now: float) -> RoundSummary | None:
        """Close the round if it is time, and open the next one at `now`. Returns how it ended, or None."""
        if self.finished:
            return None
        decision = self.plan.pacing.decide(self._view(now))
        if decision == "wait":
            return None
        summary = self._summary(self._commit() if decision == "commit" else None, now)
        self._open_next(summary, now)
        return summary

    # Snapshot ----------------------------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """Return all of the state. No array in it is ever changed."""
        return Snapshot(
            self.version,
            self.round,
            self.opened_at,
            self.started_at,
            tuple(self._entries.items()),
            self._fold,
            tuple(self._held.deltas.items()) if self._held is not None else (),
            self._candidates,
            self._earlier_candidates,
            self._last_duration_s,
        )

    @classmethod
    def restore(
        cls, model: str, layout: Layout, plan: TrainingPlan, snapshot: Snapshot, updates: UpdateReader | None = None
    ) -> "Coordinator":
        """Return a coordinator that goes on from a snapshot, as the one that it was taken of would."""
        opened_at, version = snapshot.opened_at, snapshot.version
        restored = cls(model, layout, plan, version, round_=snapshot.round, opened_at=opened_at, updates=updates)
        for key, entry in snapshot.entries:
            restored._record(key, entry, snapshot.opened_at)
        restored.started_at = snapshot.started_at
        restored._fold = snapshot.fold
        if restored._held is not None:
            restored._held.deltas.update(snapshot.held)
        restored._candidates = snapshot.candidates
        restored._earlier_candidates = snapshot.earlier_candidates
        restored._last_duration_s = snapshot.last_duration_s
        return restored

    # Inside ------------------------------------------------------------------------------------------------------

    def _add(self, key: str, update: Update) -> UpdateRef:
        """Fold an update in."""
        weight = min(update.num_examples, self.plan.limits.max_examples)
        contribution = Contribution(key, update.delta, weight, update.loss, update.num_steps)
        self._fold = self.plan.aggregation.add(self._fold, contribution)
        if self._held is not None:
            self._held.hold(key, update.delta)
        return UpdateRef(key, update.assignment.device_id, weight, update.sha256)

    def _record(self, key: str, entry: Entry, now: float) -> None:
        """Set what became of an assignment, and move it between the counters. The first one starts the clock."""
        if self.started_at is None:
            self.started_at = now
        before = self._entries.get(key)
        self._entries[key] = entry
        amounts = {field.name: getattr(self._counters, field.name) for field in fields(Counters)}
        amounts["assigned"] += before is None
        if before is not None:
            amounts[_COUNTER[before.outcome]] -= 1
        amounts[_COUNTER[entry.outcome]] += 1
        self._counters = Counters(**amounts)

    def _view(self, now: float) -> RoundView:
        return RoundView(now if self.started_at is None else self.started_at, self.counters, now)

    def _assignment(self, device_id: str, now: float) -> Assignment:
        return Assignment(
            assignment_id=assignment_id(self.model, self.round, device_id),
            model=self.model,
            round=self.round,
            version=self.version.number,
            device_id=device_id,
            deadline=self.plan.pacing.deadline(self._view(now)),
        )

    def _admission(self, device_id: str, view: RoundView) -> Reason | None:
        pacing = self.plan.pacing
        if pacing.free_slots(view) <= 0:
            return "round-full"
        candidacy = Candidacy(
            device_id=device_id,
            seed=self.plan.seed,
            round=self.round,
            slots=pacing.slots,
            candidates=self.candidates,
            elapsed_fraction=pacing.elapsed_fraction(view),
        )
        return None if self.plan.selection.chooses(candidacy) else "not-selected"

    def _misplaced(self, assignment: Assignment, now: float) -> Rejected | None:
        if assignment.model != self.model:
            return self._rejected("wrong-model", assignment.device_id, now)
        if assignment.assignment_id != assignment_id(self.model, self.round, assignment.device_id):
            return self._rejected("round-over", assignment.device_id, now)
        entry = self._entries.get(assignment.assignment_id)
        if (entry is None or entry.outcome == "pending") and now > assignment.deadline:
            return self._rejected("deadline-passed", assignment.device_id, now)
        return None

    def _flaw(self, update: Update) -> str:
        delta = update.delta
        if delta.shape != (self.layout.size,) or delta.dtype != np.float32:
            return f"delta has shape {delta.shape} and dtype {delta.dtype}, expected ({self.layout.size},) float32"
        limit = self.plan.limits.max_abs_delta
        if not (float(delta.min(initial=0.0)) >= -limit and float(delta.max(initial=0.0)) <= limit):
            return f"delta holds a value that is not finite or above {limit:g}"
        if update.num_examples < 1:
            return f"num_examples is {update.num_examples}, expected at least 1"
        if update.num_steps < 1:
            return f"num_steps is {update.num_steps}, expected at least 1"
        return "" if abs(update.loss) <= MAX_ABS_LOSS else f"loss is {update.loss}, expected a finite float32"

    def _rejected(self, reason: Reason, device_id: str, now: float) -> Rejected:
        return Rejected(reason, self._retry_after_s(device_id, now))

    def _retry_after_s(self, device_id: str, now: float) -> float:
        """Pace steering: half of the time until the open round will probably be over, spread by a device's own jitter.

        Half, since rounds that wait for devices which were told to wait would get longer from round to round.
        """
        view = self._view(now)
        left = self.plan.pacing.deadline(view) - now
        if self._last_duration_s is not None:
            left = min(left, view.started_at + self._last_duration_s - now)
        jitter = unit(self.plan.seed, "retry", self.round, device_id)
        return max(SOON_S, left / 2) * (0.75 + 0.5 * jitter)

    def _counted(self) -> Iterable[Entry]:
        return (entry for _, entry in sorted(self._entries.items()) if entry.outcome == "counted")

    def _commit(self) -> Commit:
        delta = self.plan.aggregation.finish(self._fold, self._updates)
        trainable = self.layout.trainable_mask()
        state, movement = self.plan.server_optimizer.step(self.version.optimizer_state, np.where(trainable, delta, 0.0))
        base = self.version.parameters.astype(np.float64)
        parameters = (base + np.where(trainable, movement, delta)).astype(np.float32)
        version = Version(self.version.number + 1, parameters, state)
        refs = tuple(entry.ref for entry in self._counted() if entry.ref is not None)
        return Commit(version, refs, float(np.sqrt(np.sum(delta * delta))))

    def _summary(self, commit: Commit | None, now: float) -> RoundSummary:
        counters = self.counters
        examples, losses = [], []
        for entry in self._counted():
            if entry.ref is not None:
                examples.append(entry.ref.num_examples)
                losses.append(entry.loss * entry.ref.num_examples)
        return RoundSummary(
            round=self.round,
            version=self.version.number,
            opened_at=self.opened_at,
            closed_at=now,
            counters=replace(counters, late=counters.pending, pending=0),
            num_examples=sum(examples),
            mean_loss=sum(losses) / sum(examples) if examples else None,
            update_bytes=self.update_bytes,
            commit=commit,
        )

    def _open_next(self, summary: RoundSummary, now: float) -> None:
        if summary.commit is not None:
            self.version = summary.commit.version
            self._last_duration_s = now - self._view(now).started_at
        self.round += 1
        if self.round % CANDIDATE_ROUNDS == 0:
            self._earlier_candidates, self._candidates = self._candidates, DistinctCount()
        self.opened_at = now
        self.started_at = None
        self._entries = {}
        self._counters = Counters()
        self._fold = self.plan.aggregation.init(self._scale, self.layout.size)
        if self._held is not None:
            self._held.deltas.clear()


def assignment_id(model: str, round_: int, device_id: str) -> str:
    """Return the id of a device's one assignment in a round: the same before and after a restart."""
    name = hashlib.blake2b(f"{model}\x1f{device_id}".encode(), digest_size=10).hexdigest()
    return f"{round_:08d}-{name}"


def round_of(assignment_id: str) -> int:
    """Return the round that an assignment's id names."""
    return int(assignment_id.partition("-")[0])
