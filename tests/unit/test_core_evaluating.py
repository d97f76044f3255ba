"""The book of a version's evaluation assignments: slots of their own, ids of their own, counters that reconcile."""

import random

import pytest

from flsys_ray.core.evaluating import EvaluationBook
from flsys_ray.core.ids import assignment_id, evaluation_id, is_evaluation, is_turn_of
from flsys_ray.core.plan import FederatedEvaluation, TrainingPlan, parse_plan
from flsys_ray.core.types import Counters
from flsys_ray.errors import PlanInvalid

WANTS = FederatedEvaluation(every=2, cohort=2, deadline_s=60)


def test_a_plan_asks_for_none_by_default():
    assert TrainingPlan().evaluation is None
    assert parse_plan({"evaluation": {}}).evaluation == FederatedEvaluation(every=1, cohort=16, deadline_s=600.0)
    with pytest.raises(PlanInvalid, match=r"evaluation\.cohort"):
        parse_plan({"evaluation": {"cohort": 0}})
    assert EvaluationBook("m", None, 4).check_in("a", 0.0) is None


def test_ids_are_a_function_of_version_and_device_and_no_training_id():
    key = evaluation_id("m", 4, "a")
    assert is_evaluation(key)
    assert key != evaluation_id("m", 4, "b")
    assert key != evaluation_id("m", 6, "a")
    assert not is_evaluation(assignment_id("m", 4, "a"))
    assert not is_evaluation(assignment_id("m", 4, "a", turn=1))
    assert not is_turn_of(key, assignment_id("m", 4, "a"))


def test_slots_once_a_device_and_every_second_version():
    assert EvaluationBook("m", WANTS, 3).check_in("a", 0.0) is None
    book = EvaluationBook("m", WANTS, 4)
    first = book.check_in("a", 0.0)
    assert (first.version, first.deadline) == (4, 60.0)
    assert book.check_in("a", 30.0) == first
    second = book.check_in("b", 30.0)
    assert book.check_in("c", 30.0) is None
    book.settle(first, "counted")
    assert book.check_in("a", 31.0) is None
    book.settle(second, "given-back")
    assert book.check_in("b", 31.0) is None
    assert book.check_in("c", 31.0).device_id == "c"
    assert book.counters(31.0) == Counters(assigned=3, counted=1, given_back=1, pending=1)
    assert book.counters(92.0) == Counters(assigned=3, counted=1, given_back=1, late=1)
    assert book.check_in("c", 92.0).deadline == 152.0  # came too late: may try again
    book.settle(first, "given-back")
    assert book.counters(92.0).counted == 1


def test_counters_reconcile_in_any_order():
    rng = random.Random(0)
    book, works, now = EvaluationBook("m", FederatedEvaluation(cohort=5, deadline_s=10), 0), [], 0.0
    for _ in range(2000):
        now += rng.random()
        work = book.check_in(f"d{rng.randrange(30)}", now)
        works += [work] if work else []
        if works and rng.random() < 0.5:
            book.settle(rng.choice(works), rng.choice(["counted", "given-back"]))
        found = book.counters(now)
        assert found.assigned == found.counted + found.late + found.given_back + found.pending
