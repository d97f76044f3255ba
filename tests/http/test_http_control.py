"""Controls over HTTP (`aggregation: scaffold`): named in the assignment, downloaded, and changed by a second tensor."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from cloud_world import PAIR, World, bearer, problem
from real_phones import two_phones_train
from safetensors.numpy import load, save
from tiny_program import CLASSES, PARAMETERS

import flsys_ray
from flsys_ray.cloud.replay import replay
from flsys_ray.device.database import Database
from flsys_ray.device.journal import Journal
from flsys_ray.wire.tensors import encode_update, max_update_bytes

SCAFFOLD = PAIR | {"aggregation": {"name": "scaffold", "devices": 4}}
METADATA = {"num_examples": "5", "loss": "1.0"}


def body(delta: float = 0.1, control: float | None = 1.0) -> bytes:
    change = None if control is None else np.full(PARAMETERS, control, np.float32)
    return encode_update(np.full(PARAMETERS, delta, np.float32), 5, 1.0, control=change)


@pytest.fixture
def phone(world: World, key: str):
    """A device with an assignment of a model that has a control: (token, work)."""
    world.training(key, plan=SCAFFOLD)
    token = world.device(key, "one")
    return token, world.work(token)


def commit(world: World, key: str, control: float) -> None:
    for name in ("one", "two"):
        token = world.device(key, name)
        assert world.upload(token, world.work(token), body(control=control)).status_code == 200


def test_an_assignment_names_the_control_of_its_version(world: World, key: str, phone):
    token, work = phone
    reply = world.http.get(work["control"]["url"], headers=bearer(token))
    assert reply.status_code == 200
    assert hashlib.sha256(reply.content).hexdigest() == work["control"]["sha256"]
    assert load(reply.content)["control"].tolist() == [0.0] * PARAMETERS
    assert reply.headers["cache-control"] == "private, max-age=31536000, immutable"
    assert work["upload"]["max_bytes"] == max_update_bytes(PARAMETERS, control=True) > 8 * PARAMETERS


def test_a_control_is_resumed_by_range_and_is_another_apps_secret(world: World, key: str, phone):
    token, work = phone
    whole = world.http.get(work["control"]["url"], headers=bearer(token))
    tag = {"Range": "bytes=100-", "If-Range": whole.headers["etag"]}
    rest = world.http.get(work["control"]["url"], headers=bearer(token) | tag)
    assert (rest.status_code, rest.content) == (206, whole.content[100:])
    other = world.device(world.app("other"), "spy")
    problem(world.http.get(work["control"]["url"], headers=bearer(other)), 404, "not-found")
    unknown = work["control"]["url"].replace(work["control"]["sha256"], "0" * 64)
    problem(world.http.get(unknown, headers=bearer(token)), 404, "not-found")


def test_a_commit_moves_the_control_by_the_share_of_devices_that_took_part(world: World, key: str, phone):
    commit(world, key, 2.0)
    work = world.work(world.device(key, "three"))
    reply = world.http.get(work["control"]["url"], headers=bearer(key))
    assert load(reply.content)["control"].tolist() == [1.0] * PARAMETERS  # 2 of 4 devices changed theirs by 2
    assert world.manifest(key, 1)["control_sha256"] == work["control"]["sha256"]


def test_a_model_without_a_control_has_none_anywhere(world: World, key: str):
    world.training(key)
    work = world.work(world.device(key, "one"))
    assert work["control"] is None
    assert world.manifest(key, 0)["control_sha256"] is None
    assert work["upload"]["max_bytes"] == max_update_bytes(PARAMETERS)


def with_control(values: object) -> bytes:
    tensors = {"delta": np.zeros(PARAMETERS, np.float32), "control": np.asarray(values)}
    return save(tensors, METADATA)


def spoilt(value: float) -> np.ndarray:
    control = np.zeros(PARAMETERS, np.float32)
    control[3] = value
    return control


BAD = {
    "missing": (body(control=None), "expected the tensors 'delta' and 'control', found 'delta'"),
    "too long": (with_control(np.zeros(PARAMETERS + 1, np.float32)), f"'control' has shape [{PARAMETERS + 1}]"),
    "float64": (with_control(np.zeros(PARAMETERS)), "'control' has dtype F64"),
    "not a number": (with_control(spoilt(np.nan)), "control of 'hidden/kernel' holds nan at its element 3: not finite"),
    "above the limit": (with_control(spoilt(-1025.0)), "control of 'hidden/kernel' holds -1025.0 at its element 3"),
}


@pytest.mark.parametrize(("sent", "said"), BAD.values(), ids=BAD)
def test_a_control_that_cannot_be_used_is_refused_saying_why(world: World, phone, sent, said):
    token, work = phone
    assert said in problem(world.upload(token, work, sent), 422, "update-unusable")["detail"]
    assert world.upload(token, work, body()).status_code == 200  # nothing was stored in its place


def test_a_control_that_was_not_asked_for_is_refused_saying_why(world: World, key: str):
    world.training(key)
    token = world.device(key, "one")
    reply = world.upload(token, world.work(token), body())
    assert "exactly one tensor 'delta'" in problem(reply, 422, "update-unusable")["detail"]


def test_a_library_may_put_the_tensors_in_another_order(world: World, phone):
    token, work = phone
    assert world.upload(token, work, with_control(np.ones(PARAMETERS, np.float32))).status_code == 200


def test_a_plan_that_comes_later_starts_from_a_control_of_zeros(world: World, key: str):
    world.training(key)
    world.draft(key, plan=SCAFFOLD)
    world.commit(key)  # the round that was open
    token = world.device(key, "three")
    work = world.work(token)
    assert not load(world.http.get(work["control"]["url"], headers=bearer(token)).content)["control"].any()
    commit(world, key, 4.0)
    work = world.work(world.device(key, "four"))
    assert (
        load(world.http.get(work["control"]["url"], headers=bearer(key)).content)["control"].tolist()
        == [2.0] * PARAMETERS
    )


def test_going_back_gives_out_the_older_control(world: World, key: str, phone):
    commit(world, key, 2.0)
    commit(world, key, 6.0)
    before = world.manifest(key, 1)["control_sha256"]
    reply = world.http.post("/v1/models/tiny/rollback", json={"version": 1}, headers=bearer(key))
    assert reply.status_code == 200
    assert world.work(world.device(key, "five"))["control"]["sha256"] == before
    assert world.manifest(key, 3)["control_sha256"] == before


# A program that scaffold cannot correct --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stateful() -> bytes:
    import keras

    layers = [keras.Input((4,)), keras.layers.Dense(3, activation="softmax")]
    return flsys_ray.compile(
        keras.Sequential(layers), classes=list(CLASSES), batch_size=8, local_optimizer="momentum"
    ).data


def test_a_stateful_local_optimizer_is_refused_where_plan_and_program_meet(world: World, key: str, stateful: bytes):
    world.draft(key, plan=SCAFFOLD)
    found = problem(world.put_program(key, program=stateful), 422, "plan-invalid")
    assert "scaffold corrects the steps of plain SGD" in found["detail"]
    assert "'momentum'" in found["detail"]
    world.draft(key, plan=PAIR)
    assert world.put_program(key, program=stateful).status_code == 200
    reply = world.http.put("/v1/models/tiny", json={"plan": SCAFFOLD}, headers=bearer(key))
    assert problem(reply, 422, "plan-invalid")["fields"] == ["aggregation"]
    assert world.act(key, "start").json()["plan"]["aggregation"]["name"] == "weighted_mean"


# Real phones -----------------------------------------------------------------------------------------------------


def test_real_phones_train_with_controls_and_a_replay_gives_the_same_bits(world: World, key: str, tmp_path: Path):
    """Two phones, one killed and made again from its folder before each step; c is the mean of their controls."""
    plan = SCAFFOLD | {
        "aggregation": {"name": "scaffold", "devices": 2},
        "pacing": PAIR["pacing"] | {"over_selection": 1},
        "local": {"epochs": 2, "learning_rate": 0.05},
        "stopping": {"versions": 3},
    }
    world.training(key, plan=plan)
    kinds = two_phones_train(world, key, tmp_path)
    assert kinds.count("uploaded") == 6
    own = [own_control(tmp_path / str(seed)) for seed in range(2)]
    digest = world.manifest(key, 3)["control_sha256"]
    served_control = load(world.http.get(f"/v1/models/tiny/control/{digest}", headers=bearer(key)).content)["control"]
    assert np.abs(served_control - np.mean(own, axis=0)).max() < 1e-5
    assert np.abs(own[0] - own[1]).max() > 0.1
    assert [one.verdict for one in replay(world.store, "acme/tiny")] == ["equal"] * 4


def own_control(folder: Path) -> np.ndarray:
    database = Database(folder / "phone.db")
    found = Journal(database).control("tiny")
    database.close()
    return load(found)["control"]
