"""The shared set over HTTP: put by the developer, checked, named in assignments, mixed in by phones, found again."""

from pathlib import Path

import numpy as np
import pytest
from cloud_fakes import START
from cloud_world import OPERATOR_KEY, PAIR, World, bearer, problem
from served import served
from test_http_session import other_program
from tiny_program import CLASSES

import flsys_ray
from flsys_ray.augmentation.shared import portion_of
from flsys_ray.cloud import places
from flsys_ray.cloud.hosts import LocalHosts
from flsys_ray.cloud.meter import DOWNLOAD_BYTES
from flsys_ray.cloud.replay import replay
from flsys_ray.cloud.versions import sha256
from flsys_ray.core.rng import generator
from flsys_ray.device.clock import VirtualClock
from flsys_ray.device.conditions import FixedConditions
from flsys_ray.device.configuration import PhoneConfig
from flsys_ray.device.phone import Phone
from flsys_ray.programs.runner import Program
from flsys_ray.wire.shared_sets import SharedSet, encode_shared_set
from flsys_ray.wire.tensors import decode_range

SHARING = PAIR | {"augmentation": {"share": 0.25}, "seed": 5}
MODEL = "acme/tiny"


def shared_set(seed: int = 0, per_class: int = 8) -> bytes:
    y = np.repeat(np.arange(3, dtype=np.int32), per_class)
    return encode_shared_set(SharedSet(np.random.default_rng(seed).normal(y[:, None], 1, (len(y), 4)), y))


BODY = shared_set()


def put_set(world: World, key: str, body: bytes = BODY, model: str = "tiny"):
    return world.http.put(f"/v1/models/{model}/augmentation", content=body, headers=bearer(key))


def put_plan(world: World, key: str, plan: object):
    return world.http.put("/v1/models/tiny", json={"plan": plan}, headers=bearer(key))


def training(world: World, key: str, plan: object = SHARING, body: bytes = BODY) -> None:
    world.draft(key, plan=plan)
    assert world.put_program(key).status_code == 200
    assert put_set(world, key, body).json()["shared_sha256"] == sha256(body)
    assert world.act(key, "start").json()["state"] == "training"


def restart(world: World) -> None:
    world.cloud.hosts = LocalHosts(world.store, world.clock, world.meter)  # everything from the store again
    world.cloud.updates._hosts = world.cloud.checkins.hosts = world.cloud.hosts


def named(world: World, key: str, device: str) -> str | None:
    """Return the hash of the set that a device is told to mix in."""
    asked = world.work(world.device(key, device))["augmentation"]
    return asked["shared"]["sha256"] if asked else None


# The developer -----------------------------------------------------------------------------------------------------


def test_a_start_without_the_set_says_what_is_missing_and_then_works(world: World, key: str):
    world.draft(key, plan=SHARING)
    problem(put_set(world, key), 409, "conflict")  # no program yet, which it must fit
    assert world.put_program(key).status_code == 200
    found = problem(world.act(key, "start"), 409, "conflict")
    assert "augmentation.share mixes in 0.25: PUT /v1/models/tiny/augmentation first" in found["detail"]
    assert world.info(key)["state"] == "draft"
    for _ in range(2):
        assert put_set(world, key).json()["shared_sha256"] == sha256(BODY)
    assert world.act(key, "start").json()["state"] == "training"


def test_a_model_that_trains_takes_a_plan_with_a_share_only_with_a_set(world: World, key: str):
    world.training(key)
    found = problem(put_plan(world, key, SHARING), 422, "plan-invalid")
    assert found["fields"] == ["augmentation.share"]
    assert "`flsys models augment`" in found["detail"]
    assert put_set(world, key).status_code == 200
    assert put_plan(world, key, SHARING).status_code == 200


REFUSED = {
    "not a safetensors file": b"no tensors",
    "'x' has shape [6, 5]": encode_shared_set(SharedSet(np.zeros((6, 5)), np.arange(6) % 3)),
    "'x' has dtype I32": encode_shared_set(SharedSet(np.zeros((6, 4), int), np.arange(6) % 3)),
    "3 of 'a' and 1 of 'b'": encode_shared_set(SharedSet(np.zeros((5, 4)), np.array([0, 0, 0, 1, 2]))),
    "'y' lies in 0 .. 3": encode_shared_set(SharedSet(np.zeros((4, 4)), np.arange(4))),
    "not finite, in example 1": encode_shared_set(SharedSet(np.full((3, 4), [[0], [np.nan], [0]]), np.arange(3))),
    "it is empty": encode_shared_set(SharedSet(np.zeros((0, 4)), np.zeros(0, int))),
}


@pytest.mark.parametrize("why", REFUSED)
def test_a_set_that_phones_could_not_use_is_refused_and_not_stored(world: World, key: str, why: str):
    world.draft(key, plan=SHARING)
    world.put_program(key)
    assert why in problem(put_set(world, key, REFUSED[why]), 422, "data-invalid")["detail"]
    assert not [*world.store.list("models/acme/tiny/augmentation/")]
    assert world.info(key)["shared_sha256"] is None


def test_a_set_that_is_too_large_is_refused_before_it_is_read(world: World, key: str):
    world.draft(key, plan=SHARING)
    world.put_program(key)
    too_large = bearer(key) | {"Content-Length": str(33 * 1024 * 1024)}
    reply = world.http.put("/v1/models/tiny/augmentation", content=b"", headers=too_large)
    assert "33554432 bytes" in problem(reply, 413, "too-large")["detail"]


def test_another_program_needs_another_set(world: World, key: str, tiny):
    import keras

    world.draft(key, plan=SHARING)
    world.put_program(key)
    put_set(world, key)
    layers = [keras.Input((4,)), keras.layers.Dense(3, activation="softmax")]
    other = flsys_ray.compile(keras.Sequential(layers), classes=list(CLASSES), batch_size=8, name="other").data
    assert world.put_program(key, program=other).json()["shared_sha256"] is None
    problem(world.act(key, "start"), 409, "conflict")


def test_sets_count_in_what_an_app_stores(world: World, key: str):
    body = {"name": "acme", "quotas": {"stored_bytes": len(world.program) + len(BODY)}}
    world.http.post("/v1/apps", json=body, headers=bearer(OPERATOR_KEY))
    world.draft(key, plan=SHARING)
    assert world.put_program(key).status_code == 200
    for _ in range(2):
        assert put_set(world, key).status_code == 200  # a repeat takes nothing more
    problem(put_set(world, key, shared_set(1)), 429, "quota-exceeded")
    assert world.info(key)["shared_sha256"] == sha256(BODY)


def test_an_archived_model_takes_none(world: World, key: str):
    world.draft(key)
    world.put_program(key)
    world.act(key, "archive")
    problem(put_set(world, key), 409, "conflict")
    assert not [*world.store.list("models/acme/tiny/augmentation/")]  # where no quota would count it


def test_a_program_that_a_model_does_not_take_is_not_stored(world: World, key: str):
    training(world, key, PAIR)
    stored = [*world.store.list("models/acme/tiny/programs/")]
    problem(world.put_program(key, program=other_program()), 409, "conflict")
    assert [*world.store.list("models/acme/tiny/programs/")] == stored


# Phones ------------------------------------------------------------------------------------------------------------


def test_the_assignment_names_the_set_and_it_can_be_fetched_in_parts(world: World, key: str):
    training(world, key)
    token = world.device(key, "one")
    shared = world.work(token)["augmentation"]["shared"]
    url = f"/v1/models/tiny/augmentation/{sha256(BODY)}"
    assert shared == {"url": url, "sha256": sha256(BODY), "share": 0.25, "seed": 5}
    whole = world.http.get(url, headers=bearer(token))
    assert (whole.status_code, whole.content) == (200, BODY)
    assert whole.headers["etag"] == f'"{sha256(BODY)}"'
    assert "immutable" in whole.headers["cache-control"]
    part = world.http.get(url, headers=bearer(token) | {"Range": "bytes=100-", "If-Range": whole.headers["etag"]})
    assert (part.status_code, part.content) == (206, BODY[100:])
    assert world.http.get(url, headers=bearer(key)).content == BODY
    assert world.meter.total(DOWNLOAD_BYTES, MODEL, "augmentation") == 3 * len(BODY) - 100


def test_nobody_else_reads_or_puts_it(world: World, key: str):
    training(world, key)
    url, other = f"/v1/models/tiny/augmentation/{sha256(BODY)}", world.app("others")
    problem(world.http.get(url), 401, "unauthenticated")
    problem(put_set(world, world.device(key, "one")), 401, "unauthenticated")
    problem(world.http.get(url, headers=bearer(other)), 404, "not-found")
    problem(world.http.get(url, headers=bearer(world.device(other, "two"))), 404, "not-found")
    problem(put_set(world, other), 404, "not-found")
    problem(world.http.get(url.replace(sha256(BODY), "0" * 64), headers=bearer(key)), 404, "not-found")


def test_a_set_without_a_share_is_named_in_no_assignment_and_no_version(world: World, key: str):
    training(world, key, PAIR)
    assert named(world, key, "one") is None
    world.commit(key)
    assert world.manifest(key, 1)["shared_sha256"] is None


def test_an_evaluation_assignment_mixes_nothing_in(world: World, key: str):
    training(world, key, SHARING | {"evaluation": {"cohort": 2}})
    works = [world.work(world.device(key, name)) for name in ("one", "two", "three", "four")]
    assert {work["kind"] for work in works} == {"train", "evaluate"}
    assert all((work["augmentation"] is None) == (work["kind"] == "evaluate") for work in works)


# Rounds, owners, replays -------------------------------------------------------------------------------------------


def test_another_set_is_that_of_the_next_round_and_versions_say_which(world: World, key: str):
    training(world, key)
    other = shared_set(1)
    assert put_set(world, key, other).json()["shared_sha256"] == sha256(other)
    assert named(world, key, "one") == sha256(BODY)
    world.commit(key)
    assert named(world, key, "one") == sha256(other)
    world.commit(key)
    assert [world.manifest(key, n)["shared_sha256"] for n in range(3)] == [None, sha256(BODY), sha256(other)]
    assert [one.verdict for one in replay(world.store, MODEL)] == ["equal"] * 3


def test_a_new_owner_finds_the_set(world: World, key: str):
    training(world, key)
    restart(world)
    assert named(world, key, "one") == sha256(BODY)
    put_set(world, key, shared_set(1))
    restart(world)
    assert named(world, key, "one") == sha256(BODY)
    world.commit(key)
    restart(world)
    assert named(world, key, "one") == sha256(shared_set(1))
    assert world.manifest(key, 1)["shared_sha256"] == sha256(BODY)


def test_a_rollback_names_the_set_of_the_version_that_it_goes_back_to(world: World, key: str):
    training(world, key)
    world.commit(key)
    put_set(world, key, shared_set(1))
    for _ in range(2):
        world.commit(key)
    world.http.post("/v1/models/tiny/rollback", json={"version": 1}, headers=bearer(key))
    names = [sha256(BODY), sha256(BODY), sha256(shared_set(1)), sha256(BODY)]
    assert [world.manifest(key, n)["shared_sha256"] for n in range(1, 5)] == names
    assert named(world, key, "one") == sha256(shared_set(1))


@pytest.mark.parametrize("verdict", ["missing", "changed"])
def test_a_replay_names_a_set_that_is_not_what_the_log_says(world: World, key: str, verdict: str):
    training(world, key)
    world.commit(key)
    place = places.shared(MODEL, sha256(BODY))
    if verdict == "missing":
        del world.store._objects[place]
    else:
        world.store.swap(place, BODY[:-4] + b"\1\0\0\0", world.store.get(place).etag)
    first, second = replay(world.store, MODEL)
    assert first.verdict == "equal"
    assert (second.verdict, place in second.detail) == (verdict, True)


# Real phones -------------------------------------------------------------------------------------------------------


def test_real_phones_fetch_the_set_once_and_train_on_their_portions(world: World, key: str, tmp_path: Path):
    """Each phone has one class only; the deltas are those of the program on its examples and its portion."""
    pacing = PAIR["pacing"] | {"over_selection": 1}
    local = {"epochs": 2, "learning_rate": 0.05}
    training(world, key, SHARING | {"pacing": pacing, "local": local, "stopping": {"versions": 3}})
    x = np.random.default_rng(0).normal(0, 1, (40, 4)).astype(np.float32)
    with served(world.http.app) as url:
        config, clock = PhoneConfig(url=url, app_key=key, models=("tiny",), seed=5), VirtualClock(START)
        phones = [Phone(tmp_path / str(n), config, conditions=FixedConditions(), clock=clock) for n in range(2)]
        for label, phone in enumerate(phones):
            for number in range(40):
                phone.add_example("tiny", x[number] + label, label, at_s=1e9 + 40.0 * number)
            phone.consent("tiny", granted=True)
        kinds: list[str] = []
        while world.info(key)["state"] == "training" and len(kinds) < 200:
            kinds += [phone.step().kind for phone in phones]
            clock.wait(0.5)
        ids = {phone.status().device_id: label for label, phone in enumerate(phones)}
        for phone in phones:
            phone.close()
    assert kinds.count("uploaded") == 6
    assert world.meter.total(DOWNLOAD_BYTES, MODEL, "augmentation") == 2 * len(BODY)
    whole = Program.load(world.program)
    base = whole.init(5)
    y_all = np.repeat(np.arange(3, dtype=np.int32), 8)
    x_all = np.random.default_rng(0).normal(y_all[:, None], 1, (24, 4)).astype(np.float32)
    for line in world.manifest(key, 1)["updates"]:
        label, rows = ids[line["device_id"]], portion_of(24, 0.25, seed=5, device_id=line["device_id"])
        own = x[[n for n in range(40) if n % 5 != 4]] + np.float32(label)
        trained = whole.train(
            base, np.concatenate([own, x_all[rows]]), np.concatenate([np.full(len(own), label), y_all[rows]]),
            epochs=2, learning_rate=0.05, rng=generator(0, "local-training", 0, line["assignment_id"]),
        )  # fmt: skip
        place = places.update(MODEL, 0, line["assignment_id"], line["device_id"])
        np.testing.assert_array_equal(
            decode_range(world.store.get(place).body, 0, world.size), trained.parameters - base
        )
        assert line["num_examples"] == len(own)
    assert [one.verdict for one in replay(world.store, MODEL)] == ["equal"] * 4
