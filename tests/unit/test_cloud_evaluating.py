"""Evaluation assignments through every fault of the store: what was acknowledged is summed, once, and never lost."""

import asyncio

import pytest
from cloud_fakes import Crash, FaultyStore, fake_initial
from test_cloud_crashes import MODEL, NAME, Play, plan

from flsys_ray.cloud.evaluating import version_metrics
from flsys_ray.errors import StoreUnavailable
from flsys_ray.storage.memory import MemoryStore
from flsys_ray.wire.schemas import EvaluationRequest

PACING = {"name": "rounds", "cohort": 1, "over_selection": 1, "deadline_s": 60}
ONE = EvaluationRequest(loss_sum=0.1, correct=1, count=2, per_class=[{"label": 1, "count": 2, "correct": 1}])
TWO = EvaluationRequest(loss_sum=0.2, correct=3, count=3, per_class=[{"label": 0, "count": 3, "correct": 3}])


def session(play: Play) -> None:
    play.do(lambda: play.cloud.put_model("acme", NAME, plan(pacing=PACING, evaluation={"cohort": 2})))
    play.put_program()
    play.host(lambda model: model.start(fake_initial))
    for name, metrics in (("b", ONE), ("c", TWO)):
        play.check_in("a", name)  # after a restart, whoever asks first trains: let it be the same one
        assert play.works[name].assignment.assignment_id.endswith("-e")
        play.do(lambda name=name, metrics=metrics: play.cloud.evaluate(play.works[name], metrics))
    play.upload("a", 0.5)


def outcome(store: MemoryStore) -> tuple[object, ...]:
    metrics = version_metrics(store, MODEL, 0)
    assert metrics is not None
    per_class = [(each.label, each.count, each.correct) for each in metrics.per_class or ()]
    return metrics.loss, metrics.accuracy, metrics.examples, metrics.devices, per_class


def test_the_sums_are_exact_and_the_same_after_a_fault_at_any_call_of_the_store():
    clean = FaultyStore(MemoryStore())
    with asyncio.Runner() as runner:
        session(Play(clean, runner))
        expected = outcome(clean.inner)
        assert expected == ((0.1 + 0.2) / 5, 4 / 5, 5, 2, [(0, 3, 3), (1, 2, 1)])
        places = [
            number for number, (verb, key) in enumerate(clean.calls) if verb == "put_new" and "/evaluations/" in key
        ]
        assert len(places) == 2
        for number in places:
            for when in ("before", "after"):
                for fault in (Crash, lambda: StoreUnavailable("the store does not answer")):
                    replayed(runner, number, when, fault, expected)


def replayed(runner, number, when, fault, expected) -> None:
    store, armed = FaultyStore(MemoryStore()), [True]

    def strike(verb: str, key: str) -> None:
        if armed[0] and len(store.calls) == number + 1:
            armed[0] = False
            raise fault()

    setattr(store, when, strike)
    play = Play(store, runner)
    session(play)
    assert outcome(store.inner) == expected, (number, when)
    assert not armed[0]


def test_a_version_of_which_nobody_reported():
    assert version_metrics(MemoryStore(), MODEL, 0) is None


@pytest.mark.parametrize("order", [(ONE, TWO), (TWO, ONE)])
def test_any_order_gives_the_same_bits(order):
    store = MemoryStore()
    for number, metrics in enumerate(order):
        store.put_new(f"models/{MODEL}/evaluations/00000000/x{number}.d", metrics.model_dump_json().encode())
    assert version_metrics(store, MODEL, 0).loss == (0.1 + 0.2) / 5
