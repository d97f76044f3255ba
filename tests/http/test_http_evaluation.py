"""Evaluation assignments over HTTP: beside the rounds, once a device and version, summed class by class."""

import json
from collections.abc import Iterator

import pytest
from cloud_world import PAIR, World, bearer, problem
from commands import flsys
from served import served

from flsys_ray.cloud.standing import Standings
from flsys_ray.errors import NotFound

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
        "cohort": None,
        "assigned": {"loss": 0.75, "accuracy": 0.5, "examples": 8, "devices": 2, "per_class": CLASSES},
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


def test_what_the_cohort_and_what_others_found_is_told_apart_and_together(world: World, key):
    token, work = evaluator(world, key, "three")
    one = world.device(key, "one")
    assert world.evaluate(one, world.work(one), loss_sum=1.0, correct=6, count=6).status_code == 200
    assert world.evaluate(token, work, loss_sum=4.0, correct=0, count=2, per_class=None).status_code == 200
    assert found(world, key)["cohort"] is None, "a round that is open tells nothing yet"
    world.commit(key)
    told = found(world, key)
    cohort = {"loss": pytest.approx(1 / 6), "accuracy": 1.0, "examples": 6, "devices": 1, "per_class": None}
    assert told["cohort"] == cohort
    assert told["assigned"] == {"loss": 2.0, "accuracy": 0.0, "examples": 2, "devices": 1, "per_class": None}
    both = {"loss": pytest.approx(5 / 8), "accuracy": 0.75, "examples": 8, "devices": 2, "per_class": None}
    assert told["metrics"] == both
    assert world.info(key)["last_metrics"] == both
    assert world.rounds(key)[0]["evaluation"] == cohort


def test_a_report_after_the_round_is_in_the_models_metrics(world: World, key):
    token, work = evaluator(world, key, "three")
    world.commit(key)
    assert world.info(key)["last_metrics"] is None
    assert world.evaluate(token, work).status_code == 200
    assert world.info(key)["last_metrics"]["devices"] == 1


def test_how_far_the_evaluation_is(world: World, key):
    def progress():
        told = world.info(key)["evaluation"]
        return told["version"], told["cohort"], {name: n for name, n in told["counters"].items() if n}

    assert progress() == (0, 2, {})
    token, work = evaluator(world, key, "three")
    fourth = world.device(key, "four")
    world.give_back(fourth, world.work(fourth))
    assert progress() == (0, 2, {"assigned": 2, "pending": 1, "given_back": 1})
    world.evaluate(token, work)
    assert progress() == (0, 2, {"assigned": 2, "counted": 1, "given_back": 1})
    world.cloud.hosts.host("acme/tiny")._model = None  # a new owner knows what the store tells
    assert progress() == (0, 2, {"assigned": 1, "counted": 1})
    assert Standings(world.store, world.clock).info("acme/tiny").evaluation.counters.counted == 1
    world.commit(key)
    assert progress() == (1, 2, {})
    world.draft(key, plan=PAIR)
    assert world.info(key)["evaluation"] is None


def test_the_version_of_a_finished_model_that_serves_is_still_evaluated(world: World, key):
    plan = PLAN | {"evaluation": {"cohort": 2, "every": 2, "deadline_s": 60}}
    world.draft(key, plan=plan)
    for _ in range(3):
        world.commit(key)
    world.act(key, "stop")
    token = world.device(key, "one")
    work = world.work(token)
    assert (work["kind"], work["version"], work["serving"]) == ("evaluate", 3, True)
    assert world.http.get(work["weights"]["url"], headers=bearer(token)).status_code == 200
    assert world.evaluate(token, work).status_code == 200
    assert world.check_in(token)["rejections"] == [{"model": "tiny", "reason": "finished"}]
    assert found(world, key, 3)["assigned"]["devices"] == 1

    assert world.http.post("/v1/models/tiny/promote", json={"version": 1}, headers=bearer(key)).status_code == 200
    world.clock.advance(2)
    assert world.info(key)["evaluation"]["version"] == 1
    for name in ("one", "two"):
        token = world.device(key, name)
        work = world.work(token)
        assert (work["kind"], work["version"]) == ("evaluate", 1)
        assert world.evaluate(token, work).status_code == 200
    assert world.check_in(world.device(key, "three"))["assignments"] == []
    assert world.info(key)["state"] == "finished"


def test_a_finished_model_that_was_evaluated_wakes_nobody(world: World, key):
    world.commit(key)
    world.act(key, "stop")
    for name in ("one", "two"):
        token = world.device(key, name)
        assert world.evaluate(token, world.work(token)).status_code == 200
    world.cloud.checkins.hosts = None  # to ask it would fail
    assert world.check_in(world.device(key, "three"))["rejections"] == [{"model": "tiny", "reason": "finished"}]


def test_training_comes_before_the_evaluation_of_a_finished_model(world: World, key):
    world.act(key, "stop")
    world.training(key, "other")
    work = world.check_in(world.device(key, "one"), "tiny", "other")["assignments"]
    assert [(each["model"], each["kind"]) for each in work] == [("other", "train")]
    for name in ("two", "three"):
        world.check_in(world.device(key, name), "other")
    work = world.check_in(world.device(key, "four"), "tiny", "other")["assignments"]
    assert [(each["model"], each["kind"]) for each in work] == [("tiny", "evaluate")]


@pytest.fixture
def url(world: World) -> Iterator[str]:
    with served(world.http.app) as address:
        yield address


def test_the_command_prints_what_phones_found(world: World, key, url: str):
    words = ["models", "evaluation", "tiny", "--url", url, "--app-key", key]
    assert flsys(*words) == "tiny: version 0: no phone has evaluated it yet\n"
    token, work = evaluator(world, key, "three")
    world.evaluate(token, work, per_class=CLASSES)
    one = world.device(key, "one")
    world.evaluate(one, world.work(one), loss_sum=1.0, correct=2, count=2)
    world.commit(key)
    lines = flsys(*words, "--version", "0").splitlines()
    assert lines[0] == "tiny: version 0: accuracy 0.667, loss 0.667 on 6 examples of 2 phones"
    assert lines[1] == "  phones that trained from it: accuracy 1.000, loss 0.500 on 2 examples of 1 phones"
    assert lines[2] == "  evaluation assignments: accuracy 0.500, loss 0.750 on 4 examples of 1 phones"
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    assert rows == [["a", "3", "0.667"], ["c", "1", "0.000"]]
    assert json.loads(flsys(*words, "--version", "0", "--json")) == found(world, key)
    with pytest.raises(NotFound, match="has no version 9"):
        flsys(*words, "--version", "9")


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
