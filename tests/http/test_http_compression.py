"""Compression over HTTP: asked for in the assignment, told by the update's metadata, counted as it was decoded."""

from pathlib import Path

import numpy as np
import pytest
from cloud_world import PAIR, World, bearer, problem
from real_phones import two_phones_train
from safetensors.numpy import load
from tiny_program import PARAMETERS

from flsys_ray.cloud.hosts import LocalHosts
from flsys_ray.cloud.replay import replay
from flsys_ray.compression.base import Encoding
from flsys_ray.compression.float16 import Float16
from flsys_ray.compression.int8 import Int8
from flsys_ray.compression.top_k import TopK
from flsys_ray.core.rng import generator
from flsys_ray.wire.tensors import decode_range, encode_compressed, encode_update, max_update_bytes

LOSSY = [Float16(), Int8(block=16), TopK(fraction=0.25)]
every_lossy = pytest.mark.parametrize("encoding", LOSSY, ids=[encoding.name for encoding in LOSSY])


def plan(encoding: Encoding, **changes: object) -> dict[str, object]:
    return PAIR | {"compression": encoding.model_dump()} | changes


def update(encoding: Encoding, seed: int = 0) -> bytes:
    rng = generator(seed, "delta")
    delta = rng.normal(0, 0.1, PARAMETERS).astype(np.float32)
    return encode_compressed(encoding, encoding.encode(delta, rng), 5, 1.0)


def parameters(world: World, key: str, version: int) -> np.ndarray:
    reply = world.http.get(f"/v1/models/tiny/versions/{version}", headers=bearer(key))
    return load(reply.content)["parameters"]


@every_lossy
def test_the_assignment_says_what_the_cloud_takes(world: World, key: str, encoding: Encoding):
    world.training(key, plan=plan(encoding))
    upload = world.work(world.device(key, "one"))["upload"]
    assert upload["encodings"] == [encoding.name, "float32"]
    assert upload["compression"] == encoding.model_dump()
    assert upload["max_bytes"] == max_update_bytes(PARAMETERS, encoding=encoding)


def test_a_plan_whose_encoding_is_larger_than_float32_leaves_room_for_it(world: World, key: str):
    whole = TopK(fraction=1.0)
    world.training(key, plan=plan(whole))
    token = world.device(key, "one")
    work = world.work(token)
    assert work["upload"]["max_bytes"] == 8 * PARAMETERS + 4096
    problem(world.upload(token, work, bytes(8 * PARAMETERS + 4097)), 413, "too-large")
    assert world.upload(token, work, update(whole)).status_code == 200


@every_lossy
def test_the_decoded_delta_is_what_counts_beside_one_in_float32(world: World, key: str, encoding: Encoding):
    world.training(key, plan=plan(encoding))
    bodies = [update(encoding), encode_update(np.full(PARAMETERS, 0.5, np.float32), 5, 1.0)]
    for name, body in zip(("one", "two"), bodies, strict=True):
        token = world.device(key, name)
        assert world.upload(token, world.work(token), body).json() == {"status": "counted", "duplicate": False}
    mean = np.mean([decode_range(body, 0, PARAMETERS) for body in bodies], axis=0)
    np.testing.assert_allclose(parameters(world, key, 1) - parameters(world, key, 0), mean, atol=1e-6)
    assert world.rounds(key)[0]["update_bytes"] == sum(map(len, bodies))


@pytest.mark.parametrize("rule", ["weighted_mean", "coordinate_median"])
@every_lossy
def test_restarts_and_replays_give_the_same_bits(world: World, key: str, encoding: Encoding, rule: str):
    """A rule that sums reads an update once, a rule that sees all of them reads it again from the store."""
    world.training(key, plan=plan(encoding, aggregation=rule))
    for number in range(3):
        for name in ("one", "two"):
            token = world.device(key, name)
            assert world.upload(token, world.work(token), update(encoding, number)).status_code == 200
            world.cloud.hosts = LocalHosts(world.store, world.clock, world.meter)  # everything from the store again
            world.cloud.updates._hosts = world.cloud.checkins.hosts = world.cloud.hosts
    assert world.info(key)["version"] == 3
    assert [one.verdict for one in replay(world.store, "acme/tiny")] == ["equal"] * 4


def test_an_encoding_that_was_not_asked_for_is_refused_and_stores_nothing(world: World, key: str):
    world.training(key, plan=plan(Int8(block=16)))
    token = world.device(key, "one")
    work = world.work(token)
    for other in (Float16(), Int8(block=32), TopK()):
        found = problem(world.upload(token, work, update(other)), 422, "update-unusable")
        assert "is none that the assignment takes" in found["detail"]
    assert world.upload(token, work, update(Int8(block=16))).status_code == 200


def test_hostile_tensors_are_refused_and_store_nothing(world: World, key: str):
    encoding = Int8(block=16)
    world.training(key, plan=plan(encoding))
    token = world.device(key, "one")
    work = world.work(token)
    good = encoding.encode(np.ones(PARAMETERS, np.float32), generator(0, "x"))
    for name, values in (("peaks", np.nan), ("peaks", np.inf), ("peaks", 2000.0), ("delta", -128)):
        parts = good | {name: np.full_like(good[name], values)}
        problem(world.upload(token, work, encode_compressed(encoding, parts, 5, 1.0)), 422, "update-unusable")
    assert world.upload(token, work, update(encoding)).status_code == 200


def test_a_plan_that_comes_later_leaves_work_that_was_given_out_as_it_is(world: World, key: str):
    world.training(key, plan=plan(Int8(block=16)))
    token = world.device(key, "one")
    work = world.work(token)
    world.draft(key, plan=plan(Float16()))
    assert world.upload(token, work, update(Int8(block=16))).status_code == 200


def test_a_plan_with_an_encoding_that_is_none_names_the_field(world: World, key: str):
    reply = world.http.put("/v1/models/tiny", json={"plan": {"compression": "zip"}}, headers=bearer(key))
    assert problem(reply, 422, "plan-invalid")["fields"] == ["compression"]


# Real phones -----------------------------------------------------------------------------------------------------


@every_lossy
def test_real_phones_train_and_a_replay_gives_the_same_bits(world: World, key: str, tmp_path: Path, encoding: Encoding):
    """Two phones, one killed and made again from its folder before each step."""
    pacing = PAIR["pacing"] | {"over_selection": 1}
    local = {"epochs": 2, "learning_rate": 0.05}
    world.training(key, plan=plan(encoding, pacing=pacing, local=local, stopping={"versions": 3}))
    kinds = two_phones_train(world, key, tmp_path)
    assert kinds.count("uploaded") == 6
    bytes_a_round = [closed["update_bytes"] for closed in world.rounds(key)]
    form = sum(part.num_bytes for part in encoding.form(PARAMETERS).values())
    assert all(2 * form < found < 2 * (form + 600) for found in bytes_a_round)
    first, last = world.rounds(key)[0]["mean_loss"], world.rounds(key)[2]["mean_loss"]
    assert last < first
    assert [one.verdict for one in replay(world.store, "acme/tiny")] == ["equal"] * 4
