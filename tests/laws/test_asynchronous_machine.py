"""A buffered coordinator under random interleavings of devices, time and crashes: what it must answer, said by a model.

The model keeps, for every assignment that was ever given, what became of it; every version is checked against exact
rationals, and bit for bit against a second coordinator that got the same updates in another order.
"""

import math
from dataclasses import dataclass, replace
from fractions import Fraction

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from flsys_ray.core.coordinator import Coordinator
from flsys_ray.core.layout import Layout
from flsys_ray.core.ledger import Entry
from flsys_ray.core.plan import parse_plan
from flsys_ray.core.types import Assignment, Counted, Counters, GivenBack, Rejected, Update, Version

MODEL = "har-wild"
LAYOUT = Layout.of([("kernel", (2,), True), ("moving_mean", (1,), False)])
BUFFER, CONCURRENCY, DEADLINE_S, MAX_STALENESS = 2, 3, 100.0, 2
DEVICES = [f"phone-{number}" for number in range(5)]

devices = st.sampled_from(DEVICES)
deltas = st.lists(st.floats(-64, 64, width=32), min_size=LAYOUT.size, max_size=LAYOUT.size)
examples = st.integers(1, 60)
picks = st.integers(0, 10**6)


@dataclass
class Work:
    """One assignment, and what the model knows of it. `committed`: the version that holds its update."""

    assignment: Assignment
    outcome: str = "pending"
    update: Update | None = None
    committed: int | None = None


class BufferedMachine(RuleBasedStateMachine):
    """Drives one coordinator; see the module."""

    weight: object = {"name": "polynomial", "a": 1.0}

    @initialize(start=st.floats(0, 1e9).map(lambda value: round(value, 3)))
    def open(self, start):
        pacing = {
            "name": "buffered", "buffer": BUFFER, "concurrency": CONCURRENCY, "deadline_s": DEADLINE_S,
            "max_staleness": MAX_STALENESS, "weight": self.weight,
        }  # fmt: skip
        limits = {"max_examples": 50, "max_abs_delta": 64.0}
        self.plan = parse_plan({"pacing": pacing, "selection": "first_come", "limits": limits})
        self.version = Version(0, np.zeros(LAYOUT.size, np.float32), self.plan.server_optimizer.init(LAYOUT.size))
        self.now, self.round, self.opened_at = start, 0, start
        self.works: dict[str, Work] = {}
        self.coordinator = self.fresh()

    def fresh(self):
        return Coordinator(MODEL, LAYOUT, self.plan, self.version, round_=self.round, opened_at=self.opened_at)

    # The model ---------------------------------------------------------------------------------------------------

    def staleness(self, work):
        return self.version.number - work.assignment.version

    def of(self, outcome):
        return [work for work in self.works.values() if work.outcome == outcome]

    @property
    def waiting(self):
        """What is counted in the open round."""
        return [work for work in self.of("counted") if work.committed is None]

    def expected_refusal(self, work):
        """Why nothing can be done with an assignment any more, or None."""
        if work.outcome in ("counted", "given-back") and self.staleness(work) <= MAX_STALENESS:
            return None
        if work.assignment.round != self.round and self.staleness(work) > MAX_STALENESS:
            return "too-stale"
        return "deadline-passed" if self.now > work.assignment.deadline else None

    # Events ------------------------------------------------------------------------------------------------------

    @rule(device=devices)
    def check_in(self, device):
        self.tick()
        answer = self.coordinator.check_in(device, self.now)
        in_hand = [work for work in self.of("pending") if work.assignment.device_id == device]
        if in_hand and self.now < in_hand[0].assignment.deadline:
            assert answer == in_hand[0].assignment
        elif in_hand:
            assert answer.reason == "round-closing"
        elif len(self.of("pending")) >= CONCURRENCY:
            assert answer.reason == "round-full"
        else:
            assert (answer.round, answer.version) == (self.round, self.version.number)
            assert answer.deadline == self.now + DEADLINE_S
            known = self.works.get(answer.assignment_id)
            assert known is None or known.outcome in ("forgotten", "late"), (
                "an id is given once, or again after a crash"
            )
            self.works[answer.assignment_id] = Work(answer)

    @precondition(lambda self: self.works)
    @rule(pick=picks, values=deltas, examples=examples)
    def submit(self, pick, values, examples):
        self.tick()
        work = self.pick(pick)
        update = Update(work.assignment, np.array(values, dtype=np.float32), examples, 0.5, "aa")
        answer = self.coordinator.submit(update, self.now)
        refusal = self.expected_refusal(work)
        if refusal is not None:
            assert answer.reason == refusal
        elif work.outcome == "counted":
            assert answer == Counted(duplicate=True)
        elif work.outcome == "given-back":
            assert answer.reason == "given-back"
        else:
            assert answer == Counted(duplicate=False)
            work.outcome, work.update = "counted", update
        self.tick()

    @precondition(lambda self: self.works)
    @rule(pick=picks)
    def give_back(self, pick):
        self.tick()
        work = self.pick(pick)
        answer = self.coordinator.give_back(work.assignment, self.now)
        refusal = self.expected_refusal(work)
        if refusal is not None:
            assert answer.reason == refusal
        elif work.outcome == "counted":
            assert answer.reason == "already-contributed"
        else:
            assert answer == GivenBack(duplicate=work.outcome == "given-back")
            work.outcome = "given-back"

    def pick(self, number):
        works = list(self.works.values())
        recent = works if number % 4 == 0 else works[-8:]
        return recent[number % len(recent)]

    @rule(seconds=st.sampled_from([0.5, 30.0, 99.5, DEADLINE_S, 250.0]))
    def pass_time(self, seconds):
        self.now += seconds

    @rule()
    def snapshot_and_restore(self):
        self.coordinator = Coordinator.restore(MODEL, LAYOUT, self.plan, self.coordinator.snapshot())

    @rule(order=st.randoms(use_true_random=False))
    def crash_and_recover(self, order):
        """The store has the version, the updates, what was given back, and what is in versions."""
        self.tick()
        self.coordinator = self.fresh()
        for work in [work for work in self.works.values() if self.staleness(work) <= MAX_STALENESS]:
            if work.committed is not None:
                self.coordinator.settle(Entry(work.assignment, "counted"))
            elif work.outcome == "given-back" and work.assignment.round != self.round:
                self.coordinator.settle(Entry(work.assignment, "given-back"))
            elif work.outcome == "given-back":
                self.coordinator.give_back(replace(work.assignment, deadline=self.now), self.now)
        stored = self.waiting
        order.shuffle(stored)
        for work in stored:
            update = replace(work.update, assignment=replace(work.assignment, deadline=self.now))
            assert self.coordinator.submit(update, self.now) == Counted(duplicate=False)
        for work in self.works.values():
            if work.outcome in ("pending", "late"):
                work.outcome = "forgotten"

    @rule()
    def tick(self):
        for work in self.of("pending"):
            if self.now > work.assignment.deadline:
                work.outcome = "late"
        waiting = self.waiting
        summary = self.coordinator.tick(self.now)
        if len(waiting) < BUFFER:
            assert summary is None
            return
        assert summary.counters.reconciles
        assert summary.commit.version.number == self.version.number + 1
        self.check(summary.commit, waiting)
        self.version, self.round, self.opened_at = summary.commit.version, self.round + 1, self.now
        for work in waiting:
            work.committed = self.version.number
        for work in self.of("pending"):
            if self.staleness(work) > MAX_STALENESS:
                work.outcome = "late"
        assert summary.counters.pending == len(self.of("pending"))
        assert self.coordinator.counters == Counters(assigned=len(self.of("pending")), pending=len(self.of("pending")))

    def check(self, commit, waiting):
        keys = [ref.assignment_id for ref in commit.updates]
        assert keys == sorted(work.assignment.assignment_id for work in waiting)
        weights = {}
        for work in waiting:
            staleness = self.staleness(work) if work.assignment.round != self.round else 0
            weights[work.assignment.assignment_id] = self.plan.pacing.weight.units(
                min(work.update.num_examples, 50), staleness
            )
        assert {ref.assignment_id: ref.weight for ref in commit.updates} == weights
        unit = 2.0 ** -self.plan.scale().fraction_bits
        for index in range(LAYOUT.size):
            mean = sum(
                Fraction(float(w.update.delta[index])) * weights[w.assignment.assignment_id] for w in waiting
            ) / sum(weights.values())
            exact = float(self.version.parameters[index]) + float(mean)
            assert math.isclose(float(commit.version.parameters[index]), exact, rel_tol=1e-6, abs_tol=4 * unit)
        second = self.fresh()
        for work in reversed(waiting):
            second.submit(replace(work.update, assignment=replace(work.assignment, deadline=self.now)), self.now)
        again = second.tick(self.now).commit
        assert again.updates == commit.updates
        assert again.version.parameters.tobytes() == commit.version.parameters.tobytes()

    @invariant()
    def agrees_with_the_model(self):
        if not hasattr(self, "coordinator"):
            return
        counters = self.coordinator.counters
        assert counters.reconciles
        assert counters.counted == len(self.waiting)
        assert counters.pending + counters.late >= len(self.of("pending"))
        assert (self.coordinator.round, self.coordinator.version.number) == (self.round, self.version.number)
        assert self.coordinator.next_deadline() is None

    @invariant()
    def a_stranger_is_refused(self):
        if not hasattr(self, "coordinator"):
            return
        forged = Assignment("00000000-0", MODEL, 0, 0, "stranger", self.now + 1)
        answer = self.coordinator.submit(Update(forged, np.zeros(3, np.float32), 1, 0.1), self.now)
        assert isinstance(answer, Rejected)
        assert answer.reason == "round-over"
        assert answer.retry_after_s > 0


class HingeMachine(BufferedMachine):
    """With the other function."""

    weight = {"name": "hinge", "a": 1.0, "b": 1}  # noqa: RUF012


SETTINGS = settings(max_examples=120, stateful_step_count=50)
TestBufferedPolynomial = BufferedMachine.TestCase
TestBufferedPolynomial.settings = SETTINGS
TestBufferedHinge = HingeMachine.TestCase
TestBufferedHinge.settings = settings(SETTINGS, max_examples=60)
