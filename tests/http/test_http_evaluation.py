"""Evaluation assignments over HTTP: beside the rounds, once a device and version, summed class by class."""

import pytest
from cloud_world import PAIR, World, bearer, problem

PLAN = PAIR | {"evaluation": {"cohort": 2, "deadline_s": 60}}
CLASSES = [{"label": 0, "count": 3, "correct": 2}, {"label": 2, "count": 1, "correct": 0}]


@pytest.fixture
def key(world: World) -> str:
    key = world.app()
    world.training(key, plan=PLAN | {"pacing": PAIR["pacing"] | {"over_selection": 1}})
    return key


def evaluator(world: World, key: str, name: str):
    """Fill the round's slots with others, and return the token and evaluation assignment of one more device."""
    for other in ("one", "two"):
        world.check_in(world.device(key, other))
    token = world.device(key, name)
    work = world.work(token)
    assert work["kind"] == "evaluate"
    return token, work


def found(world: World, key: str, number: object = 0):
    reply = world.http.get(f"/v1/models/tiny/versions/{number}/evaluation", headers=bearer(key))
    assert reply.status_code == 200, reply.text
    return reply.json()


def test_who_does_not_train_evaluates_and_no_round_sees_it(world: World, key):
    assert found(world, key)["metrics"] is None
    token, work = evaluator(world, key, "three")
    assert world.work(token) == work | {"token": world.work(token)["token"]}
    fourth = world.device(key, "four")
    assert world.evaluate(fourth, world.work(fourth)).status_code == 200
    assert world.check_in(world.device(key, "five"))["rejections"] == [{"model": "tiny", "reason": "round-full"}]
    for duplicate in (False, True):
        reply = world.evaluate(token, work, per_class=CLASSES)
        assert reply.json() == {"status": "counted", "duplicate": duplicate}
    assert world.check_in(token)["assignments"] == []
    assert found(world, key, "latest") == {
        "model": "tiny",
        "version": 0,
        "classes": ["a", "b", "c"],
        "metrics": {"loss": 0.75, "accuracy": 0.5, "examples": 8, "devices": 2, "per_class": CLASSES},
    }
    world.commit(key)
    closed = world.rounds(key)[0]
    assert closed["counters"] == {"assigned": 2, "counted": 2, "late": 0, "given_back": 0, "pending": 0}
    assert closed["evaluation"] is None
    assert found(world, key, 1)["metrics"] is None
    assert world.evaluate(token, work).json()["duplicate"]  # a phone that did not hear the answer


def test_without_being_asked_for_there_are_none(world: World):
    key = world.app()
    world.training(key, plan=PAIR | {"pacing": PAIR["pacing"] | {"over_selection": 1}})
    for name in ("one", "two"):
        assert world.work(world.device(key, name))["kind"] == "train"
    assert world.check_in(world.device(key, "three"))["assignments"] == []


def test_training_evaluations_may_name_classes_too(world: World, key):
    token = world.device(key, "one")
    assert world.evaluate(token, world.work(token), per_class=CLASSES, correct=2, count=4).status_code == 200
    world.commit(key)
    assert world.info(key)["last_metrics"]["per_class"] == CLASSES


def test_given_back_and_late(world: World, key):
    token, work = evaluator(world, key, "three")
    assert world.give_back(token, work).status_code == 204
    assert world.give_back(token, work).status_code == 204
    assert world.check_in(token)["assignments"] == []
    fourth = world.device(key, "four")
    work = world.work(fourth)
    world.clock.advance(61)
    problem(world.evaluate(fourth, work), 410, "late")


def test_it_takes_no_update(world: World, key):
    token, work = evaluator(world, key, "three")
    problem(world.upload(token, work), 409, "conflict")
    assert world.info(key)["open_round"]["counters"]["counted"] == 0


@pytest.mark.parametrize(
    "per_class",
    [
        [{"label": 3, "count": 4, "correct": 2}],
        [{"label": 0, "count": 2, "correct": 1}] * 2,
        [{"label": 0, "count": 3, "correct": 2}],
        [{"label": 0, "count": 4, "correct": 1}],
        [{"label": 0, "count": 1, "correct": 2}, {"label": 1, "count": 3, "correct": 0}],
        [],
    ],
)
def test_classes_that_make_no_sense_are_refused(world: World, key, per_class):
    token, work = evaluator(world, key, "three")
    problem(world.evaluate(token, work, per_class=per_class), 422, "invalid-input")


def test_who_may_do_what(world: World, key):
    token, work = evaluator(world, key, "three")
    address = "/v1/models/tiny/versions/0/evaluation"
    problem(world.http.get(address), 401, "unauthenticated")
    problem(world.http.get(address, headers=bearer(token)), 401, "unauthenticated")
    problem(world.http.get(address, headers=bearer(world.app("other"))), 404, "not-found")
    problem(world.http.get("/v1/models/tiny/versions/7/evaluation", headers=bearer(key)), 404, "not-found")
    problem(world.http.get("/v1/models/tiny/versions/x/evaluation", headers=bearer(key)), 422, "invalid-input")
    problem(world.evaluate(world.device(key, "four"), work), 403, "forbidden")


def test_a_new_owner_knows_who_evaluated(world: World, key):
    token, work = evaluator(world, key, "three")
    assert world.evaluate(token, work).status_code == 200
    world.cloud.hosts.host("acme/tiny")._model = None
    for other in ("one", "two"):  # who was at work asks again
        world.check_in(world.device(key, other))
    assert world.check_in(token)["assignments"] == []
    assert world.work(world.device(key, "four"))["kind"] == "evaluate"
    assert world.check_in(world.device(key, "five"))["assignments"] == []
    assert found(world, key)["metrics"]["devices"] == 1
