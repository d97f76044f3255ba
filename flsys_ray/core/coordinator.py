"""The coordinator: the state machine of one model that trains (sans-IO).

Events and the time go in, outcomes come out. It opens no file, asks no clock and draws no random number: the same
sequence of calls gives the same versions, to the bit, behind HTTP, in a simulation and in a sweep.

Who drives it keeps three rules:

1. `tick(now)` comes before any other call at that time: rounds end in `tick` only.
2. An update is durable before `submit`; a summary is durable before anything else is told to anyone.
3. `now` never runs backwards far: a clock that jumps back only makes rounds longer.
"""

from dataclasses import replace

import numpy as np

from flsys_ray.core.aggregation.partial import Line, Partial, contribution_of
from flsys_ray.core.flaws import flaw_of
from flsys_ray.core.ids import assignment_id, is_turn_of
from flsys_ray.core.layout import Layout
from flsys_ray.core.ledger import Entry, Ledger
from flsys_ray.core.pacing.base import RoundView
from flsys_ray.core.pacing.steering import SOON_S, retry_after_s, round_over_in_s
from flsys_ray.core.plan import TrainingPlan
from flsys_ray.core.rng import unit
from flsys_ray.core.selection.base import Candidacy
from flsys_ray.core.selection.distinct import DistinctCount
from flsys_ray.core.selection.history import NO_HISTORY, History
from flsys_ray.core.snapshot import Snapshot
from flsys_ray.core.step import committed, prepared
from flsys_ray.core.types import (
    Assignment,
    Commit,
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

CANDIDATE_ROUNDS = 8  # who came by in the last 8 to 16 rounds is a candidate of this one


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
        history: what earlier versions' updates say of devices, for a selector that reads it.
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
        history: History = NO_HISTORY,
    ) -> None:
        self.model = model
        self.layout = layout
        self.plan = plan
        self.version = prepared(version, plan)
        self.round = round_
        self.opened_at = opened_at
        self.asked_at: float | None = None  # the first device asked: a selector that turns all away opens up in time
        self.started_at: float | None = None
        self._ledger = Ledger()
        self._staleness = plan.pacing.staleness
        self._scale = plan.scale()
        self._fold = plan.aggregation.init(self._scale, layout.size)
        self._held = HeldUpdates() if updates is None and plan.aggregation.reads_updates else None
        self._updates = updates or self._held or HeldUpdates()
        self._candidates = DistinctCount()
        self._earlier_candidates = DistinctCount()
        self._last_duration_s: float | None = None
        self._history = history

    # Reading -----------------------------------------------------------------------------------------------------

    @property
    def counters(self) -> Counters:
        """The cohort of the open round."""
        return self._ledger.counters

    @property
    def update_bytes(self) -> int:
        """The bytes of the open round's counted updates, as they were uploaded."""
        return sum(entry.num_bytes for entry in self._ledger.entries)

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
        if self.started_at is None or self.finished or self.plan.pacing.asynchronous:
            return None
        return self.plan.pacing.deadline(self._view(self.started_at))

    # Events ------------------------------------------------------------------------------------------------------

    def check_in(self, device_id: str, now: float) -> Assignment | Rejected:
        """A device asks for work. Asking again while its assignment is open gives the same assignment."""
        if self.finished:
            return self._rejected("finished", device_id, now)
        self._candidates = self._candidates.add(unit(self.plan.seed, "candidate", 0, device_id))
        entry = self._work_of(device_id)
        if entry is not None and entry.outcome != "pending":
            return self._rejected("already-contributed", device_id, now)
        view = self._view(now)
        deadline = self.plan.pacing.deadline(view) if entry is None else entry.assignment.deadline
        if now >= min(deadline, self.plan.pacing.deadline(view)) or self.plan.pacing.decide(view) != "wait":
            return Rejected("round-closing", SOON_S)
        if entry is None:
            refusal = self._admission(device_id, view)
            if refusal is not None:
                return self._rejected(refusal, device_id, now)
            entry = Entry(self._assignment(device_id, view), "pending")
            self._record(entry, now)
        return entry.assignment

    def submit(self, update: Update, now: float) -> Counted | Rejected:
        """A device's update, durable already. A repeat is a duplicate, never a second count.

        An assignment that this coordinator does not remember, of a round that may still contribute, is honest work
        given out before a restart: it is taken in as if it had been assigned here.
        """
        work = update.assignment
        if (answer := self.answer(work, now)) is not None:
            return answer
        flaw = flaw_of(update, self.layout.size, self.plan)
        if flaw:
            return self._rejected("unusable", work.device_id, now, flaw)
        self._record(Entry(work, "counted", self._add(update), update.loss, update.num_bytes), now)
        return Counted(duplicate=False)

    def answer(self, work: Assignment, now: float) -> Counted | Rejected | None:
        """Return what an update of this assignment comes to whatever it holds; None if it must be looked at."""
        if (refusal := self.misplaced(work, now)) is not None:
            return refusal
        outcome = self._ledger.outcome(work.assignment_id)
        if outcome == "counted":
            return Counted(duplicate=True)
        if outcome == "given-back":
            return self._rejected("given-back", work.device_id, now)
        full = self.counters.counted >= self.plan.pacing.max_updates
        return self._rejected("round-over", work.device_id, now) if full else None

    def take_in(self, partial: Partial, now: float) -> bool:
        """Count updates that were folded elsewhere, if one after the other each would be counted with its weight.

        They are durable, and checked against this plan. Returns whether they were counted: if not, nothing has changed.
        """
        fits = partial.fits(self._ledger, self.plan.pacing, self._view(now)) and self._held is None
        if not fits or any(self.answer(line.assignment, now) for line in partial.lines):
            return False
        refs = [self._ref(line) for line in partial.lines]
        if [ref.weight for ref in refs] != [*partial.weights]:
            return False
        self._fold = self.plan.aggregation.merge(self._fold, partial.state)
        for line, ref in zip(partial.lines, refs, strict=True):
            self._record(Entry(line.assignment, "counted", ref, line.loss, line.num_bytes), now)
        return True

    def give_back(self, assignment: Assignment, now: float) -> GivenBack | Rejected:
        """A device cannot do its assignment. Its slot is free again."""
        if (refusal := self.misplaced(assignment, now)) is not None:
            return refusal
        outcome = self._ledger.outcome(assignment.assignment_id)
        if outcome == "counted":
            return self._rejected("already-contributed", assignment.device_id, now)
        if outcome != "given-back":
            self._record(Entry(assignment, "given-back"), now)
        return GivenBack(duplicate=outcome == "given-back")

    def misplaced(self, assignment: Assignment, now: float) -> Rejected | None:
        """Return why an update of this assignment can neither count any more nor is known already; None if it may."""
        work = assignment
        if work.model != self.model:
            return self._rejected("wrong-model", work.device_id, now)
        own = assignment_id(self.model, work.round, work.device_id)
        if work.round > self.round or not is_turn_of(work.assignment_id, own):
            return self._rejected("round-over", work.device_id, now)
        if self._ledger.outcome(work.assignment_id) in ("counted", "given-back"):
            return None
        if work.round != self.round and (self._staleness is None or self.finished):
            return self._rejected("round-over", work.device_id, now)
        if work.round != self.round and not self._may_count(work, self.version.number):
            return self._rejected("too-stale", work.device_id, now)
        return self._rejected("deadline-passed", work.device_id, now) if now > work.deadline else None

    def settle(self, entry: Entry) -> None:
        """Tell a coordinator that starts anew how an assignment of an earlier round ended."""
        self._ledger.settle(entry)

    def tick(self, now: float) -> RoundSummary | None:
        """Close the round if it is time, and open the next one at `now`. Returns how it ended, or None."""
        if self.finished:
            return None
        if self.plan.pacing.asynchronous:
            self._ledger.expire(now)
        decision = self.plan.pacing.decide(self._view(now))
        if decision == "wait":
            return None
        commit = self._commit() if decision == "commit" else None
        following = self._following(commit)
        summary = self._summary(commit, following.counters.pending, now)
        self._open_next(commit, following, now)
        return summary

    def abandon(self, now: float) -> RoundSummary:
        """Return how the open round ends when it is given up. Nothing may be asked of this coordinator any more."""
        return self._summary(None, 0, now)

    # Snapshot ----------------------------------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """Return all of the state. No array in it is ever changed."""
        return Snapshot(
            self.version,
            self.round,
            self.opened_at,
            self.asked_at,
            self.started_at,
            self._ledger.entries,
            self._ledger.settled,
            self._fold,
            tuple(self._held.deltas.items()) if self._held is not None else (),
            self._candidates,
            self._earlier_candidates,
            self._last_duration_s,
            self._history,
        )

    @classmethod
    def restore(
        cls, model: str, layout: Layout, plan: TrainingPlan, snapshot: Snapshot, updates: UpdateReader | None = None
    ) -> "Coordinator":
        """Return a coordinator that goes on from a snapshot, as the one that it was taken of would."""
        opened_at, version = snapshot.opened_at, snapshot.version
        restored = cls(model, layout, plan, version, round_=snapshot.round, opened_at=opened_at, updates=updates)
        for entry in snapshot.entries:
            restored._ledger.record(entry)
        for entry in snapshot.settled:
            restored._ledger.settle(entry)
        restored.asked_at = snapshot.asked_at
        restored.started_at = snapshot.started_at
        restored._fold = snapshot.fold
        if restored._held is not None:
            restored._held.deltas.update(snapshot.held)
        restored._candidates = snapshot.candidates
        restored._earlier_candidates = snapshot.earlier_candidates
        restored._last_duration_s = snapshot.last_duration_s
        restored._history = snapshot.history
        return restored

    # Inside ------------------------------------------------------------------------------------------------------

    def _add(self, update: Update) -> UpdateRef:
        """Fold an update in, with the weight that its age leaves it."""
        ref = self._ref(Line.of(update))
        self._fold = self.plan.aggregation.add(self._fold, contribution_of(update, ref.weight))
        if self._held is not None:
            self._held.hold(ref.assignment_id, update.delta)
        return ref

    def _ref(self, line: Line) -> UpdateRef:
        stale = line.assignment.round != self.round
        return line.ref(self.plan, self.version.number - line.assignment.version if stale else 0)

    def _record(self, entry: Entry, now: float) -> None:
        """Set what became of an assignment. The first one of a round starts its clock."""
        if self.started_at is None:
            self.started_at = now
        self._ledger.record(entry)

    def _view(self, now: float) -> RoundView:
        return RoundView(now if self.started_at is None else self.started_at, self.counters, now)

    def _work_of(self, device_id: str) -> Entry | None:
        """Return what a device that asks for work has already: in rounds its one assignment, else what is in hand."""
        if self.plan.pacing.asynchronous:
            return self._ledger.in_hand(device_id)
        return self._ledger.entry(assignment_id(self.model, self.round, device_id))

    def _assignment(self, device_id: str, view: RoundView) -> Assignment:
        turn = 0
        while self._ledger.outcome(key := assignment_id(self.model, self.round, device_id, turn)) is not None:
            turn += 1
        deadline = self.plan.pacing.assignment_deadline(view)
        return Assignment(key, self.model, self.round, self.version.number, device_id, deadline)

    def _may_count(self, work: Assignment, version: int) -> bool:
        """Whether an update may count in a round of a version, or in a later one."""
        return self._staleness is not None and 0 <= version - work.version <= self._staleness.max_staleness

    def _admission(self, device_id: str, view: RoundView) -> Reason | None:
        pacing = self.plan.pacing
        if pacing.free_slots(view) <= 0:
            return "round-full"
        if self.asked_at is None:
            self.asked_at = view.now
        elapsed = pacing.elapsed_fraction(replace(view, started_at=min(view.started_at, self.asked_at)))
        candidacy = Candidacy(
            device_id, self.plan.seed, self.round, pacing.slots, self.candidates, elapsed, self._history
        )
        return None if self.plan.selection.chooses(candidacy) else "not-selected"

    def _rejected(self, reason: Reason, device_id: str, now: float, detail: str = "") -> Rejected:
        lot = unit(self.plan.seed, "retry", self.round, device_id)
        wait_s = round_over_in_s(self.plan.pacing, self._view(now), self._last_duration_s)
        return Rejected(reason, retry_after_s(wait_s, lot), detail)

    def _commit(self) -> Commit:
        version, delta = committed(self.version, self._fold, self._updates, self.layout, self.plan)
        refs = tuple(entry.ref for entry in self._ledger.counted() if entry.ref is not None)
        return Commit(version, refs, float(np.sqrt(np.sum(delta * delta))))

    def _following(self, commit: Commit | None) -> Ledger:
        """Return the ledger of the next round. What was counted without a commit goes on to count, if age permits."""
        version = self.version.number if commit is None else commit.version.number

        def keeps(entry: Entry) -> bool:
            if entry.outcome == "counted":
                return commit is None and self._staleness is not None
            going_on = entry.outcome == "pending" and self.plan.pacing.asynchronous
            return going_on and self._may_count(entry.assignment, version)

        return self._ledger.following(keeps, lambda assignment: self._may_count(assignment, version))

    def _summary(self, commit: Commit | None, going_on: int, now: float) -> RoundSummary:
        counters = self.counters
        counted = [(entry.loss, entry.ref.num_examples) for entry in self._ledger.counted() if entry.ref is not None]
        examples = sum(count for _, count in counted)
        return RoundSummary(
            round=self.round,
            version=self.version.number,
            opened_at=self.opened_at,
            closed_at=now,
            counters=replace(counters, late=counters.late + counters.pending - going_on, pending=going_on),
            num_examples=examples,
            mean_loss=sum(loss * count for loss, count in counted) / examples if counted else None,
            update_bytes=self.update_bytes,
            commit=commit,
        )

    def _open_next(self, commit: Commit | None, following: Ledger, now: float) -> None:
        if commit is not None:
            self.version = commit.version
            self._last_duration_s = now - self._view(now).started_at
            if self.plan.selection.reads_history:
                self._history = self._history.after(self.round, commit.updates)
        self.round += 1
        if self.round % CANDIDATE_ROUNDS == 0:
            self._earlier_candidates, self._candidates = self._candidates, DistinctCount()
        self.opened_at = now
        self.asked_at = None
        self.started_at = None
        self._ledger = following
        if following.counters.counted:
            return  # the fold goes on too
        self._fold = self.plan.aggregation.init(self._scale, self.layout.size)
        if self._held is not None:
            self._held.deltas.clear()
