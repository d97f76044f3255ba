"""`flsys data uniform` and `flsys models augment`: from a data set to what phones mix in, against a cloud on a port."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from cloud_world import PAIR, World, bearer
from commands import flsys
from safetensors.numpy import load
from served import served

import flsys_ray
from flsys_ray.cloud.versions import sha256
from flsys_ray.data import synthetic
from flsys_ray.data.dataset import open_dataset
from flsys_ray.data.schema import CANONICAL_CLASSES
from flsys_ray.data.splits import split_users
from flsys_ray.errors import DataInvalid, InvalidInput


@pytest.fixture(scope="module")
def windowed() -> bytes:
    import keras

    classes = list(CANONICAL_CLASSES)
    layers = [keras.Input((100, 3)), keras.layers.Flatten(), keras.layers.Dense(len(classes), activation="softmax")]
    return flsys_ray.compile(keras.Sequential(layers), classes=classes, batch_size=8, name="windowed").data


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    synthetic.write(folder / "people", synthetic.Plan(users=6, minutes=20))
    return folder


@pytest.fixture
def model(world: World, key: str, windowed: bytes, data: Path, monkeypatch, tmp_path) -> Iterator[World]:
    world.draft(key, "windowed", PAIR | {"augmentation": {"share": 0.5}})
    assert world.put_program(key, "windowed", windowed).status_code == 200
    monkeypatch.setenv("FLSYS_DATA", str(data))
    monkeypatch.setenv("FLSYS_APP_KEY", key)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    with served(world.http.app) as found:
        monkeypatch.setenv("FLSYS_URL", found)
        yield world


def shared_set(world: World, key: str) -> dict[str, np.ndarray]:
    digest = world.info(key, "windowed")["shared_sha256"]
    return load(world.http.get(f"/v1/models/windowed/augmentation/{digest}", headers=bearer(key)).content)


def of_users(users: tuple[str, ...]) -> set[bytes]:
    return {x.tobytes() for user in users for x in open_dataset("people").examples(user).x}


def test_a_set_is_drawn_from_users_that_no_evaluation_holds_out(model: World, key: str):
    shown = flsys("models", "augment", "windowed", "--data", "people", "--examples-per-class", "7")
    assert "phones mix in 50% of it" in shown
    found = shared_set(model, key)
    assert np.bincount(found["y"]).tolist() == [7] * 5
    training, held_out = split_users(open_dataset("people").users, 0.2, 0)
    assert {x.tobytes() for x in found["x"]} <= of_users(training)
    assert {x.tobytes() for x in found["x"]}.isdisjoint(of_users(held_out))
    assert json.loads(flsys("models", "start", "windowed", "--json"))["state"] == "training"


def test_a_uniform_set_is_made_first_and_is_the_same_from_its_folder(model: World, key: str, data: Path, tmp_path):
    make = ("data", "uniform", "people", "--name", "given", "--examples-per-class", "5", "--seed", "2")
    assert json.loads(flsys(*make, "--out", str(tmp_path), "--json"))["windows"] == 25
    digest = json.loads(flsys("models", "augment", "windowed", "--data", str(tmp_path / "given"), "--held-out", "0",
                              "--json"))["shared_sha256"]  # fmt: skip
    found = shared_set(model, key)
    assert np.bincount(found["y"]).tolist() == [5] * 5
    direct = ("models", "augment", "windowed", "--data", "people", "--examples-per-class", "5", "--seed", "2")
    flsys(*direct)
    again = shared_set(model, key)
    assert {x.tobytes() for x in again["x"]} == {x.tobytes() for x in found["x"]}
    # A file that was made elsewhere.
    body = model.http.get(f"/v1/models/windowed/augmentation/{digest}", headers=bearer(key)).content
    (tmp_path / "set.safetensors").write_bytes(body)
    file = json.loads(flsys("models", "augment", "windowed", "--file", str(tmp_path / "set.safetensors"), "--json"))
    assert file["shared_sha256"] == digest == sha256(body)


def test_named_users_are_the_only_ones(model: World, key: str):
    users = open_dataset("people").users[:3]
    flsys("models", "augment", "windowed", "--data", "people", "--users", ",".join(users))
    assert {x.tobytes() for x in shared_set(model, key)["x"]} <= of_users(users)


def test_what_cannot_be_is_said(model: World, key: str, tmp_path):
    def refused(error: type[Exception], match: str, *words: str) -> None:
        with pytest.raises(error, match=match):
            flsys(*words)

    augment = ("models", "augment", "windowed")
    refused(InvalidInput, "either --data DATASET or --file FILE", *augment)
    refused(InvalidInput, "has no user nobody", *augment, "--data", "people", "--users", "nobody")
    refused(DataInvalid, "90000 examples a class", *augment, "--data", "people", "--examples-per-class", "90000")
    refused(InvalidInput, "is no name of a folder", "data", "uniform", "people", "--name", "../given")
    refused(DataInvalid, "the folder 'people' is there", "data", "uniform", "people", "--name", "people")
    model.draft(key, "empty")
    refused(InvalidInput, "has no program", "models", "augment", "empty", "--data", "people")
