"""The coordinator under random interleavings of everything that devices, clocks and crashes can do to it.

A model beside it, a few dictionaries and exact rationals, says what each call must answer. Every version is checked
twice: against the rationals, and bit for bit against a second coordinator that got the same updates in another order.
"""

import math
from dataclasses import dataclass, field, replace
from fractions import Fraction

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from flsys_ray.core.coordinator import Coordinator
from flsys_ray.core.ids import assignment_id
from flsys_ray.core.layout import Layout
from flsys_ray.core.plan import parse_plan
from flsys_ray.core.types import (
    Assignment,
    Commit,
    Counted,
    Counters,
    GivenBack,
    Rejected,
    Update,
    UpdateRef,
    Version,
)

MODEL = "har-wild"
LAYOUT = Layout.of([("kernel", (2,), True), ("bias", (), True), ("moving_mean", (2,), False)])
TRAINABLE = [True, True, True, False, False]
COHORT, SLOTS, QUORUM, DEADLINE_S = 3, 5, 2, 100.0
MAX_ABS, MAX_EXAMPLES = 64.0, 50
DEVICES = [f"phone-{number}" for number in range(8)]

devices = st.sampled_from(DEVICES)
deltas = st.lists(st.floats(-MAX_ABS, MAX_ABS, width=32), min_size=LAYOUT.size, max_size=LAYOUT.size)
examples = st.integers(1, 2 * MAX_EXAMPLES)
losses = st.floats(0, 1e6)
picks = st.integers(0, 10**6)
# A driver calls `tick` before any other event; one that forgets must meet no surprise either.
punctual = st.sampled_from([True, True, True, False])


def vector(values):
    array = np.array(values, dtype=np.float32)
    array.flags.writeable = False
    return array


GOOD = vector([0.5, -0.25, 1.0, 2.0, -1.0])
FLAWS = {
    "nan": {"delta": vector([math.nan, 0, 0, 0, 0])},
    "infinity": {"delta": vector([0, 0, 0, 0, -math.inf])},
    "too large": {"delta": vector([0, MAX_ABS * 1.001, 0, 0, 0])},
    "too short": {"delta": vector([0, 0, 0, 0])},
    "empty": {"delta": vector([])},
    "two dimensions": {"delta": vector([[0, 0, 0, 0, 0]])},
    "float64": {"delta": np.zeros(5)},
    "int32": {"delta": np.zeros(5, dtype=np.int32)},
    "complex": {"delta": np.zeros(5, dtype=np.complex64)},
    "text": {"delta": np.array(["a", "b", "c", "d", "e"])},
    "no examples": {"num_examples": 0},
    "negative examples": {"num_examples": -3},
    "no steps": {"num_steps": 0},
    "loss nan": {"loss": math.nan},
    "loss infinite": {"loss": math.inf},
    "loss beyond float32": {"loss": 1e308},
}


@dataclass
class Contribution:
    """What the model remembers of one counted update."""

    update: Update
    weight: int


@dataclass
class OpenRound:
    """What the model knows of the open round."""

    number: int
    opened_at: float
    started_at: float | None = None
    outcomes: dict[str, str] = field(default_factory=dict)
    contributions: dict[str, Contribution] = field(default_factory=dict)

    def count(self, outcome):
        return sum(found == outcome for found in self.outcomes.values())


class CoordinatorMachine(RuleBasedStateMachine):
    """Drives one coordinator; see the module."""

    optimizer = "sgd"
    selection = "first_come"
    stop_after: int | None = None

    @initialize(start=st.floats(0, 1e9).map(lambda value: round(value, 3)), first=deltas)
    def open(self, start, first):
        pacing = {
            "name": "rounds",
            "cohort": COHORT,
            "over_selection": 5 / 3,
            "quorum": QUORUM,
            "deadline_s": DEADLINE_S,
        }
        self.plan = parse_plan(
            {
                "pacing": pacing,
                "selection": self.selection,
                "server_optimizer": self.optimizer,
                "limits": {"max_examples": MAX_EXAMPLES, "max_abs_delta": MAX_ABS},
                "stopping": {"versions": self.stop_after},
            }
        )
        assert self.plan.pacing.slots == SLOTS
        self.now = start
        self.version = Version(0, vector(first), self.plan.server_optimizer.init(LAYOUT.size))
        self.coordinator = self.fresh(self.version, 0, start)
        self.round = OpenRound(0, start)
        self.assignments: list[Assignment] = []
        self.committed: set[str] = set()

    def fresh(self, version, round_, opened_at):
        return Coordinator(MODEL, LAYOUT, self.plan, version, round_=round_, opened_at=opened_at)

    @property
    def finished(self):
        return self.stop_after is not None and self.version.number >= self.stop_after

    @property
    def deadline(self):
        return (self.now if self.round.started_at is None else self.round.started_at) + DEADLINE_S

    @property
    def over(self):
        counted = self.round.count("counted")
        return counted >= COHORT or self.now >= self.deadline

    def settle(self, device, outcome):
        self.round.outcomes[device] = outcome
        if self.round.started_at is None:
            self.round.started_at = self.now

    # Devices ---------------------------------------------------------------------------------------------------

    @rule(device=devices, punctual=punctual)
    def check_in(self, device, punctual):
        if punctual:
            self.tick()
        outcome = self.round.outcomes.get(device)
        answer = self.coordinator.check_in(device, self.now)
        free = SLOTS - self.round.count("pending") - self.round.count("counted")
        if self.finished:
            self.refused(answer, "finished")
        elif outcome in ("counted", "given-back"):
            self.refused(answer, "already-contributed")
        elif self.over:
            self.refused(answer, "round-closing")
        elif outcome is None and free <= 0:
            self.refused(answer, "round-full")
        elif outcome is None and isinstance(answer, Rejected):
            self.refused(answer, "not-selected")
            assert self.selection == "uniform"
            elapsed = max(0.0, self.now - self.deadline + DEADLINE_S) / DEADLINE_S
            assert elapsed < self.plan.selection.open_at_fraction
        else:
            key = assignment_id(MODEL, self.round.number, device)
            assert answer == Assignment(key, MODEL, self.round.number, self.version.number, device, self.deadline)
            self.settle(device, "pending")
            if answer not in self.assignments:
                self.assignments.append(answer)

    @precondition(lambda self: self.assignments)
    @rule(pick=picks, values=deltas, examples=examples, loss=losses, punctual=punctual)
    def submit(self, pick, values, examples, loss, punctual):
        self.send(Update(self.pick(pick), vector(values), examples, loss, "aa"), punctual)

    @rule(device=devices, values=deltas, examples=examples, loss=losses)
    def check_in_and_submit(self, device, values, examples, loss):
        self.check_in(device, True)
        answer = self.coordinator.check_in(device, self.now)
        if isinstance(answer, Assignment):
            self.send(Update(answer, vector(values), examples, loss, "bb"), True)

    @precondition(lambda self: self.assignments)
    @rule(pick=picks, flaw=st.sampled_from(sorted(FLAWS)), punctual=punctual)
    def submit_something_unusable(self, pick, flaw, punctual):
        self.send(replace(Update(self.pick(pick), GOOD, 7, 0.5), **FLAWS[flaw]), punctual, flawed=True)

    @precondition(lambda self: self.assignments)
    @rule(
        pick=picks,
        change=st.sampled_from(
            [{"model": "other"}, {"assignment_id": ""}, {"assignment_id": "00000000-0"}, {"device_id": "stranger"}]
        ),
    )
    def submit_for_something_else(self, pick, change):
        """Tokens are signed: such an assignment cannot come from a device, and must do no harm all the same."""
        forged = replace(self.pick(pick), **change)
        answers = [
            self.coordinator.submit(Update(forged, GOOD, 1, 0.1), self.now),
            self.coordinator.give_back(forged, self.now),
        ]
        for answer in answers:
            self.refused(answer, "wrong-model" if "model" in change else "round-over")

    @precondition(lambda self: self.assignments)
    @rule(pick=picks, punctual=punctual)
    def give_back(self, pick, punctual):
        if punctual:
            self.tick()
        assignment = self.pick(pick)
        answer = self.coordinator.give_back(assignment, self.now)
        outcome = self.round.outcomes.get(assignment.device_id)
        if assignment.round != self.round.number:
            self.refused(answer, "round-over")
        elif outcome in (None, "pending") and self.now > assignment.deadline:
            self.refused(answer, "deadline-passed")
        elif outcome == "counted":
            self.refused(answer, "already-contributed")
        else:
            assert answer == GivenBack(duplicate=outcome == "given-back")
            self.settle(assignment.device_id, "given-back")

    def pick(self, number):
        """Return an assignment, the newest ones more often: old ones matter too."""
        recent = self.assignments if number % 4 == 0 else self.assignments[-8:]
        return recent[number % len(recent)]

    def send(self, update, punctual, flawed=False):
        if punctual:
            self.tick()
        assignment = update.assignment
        outcome = self.round.outcomes.get(assignment.device_id)
        before = update.delta.tobytes()
        answer = self.coordinator.submit(update, self.now)
        assert update.delta.tobytes() == before
        if assignment.round != self.round.number:
            self.refused(answer, "round-over")
        elif outcome == "counted":
            assert answer == Counted(duplicate=True)
        elif outcome in (None, "pending") and self.now > assignment.deadline:
            self.refused(answer, "deadline-passed")
        elif outcome == "given-back":
            self.refused(answer, "given-back")
        elif self.round.count("counted") >= self.plan.pacing.max_updates:
            self.refused(answer, "round-over")
        elif flawed:
            self.refused(answer, "unusable")
            assert answer.detail
        else:
            assert answer == Counted(duplicate=False)
            self.settle(assignment.device_id, "counted")
            weight = min(update.num_examples, MAX_EXAMPLES)
            self.round.contributions[assignment.device_id] = Contribution(update, weight)

    def refused(self, answer, reason):
        assert isinstance(answer, Rejected)
        assert answer.reason == reason
        assert math.isfinite(answer.retry_after_s)
        assert answer.retry_after_s > 0

    # Time and crashes --------------------------------------------------------------------------------------------

    @rule(seconds=st.floats(0, 40).map(lambda value: round(value, 3)))
    def pass_time(self, seconds):
        self.now += seconds

    @rule(seconds=st.sampled_from([99.999, DEADLINE_S, 100.001, 1e4, -0.5, -30.0, -500.0]))
    def jump(self, seconds):
        self.now += seconds

    @rule()
    def reach_the_deadline(self):
        self.now = self.deadline

    @rule()
    def snapshot_and_restore(self):
        snapshot = self.coordinator.snapshot()
        old, self.coordinator = self.coordinator, Coordinator.restore(MODEL, LAYOUT, self.plan, snapshot)
        for device in DEVICES:  # the old one goes its own way: nothing of it is shared
            old.check_in(device, self.now)
            key = assignment_id(MODEL, self.round.number, device)
            assignment = Assignment(key, MODEL, self.round.number, self.version.number, device, self.now + 1)
            old.submit(Update(assignment, GOOD, 3, 0.1), self.now)
        old.tick(self.now + 2 * DEADLINE_S)

    @precondition(lambda self: not self.finished)
    @rule(order=st.randoms(use_true_random=False))
    def crash_and_recover(self, order):
        """All that is left is the version, the round and the updates that are objects of the store."""
        self.coordinator = self.fresh(self.version, self.round.number, self.round.opened_at)
        stored = list(self.round.contributions.values())
        order.shuffle(stored)
        self.round.outcomes, self.round.started_at = {}, None
        for contribution in stored:
            assignment = replace(contribution.update.assignment, deadline=self.now)
            update = replace(contribution.update, assignment=assignment)
            assert self.coordinator.submit(update, self.now) == Counted(duplicate=False)
            self.settle(assignment.device_id, "counted")

    @rule()
    def tick(self):
        counted, expected_end = self.round.count("counted"), self.over
        counters = self.coordinator.counters
        summary = self.coordinator.tick(self.now)
        if self.finished or not expected_end:
            assert summary is None
            return
        assert (summary.round, summary.version) == (self.round.number, self.version.number)
        assert (summary.opened_at, summary.closed_at) == (self.round.opened_at, self.now)
        assert summary.counters == replace(counters, late=counters.pending, pending=0)
        assert summary.counters.reconciles
        weights = [contribution.weight for contribution in self.round.contributions.values()]
        assert summary.num_examples == sum(weights)
        self.check_loss(summary.mean_loss)
        if counted < QUORUM:
            assert summary.commit is None
        else:
            self.check_commit(summary.commit)
            self.version = summary.commit.version
        self.round = OpenRound(self.round.number + 1, self.now)

    # Versions ----------------------------------------------------------------------------------------------------

    def check_loss(self, found):
        contributions = self.round.contributions.values()
        total = sum(c.weight for c in contributions)
        if not total:
            assert found is None
            return
        exact = sum(Fraction(c.update.loss) * c.weight for c in contributions) / total
        assert math.isclose(found, float(exact), rel_tol=1e-12, abs_tol=1e-300)

    def check_commit(self, commit: Commit):
        contributions = self.round.contributions
        expected = {
            UpdateRef(
                assignment_id(MODEL, self.round.number, device),
                device,
                c.weight,
                c.update.sha256,
                c.weight,
                loss=c.update.loss,
                num_steps=c.update.num_steps,
            )
            for device, c in contributions.items()
        }
        assert list(commit.updates) == sorted(expected, key=lambda ref: ref.assignment_id)
        keys = {ref.assignment_id for ref in commit.updates}
        assert len(keys) == len(expected)
        assert not keys & self.committed, "an update is in two versions"
        assert all(key.startswith(f"{self.round.number:08d}-") for key in keys)
        self.committed |= keys
        assert commit.version.number == self.version.number + 1
        assert commit.version.optimizer_state.step == self.version.optimizer_state.step + 1
        for array in (commit.version.parameters, *commit.version.optimizer_state.vectors):
            assert (array.dtype, array.shape) == (np.float32, (LAYOUT.size,))
            array.flags.writeable = False  # from now on a change of it would raise
        self.check_parameters(commit)
        self.check_bits(commit)

    def check_parameters(self, commit):
        contributions = self.round.contributions.values()
        total = sum(c.weight for c in contributions)
        mean = [
            sum(Fraction(float(c.update.delta[index])) * c.weight for c in contributions) / total
            for index in range(LAYOUT.size)
        ]
        unit = 2.0 ** -self.plan.scale().fraction_bits
        norm = math.sqrt(sum(float(value) ** 2 for value in mean))
        assert math.isclose(commit.delta_norm, norm, rel_tol=1e-9, abs_tol=LAYOUT.size * unit)
        for index, (base, found) in enumerate(zip(self.version.parameters, commit.version.parameters, strict=True)):
            movement, slack = float(mean[index]), unit
            if TRAINABLE[index] and self.optimizer != "sgd":
                movement = self.adam_movement(index, movement)
                slack = unit / self.plan.server_optimizer.tau
            exact = float(base) + movement
            assert abs(float(found) - exact) <= slack + 1e-6 * abs(exact)

    def adam_movement(self, index, delta):
        adam, (m, v) = self.plan.server_optimizer, self.version.optimizer_state.vectors
        m_t = adam.beta_1 * float(m[index]) + (1 - adam.beta_1) * delta
        v_t = adam.beta_2 * float(v[index]) + (1 - adam.beta_2) * delta**2
        return adam.learning_rate * m_t / (math.sqrt(v_t) + adam.tau)

    def check_bits(self, commit):
        """A second coordinator gets the same updates, last first, as after a crash."""
        second = self.fresh(self.version, self.round.number, self.round.opened_at)
        for contribution in reversed(list(self.round.contributions.values())):
            assignment = replace(contribution.update.assignment, deadline=self.now)
            second.submit(replace(contribution.update, assignment=assignment), self.now)
        again = second.tick(self.now + DEADLINE_S).commit
        assert again.updates == commit.updates
        assert again.version.parameters.tobytes() == commit.version.parameters.tobytes()
        assert again.delta_norm == commit.delta_norm
        for one, other in zip(
            again.version.optimizer_state.vectors, commit.version.optimizer_state.vectors, strict=True
        ):
            assert one.tobytes() == other.tobytes()

    # At every step -----------------------------------------------------------------------------------------------

    @invariant()
    def agrees_with_the_model(self):
        if not hasattr(self, "coordinator"):
            return
        coordinator, round_ = self.coordinator, self.round
        counted, pending, back = (round_.count(outcome) for outcome in ("counted", "pending", "given-back"))
        assert coordinator.counters == Counters(len(round_.outcomes), counted, 0, back, pending)
        assert coordinator.counters.reconciles
        assert (coordinator.round, coordinator.opened_at) == (round_.number, round_.opened_at)
        assert coordinator.started_at == round_.started_at
        assert coordinator.version is self.version
        assert coordinator.finished == self.finished
        expected = None if self.finished or round_.started_at is None else round_.started_at + DEADLINE_S
        assert coordinator.next_deadline() == expected


class AdamMachine(CoordinatorMachine):
    """With a stateful optimizer and a lottery."""

    optimizer = "adam"
    selection = "uniform"


class FinishingMachine(CoordinatorMachine):
    """With an end."""

    stop_after = 2


SETTINGS = settings(max_examples=150, stateful_step_count=60)
TestFederatedAveraging = CoordinatorMachine.TestCase
TestFederatedAveraging.settings = SETTINGS
TestAdamWithUniformSelection = AdamMachine.TestCase
TestAdamWithUniformSelection.settings = SETTINGS
TestUntilItIsFinished = FinishingMachine.TestCase
TestUntilItIsFinished.settings = settings(SETTINGS, max_examples=100)
