"""Which version serves, how training goes back to an older one, and how a model is put away."""

import httpx2
import numpy as np
import pytest
from cloud_world import PAIR, World, bearer, problem

from flsys_ray.cloud.replay import replay
from flsys_ray.wire.tensors import decode_vector

ONE = PAIR | {"pacing": {"cohort": 1, "deadline_s": 60}}
BUFFERED = PAIR | {"pacing": {"name": "buffered", "buffer": 1, "concurrency": 8}}


def promote(world: World, key: str, version: object, model: str = "tiny") -> httpx2.Response:
    return world.http.post(f"/v1/models/{model}/promote", json={"version": version}, headers=bearer(key))


def rollback(world: World, key: str, version: object, model: str = "tiny") -> httpx2.Response:
    return world.http.post(f"/v1/models/{model}/rollback", json={"version": version}, headers=bearer(key))


def parameters(world: World, key: str, version: object) -> np.ndarray:
    reply = world.http.get(f"/v1/models/tiny/versions/{version}", headers=bearer(key))
    assert reply.status_code == 200, reply.text
    return decode_vector(reply.content, "parameters", world.size)


def served(world: World, key: str) -> tuple[int, int]:
    """Return the version that phones get for inference, and the one that the cloud runs."""
    latest = world.http.get("/v1/models/tiny/versions/latest", headers=bearer(world.device(key, "reader")))
    run = world.http.post("/v1/models/tiny/infer", json=example(world, key), headers=bearer(key))
    assert run.status_code == 200, run.text
    return int(latest.headers["flsys-version"]), run.json()["version"]


def example(world: World, key: str) -> object:
    shape = world.cloud.manifest("acme/tiny", world.info(key)["program_sha256"]).input_shape
    return {"instances": np.zeros((1, *shape)).tolist()}


# Promoted --------------------------------------------------------------------------------------------------------


def test_inference_follows_the_newest_version_until_one_is_promoted(world: World, key):
    world.training(key, plan=ONE)
    world.commit(key, "one")
    assert served(world, key) == (1, 1)
    for _ in range(2):
        reply = promote(world, key, 0)
        assert (reply.status_code, reply.json()["serving"], reply.json()["promoted"]) == (200, 0, True)
    world.commit(key, "two")
    assert world.info(key)["version"] == 2
    assert served(world, key) == (0, 0)
    assert promote(world, key, None).json()["serving"] == 2
    assert served(world, key) == (2, 2)


def test_a_named_version_is_run_whatever_serves(world: World, key):
    world.training(key, plan=ONE)
    world.commit(key, "one")
    promote(world, key, 0)
    reply = world.http.post("/v1/models/tiny/infer", json=example(world, key) | {"version": 1}, headers=bearer(key))
    assert reply.json()["version"] == 1


def test_an_assignment_tells_whether_its_base_version_serves(world: World, key):
    world.training(key, plan=ONE)
    world.commit(key, "one")
    token = world.device(key, "two")
    assert world.work(token)["serving"] is True
    promote(world, key, 0)
    assert world.work(token)["serving"] is False
    promote(world, key, 1)
    assert world.work(token)["serving"] is True


def test_promoting_survives_the_models_owner(world: World, key):
    world.training(key, plan=ONE)
    world.commit(key, "one")
    promote(world, key, 0)
    world.cloud.hosts._hosts.clear()  # as when its process dies
    assert (world.info(key)["serving"], world.info(key)["version"]) == (0, 1)


# Rolled back -----------------------------------------------------------------------------------------------------


def test_training_goes_on_from_an_older_version_under_a_new_number(world: World, key):
    world.training(key, plan=ONE)
    world.commit(key, "one", value=0.1)
    world.commit(key, "two", value=50.0)
    for _ in range(2):
        reply = rollback(world, key, 1)
        assert (reply.status_code, reply.json()["version"], reply.json()["serving"]) == (200, 3, 3)
    np.testing.assert_array_equal(parameters(world, key, 3), parameters(world, key, 1))
    assert np.abs(parameters(world, key, 2) - parameters(world, key, 1)).max() == 50.0
    world.commit(key, "three", value=0.25)
    np.testing.assert_allclose(parameters(world, key, 4), parameters(world, key, 1) + 0.25, atol=1e-6)


def test_a_manifest_says_what_a_rollback_made(world: World, key):
    world.training(key, plan=ONE)
    world.commit(key, "one")
    world.draft(key, plan=ONE | {"local": {"epochs": 7}})
    world.commit(key, "two")
    world.commit(key, "three")
    assert rollback(world, key, 1).status_code == 200
    old, new = world.manifest(key, 1), world.manifest(key, 4)
    assert (new["restored_from"], new["round"], new["updates"]) == (1, None, [])
    for same in ("weights_sha256", "optimizer_sha256", "optimizer_step", "program_sha256", "plan_sha256"):
        assert new[same] == old[same]
    assert world.manifest(key, 3)["plan_sha256"] != old["plan_sha256"]
    assert old["restored_from"] is None


def test_the_open_round_is_given_up_and_says_so(world: World, key):
    world.training(key)
    world.commit(key)
    counted, open_work = world.device(key, "one"), world.device(key, "two")
    assert world.upload(counted, world.work(counted)).status_code == 200
    work = world.work(open_work)
    assert rollback(world, key, 0).json()["open_round"]["round"] == 2
    last = world.rounds(key)[-1]
    assert (last["round"], last["committed"]) == (1, None)
    assert (last["counters"]["counted"], last["counters"]["late"]) == (1, 1)
    problem(world.upload(open_work, work), 410, "late")
    assert world.give_back(open_work, work).status_code == 204
    world.commit(key)
    assert {line["assignment_id"][:8] for line in world.manifest(key, 3)["updates"]} == {"00000002"}


def test_updates_of_versions_that_were_given_up_never_count_however_stale_they_may_be(world: World, key):
    world.training(key, plan=BUFFERED)
    slow = world.device(key, "slow")
    work = world.work(slow)
    world.commit(key, "one")
    assert rollback(world, key, 0).json()["version"] == 2
    problem(world.upload(slow, work), 410, "late")
    world.cloud.hosts._hosts.clear()  # the next owner finds the update in the store
    assert world.info(key)["open_round"]["counters"]["counted"] == 0
    problem(world.upload(slow, work), 410, "late")
    world.commit(key, "two")
    assert world.info(key)["version"] == 3


def test_a_paused_model_stays_paused(world: World, key):
    world.training(key, plan=ONE)
    world.commit(key, "one")
    world.act(key, "pause")
    assert rollback(world, key, 0).json()["state"] == "paused"
    assert world.act(key, "resume").json()["version"] == 2


def test_going_back_to_the_newest_version_is_nothing_new(world: World, key):
    world.training(key, plan=ONE)
    world.commit(key, "one")
    assert (rollback(world, key, 1).status_code, world.info(key)["version"]) == (200, 1)


def test_no_rollback_reaches_the_plans_end(world: World, key):
    world.training(key, plan=ONE | {"stopping": {"versions": 3}})
    world.commit(key, "one")
    world.commit(key, "two")
    assert "version 3" in problem(rollback(world, key, 0), 409, "conflict")["detail"]
    world.draft(key, plan=ONE | {"stopping": {"versions": 4}})
    assert rollback(world, key, 0).json()["version"] == 3


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_a_replay_understands_it(world: World, key, optimizer):
    world.training(key, plan=ONE | {"server_optimizer": optimizer})
    world.commit(key, "one")
    world.commit(key, "two")
    rollback(world, key, 1)
    world.commit(key, "three")
    rollback(world, key, 3)
    world.commit(key, "four")
    found = [*replay(world.store, "acme/tiny")]
    assert [(one.version, one.verdict) for one in found] == [(number, "equal") for number in range(7)]


def test_a_crash_between_the_rollback_and_its_manifest_is_mended(world: World, key):
    world.training(key, plan=ONE)
    world.commit(key, "one")
    rollback(world, key, 0)
    del world.store._objects["models/acme/tiny/versions/00000002.json"]
    world.cloud.hosts._hosts.clear()
    assert world.info(key)["version"] == 2
    assert world.manifest(key, 2)["restored_from"] == 0


# Archived --------------------------------------------------------------------------------------------------------


def archive(world: World, key: str, model: str = "tiny") -> httpx2.Response:
    return world.act(key, "archive", model)


def listed(world: World, key: str, query: str = "") -> list[tuple[str, str]]:
    reply = world.http.get(f"/v1/models{query}", headers=bearer(key))
    return [(model["model"], model["state"]) for model in reply.json()["models"]]


def test_an_archived_model_leaves_the_list_and_keeps_its_versions(world: World, key):
    world.training(key, plan=ONE)
    world.commit(key, "one")
    world.draft(key, "other")
    problem(archive(world, key), 409, "conflict")
    world.act(key, "stop")
    for _ in range(2):
        assert archive(world, key).json()["state"] == "archived"
    assert listed(world, key) == [("other", "draft")]
    assert listed(world, key, "?archived=true") == [("other", "draft"), ("tiny", "archived")]
    assert served(world, key) == (1, 1)
    assert world.check_in(world.device(key, "two"))["rejections"] == [{"model": "tiny", "reason": "not-training"}]


def test_nothing_changes_an_archived_model(world: World, key):
    world.draft(key)
    assert archive(world, key).status_code == 200
    for action in ("start", "resume", "pause", "stop"):
        problem(world.act(key, action), 409, "conflict")
    problem(world.put_program(key), 409, "conflict")
    problem(world.http.put("/v1/models/tiny", json={"plan": ONE}, headers=bearer(key)), 409, "conflict")
    problem(promote(world, key, None), 409, "conflict")
    problem(rollback(world, key, 0), 409, "conflict")
    assert world.info(key)["state"] == "archived"


# Refused ---------------------------------------------------------------------------------------------------------

CALLS = {"promote": {"version": 0}, "rollback": {"version": 0}, "archive": None}


@pytest.mark.parametrize("call", CALLS)
def test_another_apps_key_is_told_that_there_is_no_such_model(world: World, key, call):
    world.training(key, plan=ONE)
    address = f"/v1/models/tiny/{call}"
    other = world.http.post(address, json=CALLS[call], headers=bearer(world.app("other")))
    nobodys = world.http.post(f"/v1/models/nobodys/{call}", json=CALLS[call], headers=bearer(key))
    problem(nobodys, 404, "not-found")
    assert problem(other, 404, "not-found")["detail"] == "model 'tiny' does not exist"
    for secret in ("nonsense", world.device(key, "one")):
        problem(world.http.post(address, json=CALLS[call], headers=bearer(secret)), 401, "unauthenticated")
    problem(world.http.post(address, json=CALLS[call]), 401, "unauthenticated")
    assert (world.info(key)["state"], world.info(key)["version"]) == ("training", 0)


@pytest.mark.parametrize("call", [promote, rollback])
def test_only_versions_that_are_there(world: World, key, call):
    world.draft(key)
    problem(promote(world, key, 0), 404, "not-found")
    problem(promote(world, key, None), 404, "not-found")
    problem(rollback(world, key, 0), 409, "conflict")
    world.put_program(key)
    world.act(key, "start")
    for missing in (1, 999_999_999):
        problem(call(world, key, missing), 404, "not-found")
    for wrong in (-1, 10**9, 1.5, "one", [0]):
        problem(call(world, key, wrong), 422, "invalid-input")


def test_a_version_must_be_named(world: World, key):
    world.training(key)
    for call in ("promote", "rollback"):
        for body in ({}, {"version": 0, "versoin": 1}):
            reply = world.http.post(f"/v1/models/tiny/{call}", json=body, headers=bearer(key))
            problem(reply, 422, "invalid-input")
    problem(rollback(world, key, None), 422, "invalid-input")


def test_a_finished_model_does_not_go_back(world: World, key):
    world.training(key, plan=ONE)
    world.commit(key, "one")
    world.act(key, "stop")
    problem(rollback(world, key, 0), 409, "conflict")
    assert promote(world, key, 0).json()["serving"] == 0
