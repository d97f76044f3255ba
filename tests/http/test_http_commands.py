"""`flsys keys`, `flsys app rotate-key`, `flsys devices revoke`: against a cloud on a port."""

import json
from collections.abc import Iterator

import pytest
from cloud_world import OPERATOR_KEY, World, problem
from commands import flsys
from served import served
from test_http_devices import asks, enrolled

from flsys_ray.cloud.keys import FRESH_S
from flsys_ray.errors import InvalidInput


@pytest.fixture
def url(world: World, monkeypatch, tmp_path) -> Iterator[str]:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setenv("FLSYS_OPERATOR_KEY", OPERATOR_KEY)
    with served(world.http.app) as found:
        monkeypatch.setenv("FLSYS_URL", found)
        yield found


def test_keys_rotate(world: World, url, key):
    token = enrolled(world, key)["token"]
    assert [entry["kid"] for entry in json.loads(flsys("keys", "list", "--json"))["keys"]] == ["1"]
    shown = flsys("keys", "rotate")
    assert "the beginning" in shown
    assert "it is replaced" in shown
    assert asks(world.http, token).status_code == 200
    flsys("keys", "retire", "1")
    problem(asks(world.http, token), 401, "unauthenticated")
    assert [entry["kid"] for entry in json.loads(flsys("keys", "rotate", "--retire", "--json"))["keys"]] == ["3"]


def test_an_apps_key_rotates(world: World, url, key):
    new = flsys("app", "rotate-key", "acme").strip()
    assert new != key
    assert flsys("app", "create", "acme").strip() == new
    made = json.loads(flsys("app", "rotate-key", "acme", "--json"))
    assert made["generations"] == [1, 2, 3]
    flsys("app", "revoke-key", "acme", "1")
    problem(world.http.get("/v1/models", headers={"Authorization": f"Bearer {key}"}), 401, "unauthenticated")
    assert world.http.get("/v1/models", headers={"Authorization": f"Bearer {new}"}).status_code == 200


def test_quotas_of_devices_are_options(world: World, url):
    told = json.loads(flsys("app", "create", "few", "--max-devices", "5", "--max-new-devices-per-hour", "2", "--json"))
    assert (told["quotas"]["devices"], told["quotas"]["devices_per_hour"]) == (5, 2)
    assert told["enrol_key"].startswith("flsys_enrol_few_")


def test_devices_are_revoked_and_readmitted(world: World, url, key, monkeypatch):
    monkeypatch.setenv("FLSYS_APP_KEY", key)
    device = enrolled(world, key)
    flsys("devices", "revoke", device["device_id"])
    world.clock.advance(FRESH_S)
    problem(asks(world.http, device["token"]), 401, "unauthenticated")
    flsys("devices", "readmit", device["device_id"])
    again = enrolled(world, key)["token"]
    assert asks(world.http, again).status_code == 200
    world.clock.advance(1)
    flsys("devices", "revoke", "--all")
    problem(asks(world.http, again), 401, "unauthenticated")
    assert asks(world.http, enrolled(world, key)["token"]).status_code == 200


@pytest.mark.parametrize("words", [(), ("d-" + "0" * 24, "--all")])
def test_revoking_names_one_device_or_all(url, key, words):
    with pytest.raises(InvalidInput, match="--all"):
        flsys("devices", "revoke", *words, "--app-key", key)
