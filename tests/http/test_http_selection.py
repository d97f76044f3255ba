"""Selectors that know devices, behind HTTP: what they know is in the log, and labels come from phones that agree."""

from pathlib import Path

import numpy as np
import pytest
from cloud_fakes import START
from cloud_world import PAIR, World, problem
from served import served
from tiny_program import PARAMETERS

from flsys_ray.cloud.hosts import LocalHosts
from flsys_ray.core.selection.history import Known
from flsys_ray.device.clock import VirtualClock
from flsys_ray.device.conditions import FixedConditions
from flsys_ray.device.configuration import PhoneConfig
from flsys_ray.device.participation import Habits
from flsys_ray.device.phone import Phone
from flsys_ray.wire.tensors import encode_update

ROUNDS = PAIR["pacing"] | {"over_selection": 1}
KNOWING = ("power_of_choice", "oort", "refl", "class_balance")


def update(loss: float, examples: int = 5, **more: str) -> bytes:
    return encode_update(np.full(PARAMETERS, 0.01, np.float32), examples, loss, 3, more=more)


def restart(world: World) -> None:
    """Lose everything but the store."""
    world.cloud.hosts = LocalHosts(world.store, world.clock, world.meter)
    world.cloud.updates._hosts = world.cloud.checkins.hosts = world.cloud.hosts


def known(world: World) -> dict[str, Known]:
    """Return what the model's owner knows of devices."""
    return world.cloud.hosts.host("acme/tiny")._model._coordinator.snapshot().history.devices


@pytest.mark.parametrize("selection", KNOWING)
def test_what_is_known_is_the_same_after_a_restart(world: World, key: str, selection: str):
    """Twelve devices come by for five rounds; after each, a cloud that starts anew knows what the one before knew."""
    world.training(key, plan=PAIR | {"pacing": ROUNDS, "selection": selection})
    tokens = {f"phone-{number}": world.device(key, f"phone-{number}") for number in range(12)}
    for round_ in range(5):
        for late in (False, True):
            world.clock.now += 40.0 * late  # later in the round all are taken
            for number, token in enumerate(tokens.values()):
                for work in world.check_in(token)["assignments"]:
                    body = update(number / 10 + 0.1, 5 + number, train_s=str(number), labels=f"{number},1,0")
                    assert world.upload(token, work, body).status_code == 200
            if world.info(key)["version"] > round_:
                break
        assert world.info(key)["version"] > round_
        before = known(world)
        restart(world)
        world.info(key)
        assert known(world) == before
    versions = range(1, world.info(key)["version"] + 1)
    lines = [line for number in versions for line in world.manifest(key, number)["updates"]]
    assert set(before) == {line["device_id"] for line in lines}
    assert {found.loss for found in before.values()} <= {line["loss"] for line in lines}
    assert len(before) > 2


def test_what_is_told_of_a_device_is_in_the_versions_manifest(world: World, key: str):
    world.training(key, plan=PAIR | {"selection": "class_balance"})
    for name, more in (("one", {"train_s": "12.5", "labels": "3,2,0"}), ("two", {})):
        token = world.device(key, name)
        assert world.upload(token, world.work(token), update(0.25, **more)).status_code == 200
    lines = {line["train_s"]: line for line in world.manifest(key, 1)["updates"]}
    assert (lines[12.5]["labels"], lines[12.5]["loss"], lines[12.5]["num_steps"]) == ([3, 2, 0], 0.25, 3)
    assert lines[None]["labels"] is None


def test_labels_that_no_plan_asks_for_are_not_kept(world: World, key: str):
    world.training(key, plan=PAIR | {"selection": "oort"})
    for name in ("one", "two"):
        token = world.device(key, name)
        work = world.work(token)
        assert work["label_counts"] is False
        assert world.upload(token, work, update(0.25, labels="3,2,0")).status_code == 200
    assert [line["labels"] for line in world.manifest(key, 1)["updates"]] == [None, None]


@pytest.mark.parametrize(
    ("name", "text"),
    [("train_s", "-1"), ("train_s", "nan"), ("train_s", "1e12"), ("train_s", ""), ("labels", ""), ("labels", "1,,2"),
     ("labels", "1,-2"), ("labels", "1.5"), ("labels", ",".join("1" * 1001)), ("labels", "9" * 10), ("labels", "one"),
     ("labels", "1,2"), ("labels", "1,2,3,4")],
)  # fmt: skip
def test_what_is_told_wrong_is_refused_by_name(world: World, key: str, name: str, text: str):
    world.training(key, plan=PAIR | {"selection": "class_balance"})
    token = world.device(key, "one")
    work = world.work(token)
    found = problem(world.upload(token, work, update(0.25, **{name: text})), 422, "update-unusable")
    assert f"metadata '{name}'" in found["detail"]
    assert world.upload(token, work, update(0.25)).status_code == 200


# Real phones -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("selection", "agrees"), [("class_balance", True), ("class_balance", False), ("first_come", True)]
)
def test_labels_leave_a_phone_only_if_the_plan_asks_and_the_app_agrees(
    world: World, key: str, tmp_path: Path, selection: str, agrees: bool
):
    world.training(key, plan=PAIR | {"pacing": ROUNDS, "selection": selection, "stopping": {"versions": 1}})
    with served(world.http.app) as url:
        habits = Habits(label_counts=agrees)
        config, clock = PhoneConfig(url=url, app_key=key, models=("tiny",), seed=5, habits=habits), VirtualClock(START)
        phones = [Phone(tmp_path / str(n), config, conditions=FixedConditions(), clock=clock) for n in range(2)]
        rng = np.random.default_rng(0)
        for phone in phones:
            for number in range(60):
                x = rng.normal(0, 1, 4).astype(np.float32)
                phone.add_example("tiny", x, 0 if number < 45 else 2, at_s=1e9 + 40.0 * number)
            phone.consent("tiny", granted=True)
        for _ in range(200):
            if world.info(key)["state"] != "training":
                break
            for phone in phones:
                phone.step()
            clock.wait(0.5)
            world.clock.now = clock.now()
        for phone in phones:
            phone.close()
    lines = world.manifest(key, 1)["updates"]
    assert all(line["train_s"] >= 0 for line in lines)
    sent = selection == "class_balance" and agrees
    for line in lines:
        assert (line["labels"] is not None) == sent
        if sent:
            assert (len(line["labels"]), sum(line["labels"]), line["labels"][1]) == (3, line["num_examples"], 0)
    bodies = [world.store.get(place).body for place in world.store.list("models/acme/tiny/rounds/")]
    assert any(b'"labels"' in body for body in bodies) == sent
