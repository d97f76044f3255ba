"""Device tokens: renewed with themselves, revoked one by one or all at once, at every replica, for good."""

import json
import threading
from collections.abc import Iterator

import httpx2
import pytest
from cloud_fakes import Crash, FaultyStore
from cloud_world import OPERATOR_KEY, World, bearer, problem
from fastapi.testclient import TestClient

from flsys_ray.cloud import places, tokens
from flsys_ray.cloud.credentials import DEVICE_TOKEN_LIFE_S, Device
from flsys_ray.cloud.devices import MAX_REVOKED, DeviceRecord, Revocations
from flsys_ray.cloud.hosts import LocalHosts
from flsys_ray.cloud.keys import FRESH_S
from flsys_ray.cloud.service import Cloud
from flsys_ray.errors import Conflict, StoreUnavailable
from flsys_ray.http.app import create_app
from flsys_ray.storage.memory import MemoryStore
from flsys_ray.wire.schemas import EnrolRequest

DAY = 86_400.0
CHECK_IN = {"models": [{"model": "tiny", "examples": 5}]}


def replica(world: World) -> TestClient:
    """Return another replica on the same store."""
    cloud = Cloud(world.store, LocalHosts(world.store, world.clock), world.clock)
    return TestClient(create_app(cloud), raise_server_exceptions=False)


def enrolled(world: World, key: str, name: str = "one") -> dict[str, str]:
    body = {"installation_id": f"installation-{name}"}
    reply = world.http.post("/v1/devices", json=body, headers=bearer(key))
    assert reply.status_code == 201, reply.text
    return dict(reply.json())


def asks(http: TestClient, token: str) -> httpx2.Response:
    return http.post("/v1/checkins", json=CHECK_IN, headers=bearer(token))


def renewal(http: TestClient, token: str) -> httpx2.Response:
    return http.post("/v1/devices/token", headers=bearer(token))


def revoke(world: World, key: str, device_id: str) -> httpx2.Response:
    return world.http.delete(f"/v1/devices/{device_id}", headers=bearer(key))


# Renewal -----------------------------------------------------------------------------------------------------------


def test_a_token_is_renewed_with_itself_as_the_same_device(world: World, key):
    first = enrolled(world, key)
    world.clock.advance(25 * DAY)
    renewed = renewal(world.http, first["token"])
    assert renewed.status_code == 201
    second = renewed.json()
    assert second["device_id"] == first["device_id"]
    assert second["token"] != first["token"]
    assert second["expires_at"] == float(int(world.clock() + DEVICE_TOKEN_LIFE_S))
    world.clock.advance(10 * DAY)
    assert asks(world.http, second["token"]).status_code == 200
    assert "expired" in problem(asks(world.http, first["token"]), 401, "unauthenticated")["detail"]
    problem(renewal(world.http, first["token"]), 401, "unauthenticated")


def test_a_token_of_before_there_were_generations_is_renewed(world: World, key):
    """Such a token says kind, device, app and end, under a header without a key's id."""
    device_id = enrolled(world, key)["device_id"]
    claims = {"kind": "device", "sub": device_id, "app": "acme", "exp": int(world.clock()) + 1000}
    new = tokens.signed(claims, "1", world.cloud.credentials.keys.signer(world.clock())[1])
    body = new.split(".")[1].encode()
    said = tokens.HEADER_OF_BEFORE + b"." + body
    old = (said + b"." + tokens._signature(said, world.cloud.credentials.keys.signer(world.clock())[1])).decode()
    assert asks(world.http, old).status_code == 200
    assert renewal(world.http, old).json()["device_id"] == device_id
    revoke(world, key, device_id)
    problem(asks(world.http, old), 401, "unauthenticated")


# One device --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["app", "operator"])
def test_a_revoked_device_can_do_nothing_any_more(world: World, key, by):
    world.training(key)
    device = enrolled(world, key)
    token, other = device["token"], world.device(key, "two")
    work, elsewhere = world.work(token), replica(world)
    assert asks(elsewhere, token).status_code == 200
    base = "" if by == "app" else "/apps/acme"
    secret = key if by == "app" else OPERATOR_KEY
    for _ in range(2):
        reply = world.http.delete(f"/v1{base}/devices/{device['device_id']}", headers=bearer(secret))
        assert reply.status_code == 204, reply.text
    world.clock.advance(FRESH_S)
    for http in (world.http, elsewhere):
        assert "revoked" in problem(asks(http, token), 401, "unauthenticated")["detail"]
        problem(renewal(http, token), 401, "unauthenticated")
        upload = http.put(work["upload"]["url"], content=world.body(), headers=bearer(token, work["token"]))
        problem(upload, 401, "unauthenticated")
        problem(http.get("/v1/models/tiny/versions/0", headers=bearer(token)), 401, "unauthenticated")
        body = {"installation_id": "installation-one"}
        again = http.post("/v1/devices", json=body, headers=bearer(key))
        assert "revoked" in problem(again, 403, "forbidden")["detail"]
        assert asks(http, other).status_code == 200


def test_a_restarted_cloud_refuses_it_as_well(world: World, key):
    device = enrolled(world, key)
    revoke(world, key, device["device_id"])
    problem(asks(replica(world), device["token"]), 401, "unauthenticated")


def test_a_readmitted_device_enrols_again_and_its_old_token_stays_refused(world: World, key):
    device = enrolled(world, key)
    revoke(world, key, device["device_id"])
    for _ in range(2):
        path = f"/v1/devices/{device['device_id']}/readmit"
        assert world.http.post(path, headers=bearer(key)).status_code == 204
    again = enrolled(world, key)
    assert again["device_id"] == device["device_id"]
    assert asks(world.http, again["token"]).status_code == 200
    problem(asks(world.http, device["token"]), 401, "unauthenticated")
    assert renewal(world.http, again["token"]).status_code == 201
    assert revoke(world, key, device["device_id"]).status_code == 204
    problem(asks(world.http, again["token"]), 401, "unauthenticated")


def test_no_renewal_at_a_replica_that_does_not_know_yet_outlives_a_revocation(world: World, key):
    """A replica may take a token for two seconds more; it never makes another one of it."""
    device, elsewhere = enrolled(world, key), replica(world)
    assert asks(elsewhere, device["token"]).status_code == 200
    revoke(world, key, device["device_id"])
    assert asks(elsewhere, device["token"]).status_code == 200
    assert "revoked" in problem(renewal(elsewhere, device["token"]), 403, "forbidden")["detail"]
    world.http.post(f"/v1/devices/{device['device_id']}/readmit", headers=bearer(key))
    problem(renewal(elsewhere, device["token"]), 401, "unauthenticated")


def test_another_apps_device_is_not_touched(world: World, key):
    theirs = world.app("other")
    device = enrolled(world, theirs)
    assert revoke(world, key, device["device_id"]).status_code == 204
    world.clock.advance(FRESH_S)
    assert asks(world.http, device["token"]).status_code == 200
    assert enrolled(world, theirs)["device_id"] == device["device_id"]


@pytest.mark.parametrize("device_id", ["d-1", "d-" + "g" * 24, "..%2F..%2Fsecrets", "d-" + "0" * 25, "%00"])
def test_what_is_no_device_id(world: World, key, device_id):
    reply = world.http.delete(f"/v1/devices/{device_id}", headers=bearer(key))
    assert reply.status_code in (404, 405, 422), reply.text


def test_an_app_that_is_not_registered_has_no_devices(world: World):
    for method, path in (
        ("DELETE", "/v1/apps/ghost/devices/d-" + "0" * 24),
        ("POST", f"/v1/apps/ghost/devices/d-{'0' * 24}/readmit"),
        ("POST", "/v1/apps/ghost/devices/revoke"),
        ("PUT", "/v1/apps/ghost/attestation"),
        ("PUT", "/v1/apps/ghost/keys/2"),
        ("DELETE", "/v1/apps/ghost/keys/1"),
    ):
        body = {"attestation": "none"} if "attestation" in path else {}
        reply = world.http.request(method, path, json=body, headers=bearer(OPERATOR_KEY))
        problem(reply, 404, "not-found")
    assert not list(world.store.list("devices/ghost"))
    assert not list(world.store.list("revoked/ghost"))


@pytest.mark.parametrize("died_before", [1, 2])
def test_a_revocation_that_died_half_way_is_finished_by_a_repeat(world: World, key, died_before):
    device = enrolled(world, key)
    writes = iter(range(1, 100))

    def before(verb: str, name: str) -> None:
        if verb in ("put_new", "swap") and next(writes) == died_before:
            raise Crash

    store = FaultyStore(world.store)
    cloud = Cloud(store, LocalHosts(store, world.clock), world.clock)
    store.before = before
    with pytest.raises(Crash):
        cloud.enrolment.revoke("acme", device["device_id"])
    restarted = replica(world)
    assert asks(restarted, device["token"]).status_code == 200
    assert tries(world, key, "one").status_code == (201 if died_before == 1 else 403)
    cloud = Cloud(world.store, LocalHosts(world.store, world.clock), world.clock)
    cloud.enrolment.revoke("acme", device["device_id"])
    problem(asks(replica(world), device["token"]), 401, "unauthenticated")


def test_a_store_that_does_not_answer_lets_nobody_in(world: World, key):
    """What cannot be looked up is not taken for good."""
    device = enrolled(world, key)

    def before(verb: str, name: str) -> None:
        if name.startswith("revoked/"):
            raise StoreUnavailable("the store does not answer")

    store = FaultyStore(world.store, before)
    cloud = Cloud(store, LocalHosts(store, world.clock), world.clock)
    with TestClient(create_app(cloud), raise_server_exceptions=False) as http:
        problem(asks(http, device["token"]), 503, "store-unavailable")


# All devices -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by", ["app", "operator"])
def test_all_tokens_of_before_an_instant_are_refused_however_they_were_renewed(world: World, key, by):
    old = enrolled(world, key)["token"]
    theirs = enrolled(world, world.app("other"))["token"]
    world.clock.advance(100)
    young = enrolled(world, key, "two")["token"]
    renewed = renewal(world.http, old).json()["token"]
    world.clock.advance(100)
    path, secret = ("/v1/devices/revoke", key) if by == "app" else ("/v1/apps/acme/devices/revoke", OPERATOR_KEY)
    instant = world.clock() - 150
    reply = world.http.post(path, json={"issued_before": instant}, headers=bearer(secret))
    assert reply.json() == {"issued_before": instant}
    for http in (world.http, replica(world)):
        problem(asks(http, old), 401, "unauthenticated")
        problem(asks(http, renewed), 401, "unauthenticated")
        problem(renewal(http, renewed), 401, "unauthenticated")
        assert asks(http, young).status_code == 200
        assert asks(http, theirs).status_code == 200
    assert asks(world.http, enrolled(world, key)["token"]).status_code == 200  # they may enrol again


def test_the_instant_is_now_by_default_and_only_rises(world: World, key):
    now = world.clock()
    for body, told in (({}, now), ({"issued_before": now - 50}, now), ({"issued_before": now}, now)):
        reply = world.http.post("/v1/devices/revoke", json=body, headers=bearer(key))
        assert reply.json() == {"issued_before": told}
    reply = world.http.post("/v1/devices/revoke", json={"issued_before": now + 1}, headers=bearer(key))
    assert "future" in problem(reply, 422, "invalid-input")["detail"]


# Memory ------------------------------------------------------------------------------------------------------------


def device_id(number: int) -> str:
    return f"d-{number:024x}"


def test_a_revocation_is_dropped_when_no_token_that_it_refuses_is_left(world: World, key):
    gone, kept = enrolled(world, key, "gone"), enrolled(world, key, "kept")
    revoke(world, key, gone["device_id"])
    world.clock.advance(DEVICE_TOKEN_LIFE_S + 2 * DAY)
    revoke(world, key, kept["device_id"])
    held = json.loads(world.store.get(places.revoked("acme")).body)["devices"]
    assert list(held) == [kept["device_id"]]
    body = {"installation_id": "installation-gone"}
    problem(world.http.post("/v1/devices", json=body, headers=bearer(key)), 403, "forbidden")


def test_the_list_of_an_app_is_bounded_and_revoking_all_makes_room():
    store = MemoryStore()
    devices = {device_id(number): (1, 1000.0) for number in range(MAX_REVOKED)}
    body = json.dumps({"issued_before": 0.0, "devices": devices}).encode()
    store.put_new(places.revoked("acme"), body)
    revocations = Revocations(store)
    with pytest.raises(Conflict, match="revoke every token"):
        revocations.add("acme", device_id(MAX_REVOKED), 1, 5000.0)
    assert revocations.add_all("acme", 5000.0, 5000.0) == 5000.0
    revocations.add("acme", device_id(MAX_REVOKED), 1, 5000.0)
    assert revocations.refuses("acme", device_id(3), 0, 900.0, 5000.0)
    assert revocations.refuses("acme", device_id(MAX_REVOKED), 0, 5001.0, 5000.0)
    assert not revocations.refuses("acme", device_id(MAX_REVOKED), 1, 5001.0, 5000.0)


def test_a_look_at_the_store_is_one_and_only_every_two_seconds(world: World, key):
    token = enrolled(world, key)["token"]
    store = FaultyStore(world.store)
    cloud = Cloud(store, LocalHosts(store, world.clock), world.clock)
    for _ in range(5):
        for _ in range(20):
            cloud.credentials.check_device(token, world.clock())
        world.clock.advance(FRESH_S)
    looks = [name for _, name in store.calls if name.startswith("revoked/")]
    assert len(looks) <= 2 * 5


def test_two_replicas_revoke_at_once(world: World, key):
    devices = [enrolled(world, key, f"device-{number}") for number in range(20)]
    clouds = [Cloud(world.store, LocalHosts(world.store, world.clock), world.clock) for _ in range(4)]

    def revoke_some(cloud: Cloud, some: Iterator[dict[str, str]]) -> None:
        for device in some:
            cloud.enrolment.revoke("acme", device["device_id"])

    threads = [
        threading.Thread(target=revoke_some, args=(cloud, devices[number::4])) for number, cloud in enumerate(clouds)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    world.clock.advance(FRESH_S)
    for device in devices:
        problem(asks(world.http, device["token"]), 401, "unauthenticated")


def test_a_device_is_its_id_and_app_whatever_its_token_says_beside():
    assert Device("d", "a", 1, 2.0) == Device("d", "a")
    assert DeviceRecord() == DeviceRecord(generation=0, revoked=False, attested_at=0.0)


# Sybils ------------------------------------------------------------------------------------------------------------


def limited(world: World, **quotas: int) -> str:
    reply = world.http.post("/v1/apps", json={"name": "acme", "quotas": quotas}, headers=bearer(OPERATOR_KEY))
    return str(reply.json()["key"])


def tries(world: World, key: str, name: str) -> httpx2.Response:
    return world.http.post("/v1/devices", json={"installation_id": f"installation-{name}"}, headers=bearer(key))


def test_one_device_too_many(world: World):
    key = limited(world, devices=2)
    for name in ("one", "two", "one", "two"):
        assert tries(world, key, name).status_code == 201
    refused = tries(world, key, "three")
    assert "2 devices" in problem(refused, 429, "quota-exceeded")["detail"]
    assert refused.headers["retry-after"] == "3600"
    assert tries(world, key, "one").status_code == 201
    limited(world, devices=3)
    assert tries(world, key, "three").status_code == 201


def test_too_many_new_devices_an_hour_and_how_the_share_comes_back(world: World):
    key = limited(world, devices_per_hour=4)
    assert [tries(world, key, str(number)).status_code for number in range(4)] == [201] * 4
    refused = tries(world, key, "more")
    problem(refused, 429, "quota-exceeded")
    assert refused.headers["retry-after"] == "900"
    problem(replica(world).post("/v1/devices", json={"installation_id": "elsewhere"}, headers=bearer(key)), 429,
            "quota-exceeded")  # fmt: skip
    world.clock.advance(899)
    problem(tries(world, key, "more"), 429, "quota-exceeded")
    world.clock.advance(1)
    assert tries(world, key, "more").status_code == 201
    world.clock.advance(3600 * 10)
    assert [tries(world, key, f"later-{number}").status_code for number in range(5)] == [201] * 4 + [429]


def test_a_device_counts_once_however_often_and_at_once_it_enrols(world: World):
    key = limited(world, devices=1)
    clouds = [Cloud(world.store, LocalHosts(world.store, world.clock), world.clock) for _ in range(4)]
    told = []

    def enrol(cloud: Cloud) -> None:
        for _ in range(5):
            told.append(cloud.enrolment.enrol("acme", EnrolRequest(installation_id="installation-one")).device_id)

    limited(world, devices=4)  # those that race may hold a place for a moment
    threads = [threading.Thread(target=enrol, args=(cloud,)) for cloud in clouds]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(told) == 20
    assert len(set(told)) == 1
    assert json.loads(world.store.get(places.enrolled("acme")).body)["total"] == 1
    assert tries(world, key, "one").status_code == 201
