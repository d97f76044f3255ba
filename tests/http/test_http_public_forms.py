"""Compressed downloads over HTTP: one file of weights for all phones, in three ways; versions themselves stay exact."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from cloud_fakes import START
from cloud_world import PAIR, World, bearer, open_world, problem
from safetensors.numpy import load
from served import served
from tiny_program import CLASSES

import flsys_ray
from flsys_ray.cloud import places
from flsys_ray.cloud.hosts import LocalHosts
from flsys_ray.cloud.meter import DOWNLOAD_BYTES
from flsys_ray.cloud.replay import replay
from flsys_ray.cloud.versions import sha256
from flsys_ray.compression.base import Encoding
from flsys_ray.compression.float16 import Float16
from flsys_ray.compression.int8 import Int8
from flsys_ray.compression.public import half, stepped
from flsys_ray.compression.top_k import TopK
from flsys_ray.device.clock import VirtualClock
from flsys_ray.device.conditions import FixedConditions
from flsys_ray.device.configuration import PhoneConfig
from flsys_ray.device.phone import Phone
from flsys_ray.wire.public_forms import decode_half, decode_step
from flsys_ray.wire.tensors import decode_range, decode_vector, encode_update

MODEL = "acme/tiny"
PARAMETERS = 4 * 64 + 64 + 64 * 3 + 3  # enough for a file of them to be more than its header
INT8, TOP_K = Int8(block=16), TopK(fraction=0.05)
ENCODINGS: list[Encoding] = [Float16(), INT8, TOP_K]
every_lossy = pytest.mark.parametrize("encoding", ENCODINGS, ids=[one.name for one in ENCODINGS])


@pytest.fixture(scope="module")
def program() -> bytes:
    import keras

    layers = [keras.Input((4,)), keras.layers.Dense(64, activation="relu"), keras.layers.Dense(3, activation="softmax")]
    return flsys_ray.compile(keras.Sequential(layers), classes=list(CLASSES), batch_size=8, name="small").data


@pytest.fixture
def world(program: bytes) -> Iterator[World]:
    yield from open_world(program, PARAMETERS)


def plan(encoding: Encoding = INT8, **changes: object) -> dict[str, object]:
    return PAIR | {"download": encoding.model_dump()} | changes


def weights(world: World, key: str, name: str = "one") -> dict[str, object]:
    return world.work(world.device(key, name))["weights"]


def fetched(world: World, key: str, url: str) -> bytes:
    reply = world.http.get(url, headers=bearer(key))
    assert reply.status_code == 200, reply.text
    return reply.content


def parameters(world: World, key: str, number: int) -> np.ndarray:
    return load(fetched(world, key, f"/v1/models/tiny/versions/{number}"))["parameters"]


def commit(world: World, key: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for name in ("one", "two"):
        token = world.device(key, name)
        body = encode_update(rng.normal(0, 0.1, PARAMETERS).astype(np.float32), 5, 1.0)
        assert world.upload(token, world.work(token), body).status_code == 200


def restart(world: World) -> None:
    world.cloud.hosts = LocalHosts(world.store, world.clock, world.meter)  # everything from the store again
    world.cloud.updates._hosts = world.cloud.checkins.hosts = world.cloud.hosts


def test_without_it_an_assignment_names_the_version_itself(world: World, key: str):
    world.training(key)
    found = weights(world, key)
    assert found == {"url": "/v1/models/tiny/versions/0", "sha256": found["sha256"], "half": None, "steps": []}
    assert world.manifest(key, 0)["public"] is None
    assert not [*world.store.list(f"models/{MODEL}/public/")]


@every_lossy
def test_all_ways_give_the_one_file_that_the_assignment_names(world: World, key: str, encoding: Encoding):
    world.training(key, plan=plan(encoding))
    before = fetched(world, key, str(weights(world, key)["url"]))
    np.testing.assert_array_equal(decode_vector(before, "parameters", PARAMETERS), half(parameters(world, key, 0)))
    for number in range(1, 4):
        commit(world, key, number)
        found = weights(world, key)
        full = fetched(world, key, str(found["url"]))
        assert sha256(full) == found["sha256"]
        public = decode_vector(full, "parameters", PARAMETERS)
        whole = fetched(world, key, found["half"]["url"])
        np.testing.assert_array_equal(decode_half(whole, PARAMETERS), public)
        assert len(whole) < 0.6 * len(full)
        assert bool(found["steps"]) == (encoding != Float16())
        if found["steps"]:
            step = found["steps"][-1]
            assert (step["before"], step["encoding"]) == (sha256(before), encoding.name)
            body = fetched(world, key, step["url"])
            assert sha256(body) == step["sha256"]
            again = stepped(decode_vector(before, "parameters", PARAMETERS), *decode_step(body, PARAMETERS))
            np.testing.assert_array_equal(again, public)
        before = full


@every_lossy
def test_versions_are_exact_whatever_phones_train_from(world: World, key: str, encoding: Encoding):
    """The same deltas make the same versions, with compressed downloads and without."""
    world.training(key, plan=plan(encoding))
    world.training(key, model="plain")
    for number in range(2):
        for name in ("one", "two"):
            token = world.device(key, name)
            for model in ("tiny", "plain"):
                body = world.body(value=0.1 * number + 0.01)
                assert world.upload(token, world.work(token, model), body).status_code == 200
    found = [world.manifest(key, 2, model)["weights_sha256"] for model in ("tiny", "plain")]
    assert found[0] == found[1]


@pytest.mark.parametrize("rule", ["weighted_mean", "coordinate_median", "scaffold"])
@every_lossy
def test_restarts_and_replays_give_the_same_forms(world: World, key: str, encoding: Encoding, rule: str):
    aggregation = {"name": rule, "devices": 10} if rule == "scaffold" else rule
    world.training(key, plan=plan(encoding, aggregation=aggregation))
    for number in range(3):
        rng = np.random.default_rng(number)
        for name in ("one", "two"):
            token = world.device(key, name)
            delta = rng.normal(0, 0.1, PARAMETERS).astype(np.float32)
            body = encode_update(delta, 5, 1.0, control=delta if rule == "scaffold" else None)
            assert world.upload(token, world.work(token), body).status_code == 200
            restart(world)
    assert [one.verdict for one in replay(world.store, MODEL)] == ["equal"] * 4


def test_a_phone_that_knows_of_no_smaller_way_gets_the_same_parameters_in_full(world: World, key: str):
    """It reads `url` and `sha256`, as it always did."""
    world.training(key, plan=plan())
    commit(world, key, 1)
    found = weights(world, key)
    full = load(fetched(world, key, str(found["url"])))
    assert list(full) == ["parameters"]
    assert (full["parameters"].dtype, full["parameters"].shape) == (np.float32, (PARAMETERS,))


def test_a_plan_can_begin_to_compress_and_stop(world: World, key: str):
    world.training(key)
    world.draft(key, plan=plan())
    assert weights(world, key)["half"] is None  # of the open round
    commit(world, key, 1)
    assert weights(world, key)["steps"] == []
    commit(world, key, 2)
    assert len(weights(world, key)["steps"]) == 1
    world.draft(key, plan=PAIR)
    assert weights(world, key)["half"] is not None
    commit(world, key, 3)
    assert weights(world, key)["half"] is None
    assert [world.manifest(key, number)["public"] is None for number in range(4)] == [True, False, False, True]
    assert [one.verdict for one in replay(world.store, MODEL)] == ["equal"] * 4


def test_steps_are_named_as_long_as_they_are_smaller_than_the_whole(world: World, key: str):
    world.training(key, plan=plan(TOP_K))
    size = len(fetched(world, key, weights(world, key)["half"]["url"]))
    for number in range(1, 5):
        commit(world, key, number)
        steps = world.manifest(key, number)["public"]["steps"]
        assert sum(step["size_bytes"] for step in steps) < size
    places_of_steps = [*world.store.list(f"models/{MODEL}/public/step/")]
    assert len(places_of_steps) == 4


def test_a_rollback_goes_on_from_the_older_versions_form(world: World, key: str):
    world.training(key, plan=plan())
    for number in range(1, 4):
        commit(world, key, number)
    world.http.post("/v1/models/tiny/rollback", json={"version": 1}, headers=bearer(key))
    assert world.manifest(key, 4)["public"] == world.manifest(key, 1)["public"]
    commit(world, key, 5)
    assert world.manifest(key, 5)["public"]["steps"][-1]["before"] == world.manifest(key, 1)["public"]["sha256"]
    restart(world)
    commit(world, key, 6)
    assert [one.verdict for one in replay(world.store, MODEL)] == ["equal"] * 7


@pytest.mark.parametrize("way", ["full", "half", "step"])
def test_a_replay_names_a_file_that_is_gone(world: World, key: str, way: str):
    world.training(key, plan=plan())
    commit(world, key, 1)
    public = world.manifest(key, 1)["public"]
    digest = {"full": public["sha256"], "half": public["half_sha256"], "step": public["steps"][0]["sha256"]}[way]
    del world.store._objects[places.public(MODEL, way, digest)]
    found = [*replay(world.store, MODEL)]
    assert (found[0].verdict, found[1].verdict) == ("equal", "missing")
    assert digest in found[1].detail


def test_a_form_that_is_gone_does_not_stop_a_model(world: World, key: str):
    world.training(key, plan=plan())
    del world.store._objects[places.public(MODEL, "half", world.manifest(key, 0)["public"]["half_sha256"])]
    commit(world, key, 1)
    assert weights(world, key)["steps"] == []


def test_an_evaluation_assignment_is_about_the_version_itself(world: World, key: str):
    world.training(key, plan=plan(evaluation={"cohort": 2}))
    works = [world.work(world.device(key, name)) for name in ("one", "two", "three", "four")]
    assert {work["kind"]: work["weights"]["url"].split("/")[4] for work in works} == {
        "train": "public",
        "evaluate": "versions",
    }


def test_files_belong_to_one_app_and_can_be_had_in_parts(world: World, key: str):
    world.training(key, plan=plan())
    found = weights(world, key)
    url = found["half"]["url"]
    whole = fetched(world, key, url)
    part = world.http.get(url, headers=bearer(world.device(key, "one")) | {"Range": "bytes=50-"})
    assert (part.status_code, part.content) == (206, whole[50:])
    problem(world.http.get(url), 401, "unauthenticated")
    problem(world.http.get(url, headers=bearer(world.app("others"))), 404, "not-found")
    problem(world.http.get(url.replace("half", "step"), headers=bearer(key)), 404, "not-found")
    assert world.http.get(url.replace("half", "other"), headers=bearer(key)).status_code == 422


def test_rounds_tell_the_bytes_of_their_downloads(world: World, key: str):
    """Of versions, in whatever way, in the round in which the next update came."""
    world.training(key)
    sizes = [len(fetched(world, key, "/v1/models/tiny/versions/0")) for _ in range(3)]
    fetched(world, key, f"/v1/models/tiny/program/{sha256(world.program)}")
    commit(world, key, 1)
    assert world.rounds(key)[0]["download_bytes"] == sum(sizes)
    commit(world, key, 2)
    assert world.rounds(key)[1]["download_bytes"] == 0


def test_a_plan_with_an_encoding_that_is_none_names_the_field(world: World, key: str):
    reply = world.http.put("/v1/models/tiny", json={"plan": {"download": "zip"}}, headers=bearer(key))
    assert problem(reply, 422, "plan-invalid")["fields"] == ["download"]


# Real phones -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", [INT8, TOP_K], ids=["int8", "top_k"])
def test_real_phones_download_little_and_train_from_the_form(
    world: World, key: str, tmp_path: Path, encoding: Encoding
):
    """Two phones, one closed and opened again before each step."""
    pacing, local = PAIR["pacing"] | {"over_selection": 1}, {"epochs": 2, "learning_rate": 0.05}
    world.training(key, plan=plan(encoding, pacing=pacing, local=local, stopping={"versions": 4}))
    with served(world.http.app) as url:
        config, clock = PhoneConfig(url=url, app_key=key, models=("tiny",), seed=5), VirtualClock(START)

        def opened(name: str) -> Phone:
            return Phone(tmp_path / name, config, conditions=FixedConditions(), clock=clock)

        phones = [opened(str(number)) for number in range(2)]
        for label, phone in enumerate(phones):
            rng = np.random.default_rng(label)
            for number in range(60):
                phone.add_example("tiny", rng.normal(label, 1, 4).astype(np.float32), label, at_s=1e9 + 40.0 * number)
            phone.consent("tiny", granted=True)
        kinds: list[str] = []
        while world.info(key)["state"] == "training" and len(kinds) < 200:
            phones[0].close()
            phones[0] = opened("0")
            kinds += [phone.step().kind for phone in phones]
            clock.wait(0.5)
        for phone in phones:
            phone.close()
    assert kinds.count("uploaded") == 8
    assert world.rounds(key)[3]["mean_loss"] < world.rounds(key)[0]["mean_loss"]
    got = {way: world.meter.total(DOWNLOAD_BYTES, MODEL, way) for way in ("version", "full", "half", "step")}
    forms = [world.manifest(key, number)["public"] for number in range(4)]
    assert (got["version"], got["full"]) == (0, 0)
    # The first one whole, and the step of each later version, by each of the two.
    assert got["step"] == 2 * sum(form["steps"][-1]["size_bytes"] for form in forms[1:])
    assert got["half"] == 2 * len(world.store.get(places.public(MODEL, "half", forms[0]["half_sha256"])).body)
    assert [one.verdict for one in replay(world.store, MODEL)] == ["equal"] * 5
    # The fourth round's bytes: a step for each, as the replica saw them go.
    told = [closed["download_bytes"] for closed in world.rounds(key)]
    assert told == [got["half"], *(2 * form["steps"][-1]["size_bytes"] for form in forms[1:])]
    # What was uploaded in round 3 is the difference to the form: the mean of both made version 4 of version 3.
    lines = world.manifest(key, 4)["updates"]
    bodies = [world.store.get(places.update(MODEL, 3, one["assignment_id"], one["device_id"])).body for one in lines]
    weights_ = np.array([one["num_examples"] for one in lines], np.float64)
    mean = np.average([decode_range(body, 0, PARAMETERS) for body in bodies], axis=0, weights=weights_)
    np.testing.assert_allclose(parameters(world, key, 4) - parameters(world, key, 3), mean, atol=1e-5)
