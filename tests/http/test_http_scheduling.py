"""One check-in at the doors of several models: one assignment, the rare model first, and no model waits for another."""

import asyncio
import threading
import time

import pytest
from cloud_world import PAIR, World

from flsys_ray.cloud.checkins import Terms
from flsys_ray.cloud.standing import Standings

WIDE = {"pacing": {"name": "rounds", "cohort": 50, "deadline_s": 600}, "selection": "first_come"}


def given(reply):
    return [work["model"] for work in reply["assignments"]]


def test_a_check_in_carries_one_assignment_and_the_rest_comes_after_the_work(world: World, key):
    world.training(key, "a")
    world.training(key, "b")
    reply = world.check_in(world.device(key, "one"), "a", "b")
    assert len(given(reply)) == 1
    (left,) = {"a", "b"} - set(given(reply))
    assert reply["rejections"] == [{"model": left, "reason": "not-scheduled"}]
    assert reply["retry_after_s"] == 1.0
    assert set(reply["eligibility"]) == {"a", "b"}


def test_the_operator_may_let_a_check_in_carry_more(world: World, key):
    world.cloud.checkins.terms = Terms(assignments=2)
    for model in "abc":
        world.training(key, model)
    reply = world.check_in(world.device(key, "one"), "a", "b", "c")
    assert len(given(reply)) == 2
    assert len(reply["rejections"]) == 1


def test_asking_again_gives_the_same_assignment_whatever_changed_meanwhile(world: World, key):
    """The answer may be lost on its way to the phone; meanwhile another model has become the better choice."""
    world.training(key, "common", WIDE)
    token = world.device(key, "one")
    first = world.check_in(token, "common")
    for name in "abcdefgh":
        world.check_in(world.device(key, name), "common")
    world.training(key, "rare", WIDE)
    again = world.check_in(token, "common", "rare")
    assert [work["assignment_id"] for work in again["assignments"]] == [first["assignments"][0]["assignment_id"]]
    assert given(world.check_in(world.device(key, "new"), "common", "rare")) == ["rare"]


def test_when_the_work_is_done_the_other_model_has_its_turn(world: World, key):
    world.training(key, "a")
    world.training(key, "b")
    token = world.device(key, "one")
    seen = []
    for _ in range(2):
        work = world.check_in(token, "a", "b")["assignments"][0]
        seen.append(work["model"])
        assert world.upload(token, work).status_code == 200
    assert sorted(seen) == ["a", "b"]


def test_a_device_goes_to_the_model_that_few_devices_can_train(world: World, key):
    for model in ("common-1", "common-2", "rare"):
        world.training(key, model, WIDE)
    for number in range(20):
        world.check_in(world.device(key, f"plain-{number}"), "common-1", "common-2")
    replies = [
        world.check_in(world.device(key, f"special-{number}"), "common-1", "common-2", "rare") for number in range(5)
    ]
    assert [given(reply) for reply in replies] == [["rare"]] * 5


def test_a_full_rare_model_leaves_its_devices_to_others(world: World, key):
    world.training(key, "common", WIDE)
    world.training(key, "rare", PAIR | {"pacing": PAIR["pacing"] | {"over_selection": 1}})
    for number in range(6):
        world.check_in(world.device(key, f"plain-{number}"), "common")
    replies = [world.check_in(world.device(key, f"special-{number}"), "common", "rare") for number in range(4)]
    assert [given(reply) for reply in replies] == [["rare"], ["rare"], ["common"], ["common"]]


def test_a_model_that_does_not_train_is_not_asked(world: World, key):
    world.training(key, "tiny")
    world.training(key, "paused")
    world.act(key, "pause", "paused")
    world.draft(key, "draft")
    hosts = world.cloud.checkins.hosts

    class Asked:
        def model(self, name):
            assert name == "acme/tiny"
            return hosts.model(name)

    world.cloud.checkins.hosts = Asked()
    reply = world.check_in(world.device(key, "one"), "draft", "paused", "tiny")
    assert given(reply) == ["tiny"]
    assert {line["reason"] for line in reply["rejections"]} == {"not-training"}


@pytest.mark.parametrize("order", [("slow", "tiny"), ("tiny", "slow")])
def test_a_model_that_does_not_answer_is_passed_over(world: World, key, order):
    world.training(key, "tiny")
    world.training(key, "slow")
    hosts = world.cloud.checkins.hosts

    answers = threading.Event()

    class Slow:
        async def check_in_many(self, device_ids):
            while not answers.is_set():
                await asyncio.sleep(0.01)
            return await hosts.model("acme/slow").check_in_many(device_ids)

    class Half:
        def model(self, name):
            return Slow() if name == "acme/slow" else hosts.model(name)

    class InOrder:
        def order(self, check_in):
            return tuple(f"acme/{name}" for name in order)

    world.cloud.checkins.hosts = Half()
    world.cloud.checkins.terms = Terms(scheduler=InOrder(), hurry_s=0.05, patience_s=60.0)
    begun = time.monotonic()
    reply = world.check_in(world.device(key, "one"), "slow", "tiny")
    assert time.monotonic() - begun < 30.0, "it waited for a model that was not the last one"
    assert given(reply) == ["tiny"]
    reason = "unavailable" if order[0] == "slow" else "not-scheduled"
    assert reply["rejections"] == [{"model": "slow", "reason": reason}]
    threading.Timer(0.5, answers.set).start()
    alone = world.check_in(world.device(key, "two"), "slow")
    assert given(alone) == ["slow"], "a device that has no other model waits"


def test_a_model_s_standing_is_what_its_owner_would_say(world: World, key):
    """Without an owner and without work the store tells everything: drafts, open rounds, paused and finished models."""

    def stands(model="tiny"):
        standings = Standings(world.store, world.clock)
        told = world.info(key, model)
        if told["open_round"] is not None:
            told["open_round"]["candidates"] = 0  # as in an owner that has just come up
        assert standings.info(f"acme/{model}").model_dump(mode="json") == told
        return standings.has_work(f"acme/{model}")

    world.draft(key)
    assert not stands()
    world.put_program(key)
    assert not stands()
    world.act(key, "start")
    assert not stands()
    token = world.device(key, "one")
    work = world.work(token)
    standings = Standings(world.store, world.clock)
    assert not standings.has_work("acme/tiny"), "an assignment alone is in no store: its token says all"
    world.upload(token, work)
    assert Standings(world.store, world.clock).has_work("acme/tiny")
    other = world.device(key, "two")
    world.upload(other, world.work(other))
    assert not stands(), "the round was committed, and the next one is empty"
    world.clock.advance(1.5)
    assert not standings.has_work("acme/tiny"), "what was read before is read on from there"
    world.act(key, "pause")
    assert not stands()
    world.act(key, "stop")
    assert not stands()


@pytest.mark.parametrize(
    "pacing",
    [
        {"name": "buffered", "buffer": 2, "concurrency": 4},
        {"name": "rounds", "cohort": 2, "deadline_s": 60, "late": {"max_staleness": 3}},
    ],
    ids=["buffered", "late"],
)
def test_updates_that_are_in_a_version_are_no_work_under_staleness_either(world: World, key, pacing):
    world.training(key, plan={"pacing": pacing, "selection": "first_come"})
    for _ in range(3):
        world.commit(key)
    assert not Standings(world.store, world.clock).has_work("acme/tiny")
    token = world.device(key, "three")
    assert world.upload(token, world.work(token)).status_code == 200
    assert Standings(world.store, world.clock).has_work("acme/tiny")
