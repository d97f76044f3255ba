"""One model made durable: its coordinator, and in the store everything that must last.

The order of writes is the promise:

- An update is an object before it is counted, and counted before "counted" is said. After a crash the updates of every
  round that may still contribute are listed and folded again (`recovery`); exact sums make that the same version, to
  the bit.
- A round ends by one entry of the log. Before it nobody has seen the new version; after it nothing can take it back.
- Before "counted" is said, the fence is checked: nobody else owns the model. A later owner lists after it appended,
  so it sees every update that an earlier one acknowledged.

When a write fails half-way this object is no longer to be trusted: it raises `OwnershipLost` from then on, and who
holds it activates a new one from the store.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from flsys_ray.cloud import places
from flsys_ray.cloud.batches import Batch, BatchAnswer, OpenRound, submit_stored
from flsys_ray.cloud.changes import augmented, check_plan, check_start, programmed
from flsys_ray.cloud.evaluating import Evaluating
from flsys_ray.cloud.evaluations import Evaluations
from flsys_ray.cloud.history import base_of, finish_commit, restored, was_counted
from flsys_ray.cloud.journal import Head, Journal, Kind, VersionRef
from flsys_ray.cloud.meter import NO_METER, VERSION, Meter, record_round
from flsys_ray.cloud.offers import CheckInAnswer, Offer, offer_of
from flsys_ray.cloud.public_forms import save
from flsys_ray.cloud.recovery import reopened
from flsys_ray.cloud.reports import closed_rounds, model_info, open_demand, open_round, round_info
from flsys_ray.cloud.versions import load_plan, load_program, save_plan
from flsys_ray.core.aggregation.partial import Line
from flsys_ray.core.coordinator import Coordinator
from flsys_ray.core.ids import is_evaluation, model_name
from flsys_ray.core.plan import TrainingPlan
from flsys_ray.core.step import prepared
from flsys_ray.core.types import Assignment, Counted, GivenBack, Rejected, RoundSummary, Update, Version
from flsys_ray.errors import AlreadyExists, Conflict, NotFound, OwnershipLost
from flsys_ray.programs.manifest import Manifest, read_manifest
from flsys_ray.storage.base import ObjectStore, put_same
from flsys_ray.wire.developer_schemas import ModelInfo, RoundInfo, UpdateLine
from flsys_ray.wire.schemas import EvaluationRequest

IDLE_RETRY_S = 30.0
Count = Callable[[Coordinator, float], Counted | Rejected]


class DurableModel:
    """The one owner of a model: making one takes the model over from whoever had it.

    Not thread-safe: who holds it lets one call in at a time. `clock` gives UTC seconds. Raises `NotFound` if the model
    was never created.
    """

    def __init__(self, store: ObjectStore, model: str, clock: Callable[[], float], meter: Meter = NO_METER) -> None:
        self.store = store
        self.model, self._name = model, model_name(model)
        self._clock = clock
        self._meter = meter
        self._journal = Journal(store, model)
        self._broken = False
        self._coordinator: Coordinator | None = None
        self._manifest: Manifest | None = None
        self._evaluations, self._sent_bytes = Evaluations(store, model), 0
        self._evaluating = Evaluating(store, model)
        self._head = self._journal.take_over(clock)
        self._plan = load_plan(store, model, self._head.plan_sha256)
        if self._head.version is not None:
            finish_commit(self._journal, self._head.version)
            self._resume(self._head.version)

    @property
    def broken(self) -> bool:
        """Whether a write failed: only a new activation knows what is true."""
        return self._broken

    # Devices -----------------------------------------------------------------------------------------------------

    def check_in(self, device_id: str) -> CheckInAnswer:
        """A device asks for work."""
        return self.check_in_many([device_id])[0]

    def check_in_many(self, device_ids: Sequence[str]) -> list[CheckInAnswer]:
        """Devices ask for work, one after the other."""
        self.tick()
        outcomes, coordinator = [self._check_in(device_id) for device_id in device_ids], self._open()
        demand = open_demand(coordinator, self._clock()) if coordinator is not None else None
        return [CheckInAnswer(outcome, self._plan.eligibility, demand) for outcome in outcomes]

    def submit(self, update: Update) -> Counted | Rejected:
        """Count an update that is an object of the store already."""
        return self._fenced(lambda: [self._submit(update.assignment, lambda c, now: c.submit(update, now))])[0]

    def submit_many(self, batch: Batch) -> BatchAnswer:
        """Count updates that are objects of the store already, as if they came one after the other."""
        self._sent_bytes += batch.sent_bytes
        outcomes = self._fenced(lambda: self._take_in(batch) + [self._submit_line(line) for line in batch.others])
        coordinator = self._open()
        now_open = OpenRound(coordinator.round, coordinator.version.number) if coordinator is not None else None
        return BatchAnswer(tuple(outcomes), now_open)

    def give_back(self, assignment: Assignment) -> GivenBack | Rejected:
        """Take an assignment back. Its outcome is made once in the store: an update that came first stays."""
        self.tick()
        if is_evaluation(assignment.assignment_id):
            return self._evaluating.give_back(assignment)
        coordinator = self._open_to(assignment)
        if coordinator is None:
            return Rejected("round-over", IDLE_RETRY_S)
        refusal = coordinator.misplaced(assignment, self._clock())
        if refusal is not None:
            return refusal
        key = places.update(self.model, assignment.round, assignment.assignment_id, assignment.device_id)
        with self._trusted():
            try:
                put_same(self.store, key, b"")
            except AlreadyExists:
                return Rejected("already-contributed", IDLE_RETRY_S)
            outcome = coordinator.give_back(assignment, self._clock())
            self._journal.check_fence()
        return outcome

    def evaluate(self, assignment: Assignment, metrics: EvaluationRequest) -> Counted | Rejected:
        """Take a federated evaluation of the assignment's version. A repeat is a duplicate."""
        self.tick()
        if is_evaluation(assignment.assignment_id):
            return self._evaluating.report(assignment, metrics, self._clock())
        coordinator = self._open()
        if coordinator is None or assignment.round != coordinator.round:
            return Rejected("round-over", IDLE_RETRY_S)
        with self._trusted():
            duplicate = self._evaluations.add(assignment, metrics)
            self._journal.check_fence()
        return Counted(duplicate)

    def tick(self) -> list[RoundInfo]:
        """End the rounds whose time has come: after this, everything that is said is about the open round."""
        closed = []
        with self._trusted():
            while (coordinator := self._open()) is not None:
                now = self._clock()
                summary = coordinator.tick(now)
                if summary is None:
                    break
                closed.append(self._close(summary, coordinator, now))
        return closed

    def next_deadline(self) -> float | None:
        """Return the instant at which `tick` has something to do at the latest, or None."""
        coordinator = self._open()
        return coordinator.next_deadline() if coordinator is not None else None

    @property
    def at_rest(self) -> bool:
        """Whether nothing is lost when the owner goes: no clock runs, and the open round has no cohort."""
        coordinator = self._open()
        if coordinator is None:
            return True
        counters = coordinator.counters
        return self.next_deadline() is None and counters.pending == 0 and counters.counted == 0

    # The developer -----------------------------------------------------------------------------------------------

    def put_plan(self, plan: TrainingPlan) -> None:
        """Train by this plan from the next round on."""
        self._look_up()
        check_plan(self.store, self.model, self._head, plan)
        with self._trusted():
            digest = save_plan(self.store, self.model, plan)
            if digest == self._head.plan_sha256:
                return
            open_round = self._head.round_plan_sha256 if self._coordinator is not None else digest
            self._append("planned", plan_sha256=digest, round_plan_sha256=open_round)
        self._plan = plan

    def put_program(self, program_sha256: str) -> None:
        """Train with this program, which is an object of the store already. Only before the start."""
        self._look_up()
        self._change("programmed", programmed(self.store, self.model, self._head, self._plan, program_sha256))

    def put_shared(self, shared_sha256: str, program_sha256: str) -> None:
        """Mix this set in from the next round on: it is in the store already, and fits this program."""
        self._look_up()
        self._change("augmented", augmented(self.store, self.model, self._head, shared_sha256, program_sha256))

    def start(self, initial: Callable[[bytes, int], Version]) -> None:
        """Open version 0, or go on after a pause. `initial(program, seed)` gives version 0's parameters."""
        self._look_up()
        if self._head.state == "training":
            return
        if self._head.state == "finished":
            raise Conflict(f"model {self._name!r} is finished")
        if self._head.version is not None:
            self._set_state("resumed", "training")
            return
        check_start(self.model, self._head, self._plan)
        version = initial(load_program(self.store, self.model, str(self._head.program_sha256)), self._plan.seed)
        state = self._plan.server_optimizer.init(version.parameters.size)
        started = prepared(Version(0, version.parameters, state), self._plan)
        with self._trusted():
            ref = save(self._journal, started, (self._plan, self._plan), self._head)
            self._append("started", state="training", version=ref, opened_at=self._clock())
            finish_commit(self._journal, ref)
            self._resume(ref)

    def pause(self) -> None:
        """Give out no more work. Updates of the open round still count."""
        self._look_up()
        if self._head.state not in ("training", "paused"):
            raise Conflict(f"model {self._name!r} is {self._head.state}: only a training model can be paused")
        self._set_state("paused", "paused")

    def stop(self) -> None:
        """Finish: the newest version stays, no round opens any more."""
        self._look_up()
        self._set_state("stopped", "finished")

    def archive(self) -> None:
        """Put a draft or a finished model away: nothing changes it any more. Its versions stay."""
        if self._head.state == "archived":
            return
        self._look_up()
        if self._head.state not in ("draft", "finished"):
            raise Conflict(f"model {self._name!r} is {self._head.state}: stop it first")
        self._set_state("archived", "archived")

    def promote(self, number: int | None) -> None:
        """Use this version for inference; None: always the newest. Raises `NotFound`."""
        self._look_up()
        newest = self._head.version
        if newest is None or (number is not None and number > newest.number):
            raise NotFound(f"model {self._name!r} has no version {'yet' if number is None else number}")
        if self._head.promoted != number:
            with self._trusted():
                self._append("promoted", promoted=number)

    def rollback(self, number: int) -> None:
        """Give the open round up; the next version is an older one again. Raises `NotFound`, `Conflict`."""
        self._look_up()
        coordinator, newest = self._open(), self._head.version
        if coordinator is None or newest is None:
            raise Conflict(f"model {self._name!r} is {self._head.state}: only a model that trains can go back")
        if number in (newest.number, newest.restored_from):
            return
        ref = restored(self._journal, newest, number)
        if self._plan_ends_at(ref):
            raise Conflict(f"going back makes version {ref.number}, where the plan stops: give it a later end first")
        with self._trusted():
            now = self._clock()
            info = round_info(coordinator.abandon(now), self._evaluations, self._sent_bytes)
            self._next_round("restored", (), info, version=ref, restored_round=info.round + 1)
            self._resume(ref)
        record_round(self._meter, self.model, info, 0.0)

    def info(self) -> ModelInfo:
        """Return the model as it is now."""
        self.tick()
        head, coordinator = self._head, self._open()
        parameters = self._manifest.parameters if self._manifest else None
        now_open = open_round(coordinator) if coordinator is not None else None
        seen = self._evaluating.seen(head, self._plan, self._clock())
        return model_info(self.model, head, self._plan, parameters, now_open, seen=seen)

    def rounds(self, since: int = 0) -> list[RoundInfo]:
        """Return the rounds that are over, from number `since` on, oldest first."""
        return closed_rounds(self._journal, since)

    # Inside ------------------------------------------------------------------------------------------------------

    def _fenced(self, count: Callable[[], list[Counted | Rejected]]) -> list[Counted | Rejected]:
        """Return what `count` says, once it is known that nobody else owns the model."""
        self.tick()
        with self._trusted():
            outcomes = count()
            self._journal.check_fence()
        self.tick()
        return outcomes

    def _take_in(self, batch: Batch) -> list[Counted | Rejected]:
        """Count what was folded elsewhere; if it is not all to be counted just so, each update by itself."""
        lines, coordinator = batch.partial.lines, self._open()
        of_this_plan = batch.plan_sha256 == self._head.round_plan_sha256
        current = all(line.assignment.round >= self._head.restored_round for line in lines)
        if coordinator is not None and of_this_plan and current and coordinator.take_in(batch.partial, self._clock()):
            return [Counted(duplicate=False)] * len(lines)
        return [self._submit_line(line) for line in lines]

    def _submit_line(self, line: Line) -> Counted | Rejected:
        return self._submit(line.assignment, lambda c, now: submit_stored(c, self.store, line, now))

    def _submit(self, work: Assignment, count: Count) -> Counted | Rejected:
        self.tick()
        coordinator = self._open_to(work)
        outcome = count(coordinator, self._clock()) if coordinator is not None else Rejected("round-over", IDLE_RETRY_S)
        if isinstance(outcome, Rejected) and was_counted(self._journal, work):
            return Counted(duplicate=True)
        return outcome

    def _open(self) -> Coordinator | None:
        """Return the coordinator if a round is open: a draft has none yet, a finished model none any more."""
        return self._coordinator if self._head.state in ("training", "paused") else None

    def _open_to(self, assignment: Assignment) -> Coordinator | None:
        """Return the coordinator if a round is open, and the assignment is not of one before a rollback."""
        return self._open() if assignment.round >= self._head.restored_round else None

    def _look_up(self) -> None:
        """End what is due and check the fence: what a developer is told follows from a head that is still the last."""
        self.tick()
        with self._trusted():
            self._journal.check_fence()
        if self._head.state == "archived":
            raise Conflict(f"model {self._name!r} is archived: nothing changes it any more")

    @contextmanager
    def _trusted(self) -> Iterator[None]:
        """Run writes. If one fails, what is in memory may differ from the store: nothing is said from it any more."""
        if self._broken:
            raise OwnershipLost(f"model {self._name!r} is being reloaded: try again", 1.0)
        try:
            yield
        except BaseException:  # an interrupt between two writes leaves as much behind as an error
            self._broken = True
            raise

    def _append(self, kind: Kind, updates: tuple[UpdateLine, ...] = (), **changes: object) -> None:
        head = Head.model_validate(self._head.model_dump() | changes)
        self._journal.append(kind, head, self._clock(), updates)
        self._head = head

    def _change(self, kind: Kind, changes: Mapping[str, Any]) -> None:
        if changes:
            with self._trusted():
                self._append(kind, **changes)

    def _set_state(self, kind: Kind, state: str) -> None:
        if self._head.state != state:
            with self._trusted():
                self._append(kind, state=state)

    def _close(self, summary: RoundSummary, coordinator: Coordinator, now: float) -> RoundInfo:
        """Make the end of a round last: first the numbers, then the entry, then the manifest that readers look for."""
        ref = self._head.version
        lines: tuple[UpdateLine, ...] = ()
        if summary.commit is not None:
            ref = save(self._journal, summary.commit.version, (coordinator.plan, self._plan), self._head)
            lines = tuple(UpdateLine(**asdict(update)) for update in summary.commit.updates)
        info = round_info(summary, self._evaluations, self._sent_bytes)
        state = "finished" if self._plan_ends_at(ref) else self._head.state
        self._next_round("closed", lines, info, state=state, version=ref)
        if coordinator.plan != self._plan and ref is not None:
            self._resume(ref)
        record_round(self._meter, self.model, info, self._clock() - now)
        return info

    def _next_round(self, kind: Kind, lines: tuple[UpdateLine, ...], info: RoundInfo, **changes: object) -> None:
        """Open the round after one that has ended. If a version came of that, it gets its manifest."""
        before = self._head
        self._append(
            kind,
            lines,
            round=info.round + 1,
            opened_at=info.closed_at,
            round_plan_sha256=before.plan_sha256,
            round_shared_sha256=before.shared_sha256,
            last_round=info,
            stored_bytes=before.stored_bytes + info.update_bytes,
            **changes,
        )
        if self._head.version is not None and self._head.version != before.version:
            finish_commit(self._journal, self._head.version)
        self._evaluations, self._sent_bytes = Evaluations(self.store, self.model), 0

    def _plan_ends_at(self, ref: VersionRef | None) -> bool:
        """Return whether the plan of the next round wants no further version."""
        limit = self._plan.stopping.versions
        return limit is not None and ref is not None and ref.number >= limit

    def _resume(self, ref: VersionRef) -> None:
        """Open the head's round: its version, and whatever counts in it that is in the store."""
        head = self._head
        self._manifest = read_manifest(load_program(self.store, self.model, str(head.program_sha256)))
        self._coordinator = reopened(self._journal, head, ref, self._manifest.to_layout(), self._clock())
        self._evaluations.recover(head.round)
        self._meter.record(VERSION, ref.number, self.model)

    def _check_in(self, device_id: str) -> Offer | Rejected:
        head, coordinator = self._head, self._coordinator
        now, idle = self._clock(), Rejected("finished" if head.state == "finished" else "not-training", IDLE_RETRY_S)
        if coordinator is None or head.version is None:
            return idle
        outcome = coordinator.check_in(device_id, now) if head.state == "training" else idle
        if isinstance(outcome, Rejected):
            outcome = self._evaluating.check_in(head, self._plan, device_id, now) or outcome
        if isinstance(outcome, Rejected):
            return outcome
        return offer_of(head, coordinator, outcome, base_of(self._journal, head.version, outcome.version))
