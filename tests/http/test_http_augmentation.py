"""Transforms over HTTP: named in the assignment, and refused where the plan meets a program that has no windows."""

from pathlib import Path

import numpy as np
import pytest
from cloud_fakes import START
from cloud_world import PAIR, World, problem
from served import served
from tiny_program import CLASSES

import flsys_ray
from flsys_ray.cloud.replay import replay
from flsys_ray.device.clock import VirtualClock
from flsys_ray.device.conditions import FixedConditions
from flsys_ray.device.configuration import PhoneConfig
from flsys_ray.device.phone import Phone

TRANSFORMS = [{"name": "rotation", "share": 0.5, "max_degrees": 20.0}, {"name": "jitter", "share": 1.0, "sigma": 0.1}]
AUGMENTED = PAIR | {"augmentation": {"transforms": TRANSFORMS}}


@pytest.fixture(scope="module")
def windowed() -> bytes:
    """A program that takes windows of 8 samples and 3 axes."""
    import keras

    layers = [keras.Input((8, 3)), keras.layers.Flatten(), keras.layers.Dense(3, activation="softmax")]
    return flsys_ray.compile(keras.Sequential(layers), classes=list(CLASSES), batch_size=8, name="windowed").data


@pytest.fixture(scope="module")
def texts() -> bytes:
    """A program that takes the numbers of words."""
    import keras

    layers = [keras.Input((6,), dtype="int32"), keras.layers.Embedding(10, 4), keras.layers.GlobalAveragePooling1D()]
    layers.append(keras.layers.Dense(3, activation="softmax"))
    return flsys_ray.compile(keras.Sequential(layers), classes=list(CLASSES), batch_size=8, name="words").data


def test_the_assignment_says_what_the_plan_asks_for(world: World, key: str, windowed: bytes):
    world.draft(key, plan=AUGMENTED)
    assert world.put_program(key, program=windowed).status_code == 200
    assert world.act(key, "start").json()["state"] == "training"
    work = world.work(world.device(key, "one"))
    assert work["augmentation"] == {"transforms": TRANSFORMS, "shared": None}


def test_texts_are_refused_by_name_where_plan_and_program_meet(world: World, key: str, texts: bytes):
    world.draft(key, plan=AUGMENTED)
    found = problem(world.put_program(key, program=texts), 422, "plan-invalid")
    assert "program 'words': rotation changes sensor windows" in found["detail"]
    assert "int32 [6]" in found["detail"]
    assert found["fields"] == ["augmentation.transforms"]
    world.draft(key, plan=PAIR)
    assert world.put_program(key, program=texts).status_code == 200
    reply = world.http.put("/v1/models/tiny", json={"plan": AUGMENTED}, headers={"Authorization": f"Bearer {key}"})
    assert problem(reply, 422, "plan-invalid")["fields"] == ["augmentation.transforms"]
    assert world.info(key)["plan"]["augmentation"]["transforms"] == []


def test_a_transform_that_is_none_is_refused_with_its_place(world: World, key: str):
    plan = {"augmentation": {"transforms": ["jitter", "mirror"]}}
    reply = world.http.put("/v1/models/tiny", json={"plan": plan}, headers={"Authorization": f"Bearer {key}"})
    assert problem(reply, 422, "plan-invalid")["fields"] == ["augmentation.transforms.1"]


def test_real_phones_train_on_changed_windows(world: World, key: str, windowed: bytes, tmp_path: Path):
    pacing = PAIR["pacing"] | {"over_selection": 1}
    local = {"epochs": 2, "learning_rate": 0.05}
    world.draft(key, plan=AUGMENTED | {"pacing": pacing, "local": local, "stopping": {"versions": 3}})
    assert world.put_program(key, program=windowed).status_code == 200
    world.act(key, "start")
    with served(world.http.app) as url:
        config, clock = PhoneConfig(url=url, app_key=key, models=("tiny",), seed=5), VirtualClock(START)
        phones = [Phone(tmp_path / str(n), config, conditions=FixedConditions(), clock=clock) for n in range(2)]
        rng = np.random.default_rng(0)
        for phone in phones:
            for number in range(60):
                window = rng.normal(number % 3, 1, (8, 3)).astype(np.float32)
                phone.add_example("tiny", window, number % 3, at_s=1e9 + 40.0 * number)
            phone.consent("tiny", granted=True)
        kinds: list[str] = []
        while world.info(key)["state"] == "training" and len(kinds) < 200:
            kinds += [phone.step().kind for phone in phones]
            clock.wait(0.5)
        for phone in phones:
            phone.close()
    assert kinds.count("uploaded") == 6
    assert world.rounds(key)[2]["mean_loss"] < world.rounds(key)[0]["mean_loss"]
    assert [one.verdict for one in replay(world.store, "acme/tiny")] == ["equal"] * 4
