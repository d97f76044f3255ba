"""The coordinator when work outlives its round: buffers, staleness, late updates; case by case."""

from dataclasses import replace

import numpy as np
import pytest

from flsys_ray.core.aggregation.partial import folded
from flsys_ray.core.coordinator import Coordinator
from flsys_ray.core.ids import assignment_id
from flsys_ray.core.layout import Layout
from flsys_ray.core.plan import parse_plan
from flsys_ray.core.types import Assignment, Counted, Counters, GivenBack, Rejected, Update, Version

LAYOUT = Layout.of([("w", (2,), True)])
OPENED = 1000.0
ROUNDS = {"name": "rounds", "cohort": 2, "quorum": 2, "over_selection": 2, "deadline_s": 60.0}


def coordinator_of(pacing, **changes):
    plan = parse_plan({"pacing": pacing, "selection": "first_come"} | changes)
    version = Version(0, np.zeros(2, dtype=np.float32), plan.server_optimizer.init(2))
    return Coordinator("sentiment", LAYOUT, plan, version, round_=0, opened_at=OPENED)


def buffered(**pacing):
    chosen = {"buffer": 2, "concurrency": 3, "deadline_s": 100.0, "max_staleness": 2} | pacing
    return coordinator_of({"name": "buffered", **chosen})


def update_of(assignment, value=1.0, num_examples=10):
    return Update(assignment, np.full(2, value, dtype=np.float32), num_examples, 0.5, "ff")


def count(coordinator, assignment, value=1.0, at=OPENED, num_examples=10):
    """Have an update counted; return how the round ended, if it did."""
    answer = coordinator.submit(update_of(assignment, value, num_examples), at)
    assert answer == Counted(duplicate=False)
    return coordinator.tick(at)


def commits(coordinator, number, at=OPENED):
    for _ in range(number):
        for _ in range(2):
            summary = count(coordinator, coordinator.check_in("fast", at), 0.0, at)
        assert summary.commit is not None


def test_an_old_update_counts_in_the_open_round_with_less_weight():
    coordinator = buffered(max_staleness=3)
    slow = coordinator.check_in("slow", OPENED)
    commits(coordinator, 3)
    assert (coordinator.round, coordinator.version.number) == (3, 3)
    assert count(coordinator, slow, 3.0) is None
    summary = count(coordinator, coordinator.check_in("fast", OPENED), 0.0)
    old, fresh = summary.commit.updates
    assert (old.assignment_id, old.staleness, old.weight) == (slow.assignment_id, 3, 10 * 128)
    assert (fresh.staleness, fresh.weight) == (0, 10 * 256)
    assert summary.commit.version.parameters.tolist() == [1.0, 1.0]  # (1/2 * 3 + 1 * 0) / (1/2 + 1)
    assert summary.num_examples == 20


def test_an_update_that_is_older_than_the_limit_is_refused_and_its_slot_is_free():
    coordinator = buffered(max_staleness=1)
    slow = coordinator.check_in("slow", OPENED)
    commits(coordinator, 1)
    assert coordinator.counters == Counters(assigned=1, pending=1)
    for turn in range(2):
        summary = count(coordinator, coordinator.check_in("fast", OPENED), turn)
    assert summary.counters == Counters(assigned=3, counted=2, late=1)
    assert coordinator.counters == Counters()
    answer = coordinator.submit(update_of(slow), OPENED)
    assert answer.reason == "too-stale"
    assert coordinator.give_back(slow, OPENED).reason == "too-stale"
    again = coordinator.check_in("slow", OPENED)
    assert (again.round, again.version) == (2, 2)


def test_a_device_that_is_done_gets_new_work_of_the_same_round_at_once():
    coordinator = buffered(buffer=3)
    first = coordinator.check_in("a", OPENED)
    assert coordinator.check_in("a", OPENED + 5) == first, "while its work is open, the same"
    count(coordinator, first)
    second = coordinator.check_in("a", OPENED + 5)
    assert (second.round, second.version) == (0, 0)
    assert second.assignment_id == f"{first.assignment_id}-t1" == assignment_id("sentiment", 0, "a", 1)
    assert coordinator.give_back(second, OPENED + 5) == GivenBack(duplicate=False)
    third = coordinator.check_in("a", OPENED + 5)
    assert third.assignment_id.endswith("-t2")
    assert coordinator.submit(update_of(second), OPENED + 5).reason == "given-back"
    assert coordinator.submit(update_of(first), OPENED + 5) == Counted(duplicate=True)


def test_work_in_hand_stays_the_same_across_commits():
    coordinator = buffered()
    slow = coordinator.check_in("slow", OPENED)
    commits(coordinator, 1)
    assert coordinator.check_in("slow", OPENED + 9) == slow
    assert coordinator.counters == Counters(assigned=1, pending=1)


def test_a_duplicate_is_one_in_every_later_round_and_never_counted_again():
    coordinator = buffered()
    slow = coordinator.check_in("slow", OPENED)
    commits(coordinator, 1)
    count(coordinator, slow)
    assert count(coordinator, coordinator.check_in("fast", OPENED)).commit is not None
    before = coordinator.counters
    assert coordinator.submit(update_of(slow), OPENED + 2) == Counted(duplicate=True)
    assert coordinator.give_back(slow, OPENED + 2).reason == "already-contributed"
    assert coordinator.counters == before


def test_only_so_many_devices_are_at_work_and_those_that_vanish_make_room_at_their_deadline():
    coordinator = buffered()
    works = [coordinator.check_in(name, OPENED + at) for at, name in enumerate("abc")]
    assert coordinator.check_in("d", OPENED + 3).reason == "round-full"
    assert [work.deadline for work in works] == [OPENED + 100, OPENED + 101, OPENED + 102]
    assert coordinator.tick(OPENED + 100) is None
    assert coordinator.check_in("d", OPENED + 100).reason == "round-full"
    assert coordinator.check_in("a", OPENED + 100).reason == "round-closing"  # at its deadline, to the second
    assert coordinator.tick(OPENED + 100.5) is None
    assert coordinator.counters == Counters(assigned=3, late=1, pending=2)
    assert coordinator.submit(update_of(works[0]), OPENED + 100.5).reason == "deadline-passed"
    assert isinstance(coordinator.check_in("a", OPENED + 100.5), Assignment)
    assert coordinator.check_in("d", OPENED + 100.5).reason == "round-full"


def test_a_buffer_ends_by_no_deadline():
    coordinator = buffered()
    count(coordinator, coordinator.check_in("a", OPENED))
    assert coordinator.next_deadline() is None
    assert coordinator.tick(OPENED + 1e9) is None
    assert coordinator.counters.counted == 1


def test_a_restored_coordinator_goes_on_across_rounds():
    coordinator = buffered()
    slow, done = coordinator.check_in("slow", OPENED), coordinator.check_in("done", OPENED)
    commits(coordinator, 1)
    count(coordinator, done)
    restored = Coordinator.restore(coordinator.model, LAYOUT, coordinator.plan, coordinator.snapshot())
    for one in (coordinator, restored):
        assert one.check_in("slow", OPENED) == slow
        assert one.submit(update_of(done), OPENED) == Counted(duplicate=True)
        assert count(one, slow, 2.0).commit.version.parameters.tolist() == [1.5, 1.5]
        assert one.submit(update_of(done), OPENED) == Counted(duplicate=True)


def test_a_finished_model_takes_nothing_more():
    coordinator = coordinator_of({"name": "buffered", "buffer": 1, "concurrency": 2}, stopping={"versions": 1})
    late = coordinator.check_in("a", OPENED)
    assert count(coordinator, coordinator.check_in("b", OPENED)).commit.version.number == 1
    assert coordinator.submit(update_of(late), OPENED).reason == "round-over"


# Rounds that fold late updates in --------------------------------------------------------------------------------


def test_by_default_an_update_that_missed_its_round_is_lost():
    coordinator = coordinator_of(ROUNDS)
    works = [coordinator.check_in(name, OPENED) for name in "abc"]
    for work in works[:2]:
        count(coordinator, work)
    assert coordinator.submit(update_of(works[2]), OPENED + 1).reason == "round-over"


def test_a_late_update_counts_in_the_next_round_if_the_plan_says_so():
    coordinator = coordinator_of(ROUNDS | {"late": {"weight": {"name": "polynomial", "a": 1.0}}})
    works = [coordinator.check_in(name, OPENED) for name in "abcd"]
    for work in works[:2]:
        summary = count(coordinator, work, 0.0)
    assert (summary.counters.counted, summary.counters.late) == (2, 2)
    assert works[2].deadline == OPENED + 120
    fresh = coordinator.check_in("c", OPENED + 1)
    assert fresh.round == 1, "the late work takes no slot, and stops no new work"
    count(coordinator, works[2], 3.0, OPENED + 70)
    assert coordinator.submit(update_of(works[3]), OPENED + 120.5).reason == "deadline-passed"
    summary = count(coordinator, fresh, 0.0, OPENED + 60)
    assert [ref.staleness for ref in summary.commit.updates] == [1, 0]
    assert summary.commit.version.parameters.tolist() == [1.0, 1.0]
    assert coordinator.submit(update_of(replace(works[3], deadline=1e9)), OPENED + 121).reason == "too-stale"


def test_what_was_counted_in_a_round_without_a_quorum_goes_on_to_count():
    coordinator = coordinator_of(ROUNDS | {"late": {}})
    count(coordinator, coordinator.check_in("a", OPENED), 1.0)
    summary = coordinator.tick(OPENED + 60)
    assert summary.commit is None
    assert coordinator.counters == Counters(assigned=1, counted=1)
    summary = count(coordinator, coordinator.check_in("b", OPENED + 61), 2.0, OPENED + 61)
    assert summary.commit.version.parameters.tolist() == [1.5, 1.5]
    assert [ref.staleness for ref in summary.commit.updates] == [0, 0]


@pytest.mark.parametrize("change", [{"assignment_id": "00000000-0"}, {"round": 9}, {"device_id": "stranger"}])
def test_what_no_device_was_given_is_refused_whatever_its_round(change):
    coordinator = buffered()
    work = coordinator.check_in("a", OPENED)
    commits(coordinator, 1)
    answer = coordinator.submit(update_of(replace(work, **change)), OPENED)
    assert isinstance(answer, Rejected)
    assert answer.reason == "round-over"


def test_a_partial_fold_of_updates_of_a_later_version_is_not_taken():
    """An owner that has lost the model may get work of the one after it: of a round that it does not know."""
    plan = parse_plan({"pacing": {"name": "buffered", "buffer": 2}, "selection": "first_come"})
    start = Version(3, np.zeros(2, np.float32), plan.server_optimizer.init(2))
    coordinator = Coordinator("har", LAYOUT, plan, start, round_=3, opened_at=0.0)
    work = Assignment(assignment_id("har", 7, "a"), "har", 7, 7, "a", 100.0)
    partial = folded(plan, 2, [Update(work, np.ones(2, np.float32), 5, 0.5)], [5])
    before = coordinator.snapshot()
    assert not coordinator.take_in(partial, 1.0)
    assert coordinator.snapshot().entries == before.entries
