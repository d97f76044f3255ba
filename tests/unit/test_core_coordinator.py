"""The coordinator, case by case: what the state machine of `tests/laws` would find only by luck."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest

from flsys_ray.core.coordinator import CANDIDATE_ROUNDS, Coordinator
from flsys_ray.core.ids import assignment_id
from flsys_ray.core.layout import Layout
from flsys_ray.core.plan import parse_plan
from flsys_ray.core.selection.history import NO_HISTORY
from flsys_ray.core.types import Assignment, Counted, GivenBack, Rejected, Update, UpdateRef, Version

LAYOUT = Layout.of([("w", (2,), True)])
OPENED = 1000.0


def coordinator_of(versions=None, **pacing):
    pacing = {"name": "rounds", "cohort": 2, "over_selection": 1.5, "deadline_s": 60.0} | pacing
    plan = parse_plan({"pacing": pacing, "selection": "first_come", "stopping": {"versions": versions}})
    version = Version(0, np.zeros(2, dtype=np.float32), plan.server_optimizer.init(2))
    return Coordinator("sentiment", LAYOUT, plan, version, round_=0, opened_at=OPENED)


def update_of(assignment, value=1.0, num_examples=10, loss=0.5):
    return Update(assignment, np.full(2, value, dtype=np.float32), num_examples, loss, "ff")


def test_a_round_from_check_in_to_version():
    coordinator = coordinator_of()
    first, second, third = (coordinator.check_in(device, OPENED + 1) for device in ("a", "b", "c"))
    assert coordinator.check_in("d", OPENED + 1).reason == "round-full"
    assert coordinator.submit(update_of(first, 1.0, 10), OPENED + 2) == Counted(duplicate=False)
    assert coordinator.give_back(second, OPENED + 3) == GivenBack(duplicate=False)
    assert coordinator.tick(OPENED + 4) is None
    assert coordinator.submit(update_of(third, 4.0, 20), OPENED + 5) == Counted(duplicate=False)
    summary = coordinator.tick(OPENED + 5)
    assert summary.commit.version.parameters.tolist() == [3.0, 3.0]
    assert summary.commit.delta_norm == pytest.approx(math.sqrt(18))
    assert (summary.num_examples, summary.mean_loss) == (30, 0.5)
    assert (summary.counters.assigned, summary.counters.given_back, summary.counters.late) == (3, 1, 0)
    assert (coordinator.round, coordinator.version.number, coordinator.opened_at) == (1, 1, OPENED + 5)


def test_an_idle_model_waits_in_one_open_round():
    coordinator = coordinator_of()
    assert coordinator.next_deadline() is None
    assert coordinator.tick(OPENED + 1e9) is None
    assignment = coordinator.check_in("a", OPENED + 1e9)
    assert assignment.deadline == OPENED + 1e9 + 60.0 == coordinator.next_deadline()


def test_a_missed_quorum_closes_without_a_commit_and_the_next_round_starts_from_the_same_version():
    coordinator = coordinator_of(cohort=4, quorum=3)
    before = coordinator.version
    assignments = [coordinator.check_in(device, OPENED) for device in "abcd"]
    for assignment in assignments[:2]:
        coordinator.submit(update_of(assignment), OPENED + 1)
    summary = coordinator.tick(OPENED + 60)
    assert summary.commit is None
    assert (summary.counters.counted, summary.counters.late) == (2, 2)
    assert coordinator.version is before
    assert coordinator.round == 1
    late = coordinator.submit(update_of(assignments[3]), OPENED + 61)
    assert (late.reason, coordinator.counters.assigned) == ("round-over", 0)


def test_weights_are_cut_at_the_plans_limit():
    coordinator = coordinator_of()
    for device, value, examples in (("a", 0.0, 10_000), ("b", 1.0, 10**9)):
        coordinator.submit(update_of(coordinator.check_in(device, OPENED), value, examples), OPENED)
    summary = coordinator.tick(OPENED)
    assert summary.commit.version.parameters.tolist() == [0.5, 0.5]
    assert [ref.num_examples for ref in summary.commit.updates] == [10_000, 10_000]


def test_no_loss_that_a_device_can_send_makes_the_rounds_figures_infinite():
    coordinator = coordinator_of()
    for device in ("a", "b"):
        assignment = coordinator.check_in(device, OPENED)
        assert coordinator.submit(update_of(assignment, loss=1.7e308, num_examples=10**6), OPENED).reason == "unusable"
        largest = float(np.finfo(np.float32).max)
        assert coordinator.submit(update_of(assignment, loss=largest, num_examples=10**6), OPENED) == Counted(False)
    assert math.isfinite(coordinator.tick(OPENED).mean_loss)


@pytest.mark.parametrize(
    ("change", "detail"),
    [
        ({"delta": np.array([1.0, math.nan], dtype=np.float32)}, "not finite or above 1024"),
        ({"delta": np.array([1025.0, 0.0], dtype=np.float32)}, "not finite or above 1024"),
        ({"delta": np.zeros(3, dtype=np.float32)}, r"shape \(3,\) and dtype float32, expected \(2,\) float32"),
        ({"delta": np.zeros(2)}, "dtype float64"),
        ({"num_examples": 0}, "num_examples is 0"),
        ({"loss": -math.inf}, "loss is -inf"),
    ],
)
def test_an_unusable_update_says_why_and_may_be_repaired(change, detail):
    coordinator = coordinator_of()
    assignment = coordinator.check_in("a", OPENED)
    answer = coordinator.submit(replace(update_of(assignment), **change), OPENED)
    assert answer.reason == "unusable"
    assert re.search(detail, answer.detail)
    assert coordinator.submit(update_of(assignment), OPENED) == Counted(duplicate=False)


def test_an_update_at_the_very_limit_is_taken():
    coordinator = coordinator_of()
    update = Update(coordinator.check_in("a", OPENED), np.array([1024.0, -1024.0], dtype=np.float32), 1, 0.0)
    assert coordinator.submit(update, OPENED) == Counted(duplicate=False)


def test_recovery_takes_in_every_update_that_may_have_been_acknowledged():
    """More than the cohort: nobody knows any more which of them were."""
    coordinator = coordinator_of()
    for number in range(coordinator.plan.pacing.max_updates + 1):
        device = f"phone-{number}"
        key = assignment_id("sentiment", 0, device)
        answer = coordinator.submit(update_of(Assignment(key, "sentiment", 0, 0, device, OPENED)), OPENED)
        within = number < coordinator.plan.pacing.max_updates
        assert isinstance(answer, Counted) == within
    assert len(coordinator.tick(OPENED).commit.updates) == coordinator.plan.pacing.max_updates


def test_the_end_is_the_end():
    coordinator = coordinator_of(versions=1, cohort=1)
    assignment = coordinator.check_in("a", OPENED)
    coordinator.submit(update_of(assignment), OPENED)
    assert coordinator.tick(OPENED).commit.version.number == 1
    assert coordinator.finished
    assert coordinator.check_in("b", OPENED).reason == "finished"
    assert coordinator.submit(update_of(assignment), OPENED).reason == "round-over"
    assert coordinator.tick(OPENED + 1e6) is None
    assert coordinator.next_deadline() is None


def test_refused_devices_come_back_at_half_of_the_wait_and_not_all_at_once():
    coordinator = coordinator_of(deadline_s=1000.0)
    for device in ("a", "b", "c"):
        coordinator.check_in(device, OPENED)
    waits = [coordinator.check_in(f"phone-{number}", OPENED).retry_after_s for number in range(200)]
    assert 375 <= min(waits) < 400
    assert 600 < max(waits) <= 625
    assert abs(sum(waits) / 200 - 500) < 20
    assert coordinator.check_in("phone-7", OPENED).retry_after_s == waits[7]


def test_pace_steering_learns_how_long_rounds_take():
    coordinator = coordinator_of(deadline_s=1000.0)
    for device in ("a", "b"):
        coordinator.submit(update_of(coordinator.check_in(device, OPENED)), OPENED)
    assert coordinator.tick(OPENED + 40.0) is not None
    for device in ("a", "b", "c"):
        coordinator.check_in(device, OPENED + 40.0)
    refused = coordinator.check_in("d", OPENED + 40.0)
    assert 15.0 <= refused.retry_after_s <= 25.0


def test_after_two_windows_a_device_that_never_came_back_is_no_candidate():
    coordinator = coordinator_of(deadline_s=1.0)
    now = OPENED
    sizes = []
    for number in range(3 * CANDIDATE_ROUNDS):
        if number == 0:
            for device in range(30):
                coordinator.check_in(f"visitor-{device}", now)
        coordinator.check_in("resident", now)
        snapshot = coordinator.snapshot()
        sizes.append(snapshot.candidates.merge(snapshot.earlier_candidates).estimate())
        now += 1.0
        assert coordinator.tick(now) is not None
    assert sizes[0] == 31
    assert sizes[2 * CANDIDATE_ROUNDS - 1] == 31
    assert sizes[2 * CANDIDATE_ROUNDS] == 1


def test_a_restored_coordinator_knows_all_that_the_first_one_knew():
    coordinator = coordinator_of(deadline_s=1000.0)
    for device in ("a", "b"):
        coordinator.submit(update_of(coordinator.check_in(device, OPENED)), OPENED)
    coordinator.tick(OPENED + 40.0)
    for _ in range(CANDIDATE_ROUNDS):
        coordinator.check_in("visitor", OPENED + 40.0)
        coordinator.tick(OPENED + 2000.0)
    coordinator.submit(update_of(coordinator.check_in("c", OPENED + 2000.0)), OPENED + 2001.0)
    coordinator.give_back(coordinator.check_in("d", OPENED + 2001.0), OPENED + 2001.0)
    snapshot = coordinator.snapshot()
    restored = Coordinator.restore(coordinator.model, LAYOUT, coordinator.plan, snapshot)
    again = restored.snapshot()
    for name in ("version", "round", "opened_at", "asked_at", "started_at", "entries", "fold", "last_duration_s"):
        assert getattr(again, name) == getattr(snapshot, name), name
    assert snapshot.last_duration_s is not None
    assert again.candidates == snapshot.candidates
    assert again.earlier_candidates == snapshot.earlier_candidates != again.candidates
    assert restored.counters == coordinator.counters
    for device in ("a", "b", "c", "d", "e"):
        assert restored.check_in(device, OPENED + 2002.0) == coordinator.check_in(device, OPENED + 2002.0)


def test_assignment_ids_sort_by_round_and_differ_by_model_and_device():
    ids = [assignment_id("m", round_, device) for round_ in (0, 9, 10, 12_345_678) for device in ("a", "b")]
    assert ids == sorted(ids, key=lambda key: int(key.split("-")[0]))
    assert len(set(ids)) == 8
    assert assignment_id("m1", 0, "a") != assignment_id("m", 0, "1a") != assignment_id("n", 0, "1a")
    assert all(re.fullmatch(r"\d{8}-[0-9a-f]{20}", key) for key in ids)


@pytest.mark.parametrize("device", ["", "ü", "\x00", "\x1f", "a" * 10_000, "../.."])
def test_any_device_name_is_only_a_name(device):
    coordinator = coordinator_of()
    assignment = coordinator.check_in(device, OPENED)
    assert isinstance(assignment, Assignment)
    assert coordinator.submit(update_of(assignment), OPENED) == Counted(duplicate=False)


@pytest.mark.parametrize("now", [0.0, -1e12, 1e12])
def test_any_time_is_survived(now):
    coordinator = coordinator_of()
    assignment = coordinator.check_in("a", OPENED)
    for answer in (
        coordinator.check_in("b", now),
        coordinator.submit(update_of(assignment), now),
        coordinator.give_back(assignment, now),
    ):
        if isinstance(answer, Rejected):
            assert math.isfinite(answer.retry_after_s)
    coordinator.tick(now)
    assert coordinator.counters.reconciles


def test_a_round_that_the_lottery_turned_everybody_away_from_takes_who_is_there_after_half_of_its_time():
    """Its clock has not started, since nobody has an assignment: the lottery must not wait for that."""
    pacing = {"name": "rounds", "cohort": 1, "over_selection": 1, "deadline_s": 100.0}
    turned_away = 0
    for seed in range(40):
        plan = parse_plan({"pacing": pacing, "selection": "uniform", "seed": seed})
        start = Version(0, np.zeros(2, np.float32), plan.server_optimizer.init(2))
        coordinator = Coordinator("sentiment", LAYOUT, plan, start, round_=0, opened_at=OPENED)
        for now in (OPENED, OPENED + 1000.0):  # the first round takes who comes, and meets its candidates
            answers = [coordinator.check_in(f"d-{number}", now) for number in range(6)]
            taken = [answer for answer in answers if isinstance(answer, Assignment)]
            if not taken:
                turned_away += 1
                assert coordinator.next_deadline() is None
                taken = [coordinator.check_in("d-0", now + 50.0)]
            coordinator.submit(update_of(taken[0]), now + 50.0)
            assert coordinator.tick(now + 50.0).commit is not None
    assert turned_away > 3


def test_a_selector_is_told_what_is_known_of_devices():
    """Device i's last loss was i. Power-of-Choice takes, of those drawn, the upper third of what is known."""
    lines = tuple(UpdateRef(str(i), str(i), 10, "", 10, loss=float(i)) for i in range(60))
    taken = []
    for seed in range(40):
        pacing = {"name": "rounds", "cohort": 2, "over_selection": 1.0, "deadline_s": 60.0}
        plan = parse_plan({"pacing": pacing, "selection": "power_of_choice", "seed": seed})
        version = Version(0, np.zeros(2, dtype=np.float32), plan.server_optimizer.init(2))
        known = NO_HISTORY.after(0, lines)
        coordinator = Coordinator("m", LAYOUT, plan, version, round_=1, opened_at=OPENED, history=known)
        for device in range(60):  # the first two are taken: nobody knows yet how many come
            coordinator.check_in(str(device), OPENED)
        for entry in coordinator.snapshot().entries:
            coordinator.submit(update_of(entry.assignment, loss=0.0), OPENED)
        coordinator.tick(OPENED)
        for device in range(60):
            answer = coordinator.check_in(str(device), OPENED)
            taken += [device] if isinstance(answer, Assignment) else []
    assert len(taken) > 40
    assert min(taken) >= 38
