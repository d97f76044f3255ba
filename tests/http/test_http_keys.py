"""Keys that change while phones and developers go on: those that sign, and those of apps."""

import base64
import json

import pytest
from cloud_fakes import Clock, Crash, FaultyStore
from cloud_world import OPERATOR_KEY, World, bearer, problem
from fastapi.testclient import TestClient
from test_http_devices import asks, enrolled, renewal, replica

from flsys_ray.cloud import places, tokens
from flsys_ray.cloud.credentials import DEVICE_TOKEN_LIFE_S, Credentials
from flsys_ray.cloud.keys import FRESH_S, KEEP_S, LEAD_S, MAX_KEYS, SigningKeys
from flsys_ray.errors import Unauthenticated
from flsys_ray.storage.memory import MemoryStore


def rotate(http: TestClient, *, retire_old: bool = False) -> list[dict[str, object]]:
    reply = http.post("/v1/keys", json={"retire_old": retire_old}, headers=bearer(OPERATOR_KEY))
    assert reply.status_code == 201, reply.text
    return list(reply.json()["keys"])


def kid_of(token: str) -> str:
    head = token.split(".")[0]
    return str(json.loads(base64.urlsafe_b64decode(head + "=" * (-len(head) % 4)))["kid"])


# Signing keys ------------------------------------------------------------------------------------------------------


def test_a_rotation_pauses_nobody(world: World, key):
    """Two replicas, before, during and after: every token that was ever given is taken at both."""
    world.training(key)
    elsewhere = replica(world)
    given = [enrolled(world, key)["token"]]
    work = world.work(given[0])
    rotate(world.http)
    for _ in range(int(LEAD_S) + 3):
        for http in (world.http, elsewhere):
            given.append(renewal(http, given[-1]).json()["token"])
        for http in (world.http, elsewhere):
            assert {asks(http, token).status_code for token in given} == {200}
        world.clock.advance(1)
    assert [kid_of(token) for token in (given[0], given[-1])] == ["1", "2"]
    upload = elsewhere.put(work["upload"]["url"], content=world.body(), headers=bearer(given[-1], work["token"]))
    assert upload.status_code == 200


def test_ids_of_devices_and_keys_of_apps_stay(world: World, key):
    before = enrolled(world, key)["device_id"]
    for _ in range(3):
        rotate(world.http, retire_old=True)
    assert enrolled(world, key)["device_id"] == before
    assert world.app() == key


def test_an_old_key_verifies_until_its_last_token_has_expired(world: World, key):
    rotate(world.http)
    world.clock.advance(LEAD_S - 1)
    last = enrolled(world, key)["token"]
    assert kid_of(last) == "1"
    world.clock.advance(1)
    assert kid_of(enrolled(world, key)["token"]) == "2"
    world.clock.advance(DEVICE_TOKEN_LIFE_S - 2)
    assert asks(world.http, last).status_code == 200
    world.clock.advance(KEEP_S - DEVICE_TOKEN_LIFE_S + 2)
    listed = world.http.get("/v1/keys", headers=bearer(OPERATOR_KEY)).json()["keys"]
    assert [entry["kid"] for entry in listed] == ["2"]
    rotate(world.http)
    assert '"kid":"1"' not in world.store.get(places.SIGNING_KEYS).body.decode()


def test_a_key_that_is_retired_by_hand_verifies_nothing(world: World, key):
    old = enrolled(world, key)["token"]
    rotate(world.http)
    elsewhere = replica(world)
    world.clock.advance(LEAD_S)
    new = enrolled(world, key)["token"]
    reply = world.http.delete("/v1/keys/1", headers=bearer(OPERATOR_KEY))
    assert [entry["kid"] for entry in reply.json()["keys"]] == ["2"]
    world.clock.advance(FRESH_S)
    for http in (world.http, elsewhere, replica(world)):
        problem(asks(http, old), 401, "unauthenticated")
        assert asks(http, new).status_code == 200
    problem(world.http.delete("/v1/keys/1", headers=bearer(OPERATOR_KEY)), 404, "not-found")
    problem(world.http.delete("/v1/keys/2", headers=bearer(OPERATOR_KEY)), 409, "conflict")


def test_a_leaked_key_is_replaced_at_once(world: World, key):
    old, elsewhere = enrolled(world, key)["token"], replica(world)
    assert asks(elsewhere, old).status_code == 200
    assert [entry["kid"] for entry in rotate(world.http, retire_old=True)] == ["2"]
    problem(asks(world.http, old), 401, "unauthenticated")
    new = enrolled(world, key)["token"]
    assert kid_of(new) == "2"
    world.clock.advance(1)  # the other replica looks for a key that it does not know at most once a second
    assert asks(elsewhere, new).status_code == 200
    problem(asks(elsewhere, old), 401, "unauthenticated")


def test_a_replica_that_nobody_asked_for_long_signs_with_no_retired_key(world: World, key):
    elsewhere = replica(world)
    enrolled(world, key)
    assert elsewhere.post("/v1/devices", json={"installation_id": "early-one"}, headers=bearer(key)).status_code == 201
    rotate(world.http, retire_old=True)
    world.clock.advance(FRESH_S)
    reply = elsewhere.post("/v1/devices", json={"installation_id": "late-one"}, headers=bearer(key))
    assert kid_of(reply.json()["token"]) == "2"
    assert kid_of(elsewhere.post("/v1/devices/nonce", headers=bearer(key)).json()["nonce"]) == "2"


def test_the_other_replicas_are_told_by_the_store_alone(world: World, key):
    """A key that nobody has heard of costs one look at the store a second, however often it is named."""
    store = FaultyStore(world.store)
    credentials = Credentials(store, world.clock)
    forged = tokens.signed({"kind": "device"}, "7", b"k" * 32)
    store.calls.clear()
    for _ in range(50):
        with pytest.raises(Unauthenticated):
            credentials.check_device(forged, world.clock())
        world.clock.advance(0.1)
    assert len(store.calls) <= 6


def test_a_store_of_before_there_was_rotation_opens(clock: Clock):
    """Its one key signs, verifies what it signed, and makes the same device ids and app keys as it did."""
    store, secret = MemoryStore(), bytes(range(32))
    store.put_new(places.SIGNING_KEY, json.dumps({"key": base64.b64encode(secret).decode()}).encode())
    store.put_new("apps/old.json", b'{"app_id": "old"}')
    credentials = Credentials(store, clock)
    key = "flsys_app_old_" + mac_of(secret, "app", "old")
    assert credentials.app_key("old") == key
    assert credentials.check_app(key) == "old"
    assert credentials.device_id("old", "installation") == "d-" + mac_of(secret, "device", "old", "installation")[:24]
    claims = {"kind": "device", "sub": "d-1", "app": "old", "exp": clock() + 60}
    said = tokens.HEADER_OF_BEFORE + b"." + tokens.signed(claims, "1", secret).split(".")[1].encode()
    old = (said + b"." + tokens._signature(said, secret)).decode()
    assert credentials.check_device(old, clock()).device_id == "d-1"
    credentials.keys.rotate(clock(), retire_old=True)
    with pytest.raises(Unauthenticated):
        credentials.check_device(old, clock())
    assert Credentials(store, clock).app_key("old") == key


def mac_of(secret: bytes, *parts: str) -> str:
    import hashlib
    import hmac

    return hmac.new(secret, json.dumps(parts).encode(), hashlib.sha256).hexdigest()[:48]


def test_what_signs_is_not_what_ids_are_made_of(clock: Clock):
    keys = SigningKeys(MemoryStore())
    assert keys.root != keys.signer(clock())[1]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("retire_old", [False, True])
def test_a_crash_in_a_rotation_leaves_the_old_keys_or_the_new_ones(clock: Clock, when, retire_old):
    inner = MemoryStore()
    first = Credentials(inner, clock)
    first.keys.rotate(clock(), retire_old=False)
    clock.advance(LEAD_S)

    def die(verb: str, name: str) -> None:
        if verb in ("put_new", "swap") and name == places.SIGNING_KEYS:
            raise Crash

    store = FaultyStore(inner)
    dying = Credentials(store, clock)
    setattr(store, when, die)
    with pytest.raises(Crash):
        dying.keys.rotate(clock(), retire_old=retire_old)
    kids = [life.kid for life in SigningKeys(inner).lives(clock())]
    assert kids == (["1", "2"] if when == "before" else ["3"] if retire_old else ["1", "2", "3"])


def test_rotations_at_two_replicas_at_once_make_two_keys(clock: Clock):
    store = MemoryStore()
    one, two = SigningKeys(store), SigningKeys(store)
    one.rotate(clock(), retire_old=False)
    two.rotate(clock(), retire_old=False)
    assert [life.kid for life in one.lives(clock())] == ["1", "2", "3"]


def test_keys_in_use_are_bounded(world: World):
    for _ in range(MAX_KEYS - 1):
        rotate(world.http)
    reply = world.http.post("/v1/keys", json={}, headers=bearer(OPERATOR_KEY))
    assert "retire" in problem(reply, 409, "conflict")["detail"]
    assert len(rotate(world.http, retire_old=True)) == 1


# Keys of apps ------------------------------------------------------------------------------------------------------


def new_key(world: World, generation: int, app: str = "acme"):
    return world.http.put(f"/v1/apps/{app}/keys/{generation}", headers=bearer(OPERATOR_KEY))


def revoke_key(world: World, generation: int, app: str = "acme"):
    return world.http.delete(f"/v1/apps/{app}/keys/{generation}", headers=bearer(OPERATOR_KEY))


def opens(http: TestClient, key: str) -> bool:
    status = http.get("/v1/models", headers=bearer(key)).status_code
    assert status in (200, 401)
    return status == 200


def test_an_apps_keys_rotate_with_both_good_in_between(world: World, key):
    elsewhere = replica(world)
    made = [new_key(world, 2) for _ in range(2)]
    assert made[0].json() == made[1].json()
    fresh = made[0].json()
    assert (fresh["generation"], fresh["generations"]) == (2, [1, 2])
    assert fresh["key"] != key
    for http in (world.http, elsewhere):
        assert opens(http, key)
        assert opens(http, fresh["key"])
    asked = world.http.post("/v1/apps", json={"name": "acme"}, headers=bearer(OPERATOR_KEY)).json()
    assert (asked["key"], asked["enrol_key"]) == (fresh["key"], fresh["enrol_key"])
    token = enrolled(world, key)["token"]
    for _ in range(2):
        assert revoke_key(world, 1).status_code == 204
    for http in (world.http, elsewhere):
        assert not opens(http, key)
        assert opens(http, fresh["key"])
    old_enrol = world.cloud.credentials.app_key("acme", 1, kind="enrol")
    body = {"installation_id": "installation-two"}
    problem(world.http.post("/v1/devices", json=body, headers=bearer(old_enrol)), 401, "unauthenticated")
    assert world.http.post("/v1/devices", json=body, headers=bearer(fresh["enrol_key"])).status_code == 201
    assert asks(world.http, token).status_code == 200  # devices stay
    assert world.cloud.credentials.device_id("acme", "installation-one") == enrolled(world, fresh["key"])["device_id"]


def test_generations_come_one_after_the_other_and_never_again(world: World, key):
    problem(new_key(world, 3), 409, "conflict")
    problem(revoke_key(world, 1), 409, "conflict")
    problem(revoke_key(world, 2), 404, "not-found")
    assert new_key(world, 2).status_code == 200
    assert revoke_key(world, 2).status_code == 204
    asked = world.http.post("/v1/apps", json={"name": "acme"}, headers=bearer(OPERATOR_KEY)).json()
    assert (asked["key"], asked["generations"], asked["next_generation"]) == (key, [1], 3)
    problem(new_key(world, 2), 409, "conflict")
    assert new_key(world, 3).status_code == 200
    for generation in range(4, 12):
        assert new_key(world, generation).status_code == 200
    problem(new_key(world, 12), 409, "conflict")


def test_no_key_is_good_for_another_app_generation_or_purpose(world: World, key):
    world.app("other")
    made = new_key(world, 2).json()
    new_key(world, 2, "other")
    secret = made["key"].rpartition("_")[2]
    for forged in (
        f"flsys_app_other_2_{secret}",
        f"flsys_app_acme_{secret}",
        f"flsys_app_acme_1_{secret}",
        f"flsys_app_acme_02_{secret}",
        f"flsys_app_acme_3_{secret}",
        f"flsys_enrol_acme_2_{secret}",
        f"flsys_app_acme_1_{key.rpartition('_')[2]}",
        made["enrol_key"],
        made["enrol_key"].replace("enrol", "app", 1),
        made["key"].replace("_2_", "_²_"),
    ):
        reply = world.http.get("/v1/models", headers={"Authorization": f"Bearer {forged}".encode()})
        problem(reply, 401, "unauthenticated")


def test_the_quotas_of_an_app_and_its_keys_do_not_undo_each_other(world: World, key):
    new_key(world, 2)
    body = {"name": "acme", "quotas": {"models": 3}}
    world.http.post("/v1/apps", json=body, headers=bearer(OPERATOR_KEY))
    assert new_key(world, 2).json()["generations"] == [1, 2]
    revoke_key(world, 1)
    asked = world.http.post("/v1/apps", json={"name": "acme"}, headers=bearer(OPERATOR_KEY)).json()
    assert (asked["quotas"]["models"], asked["generations"]) == (3, [2])
