"""Phones that must prove what they are: fresh evidence of their own, good once, judged by the app's verifier."""

import base64
import hashlib
import json
import subprocess
import sys
from typing import Any

import httpx2
import pytest
from cloud_world import OPERATOR_KEY, World, bearer, problem
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from pydantic import ValidationError
from served import served
from test_http_devices import asks, replica

from flsys_ray.cloud.attestation.base import ACCEPTED, VERIFIERS
from flsys_ray.cloud.attestation.ed25519 import Ed25519
from flsys_ray.cloud.attestation.shared_secret import SharedSecret
from flsys_ray.cloud.credentials import NONCE_LIFE_S
from flsys_ray.cloud.store_format import prepare
from flsys_ray.device.attestation import shared_secret
from flsys_ray.device.client import CloudClient
from flsys_ray.errors import Forbidden, InvalidInput, TryLater
from flsys_ray.wire.access import statement

SECRET = "a-secret-of-the-test-0123456789-0123456789"
ID = "installation-one"
SHARED = {"name": "shared_secret", "secret": SECRET}


def set_attestation(world: World, key: str, attestation: Any) -> httpx2.Response:
    reply = world.http.put("/v1/attestation", json={"attestation": attestation}, headers=bearer(key))
    assert reply.status_code == 200, reply.text
    return reply


def nonce(world: World, key: str) -> str:
    reply = world.http.post("/v1/devices/nonce", headers=bearer(key))
    assert reply.status_code == 201, reply.text
    assert reply.json()["expires_in_s"] == NONCE_LIFE_S
    return str(reply.json()["nonce"])


def enrol(http: Any, key: str, found: str | None, evidence: str | None, installation: str = ID) -> httpx2.Response:
    body = {"installation_id": installation, "nonce": found, "attestation": evidence}
    return http.post("/v1/devices", json=body, headers=bearer(key))


def refused(reply: httpx2.Response) -> str:
    return str(problem(reply, 403, "forbidden")["detail"])


@pytest.fixture
def attesting(world: World, key: str) -> str:
    set_attestation(world, key, SHARED)
    return key


# The shared secret -------------------------------------------------------------------------------------------------


def test_a_phone_that_knows_the_secret_enrols(world: World, attesting):
    found = nonce(world, attesting)
    reply = enrol(world.http, attesting, found, shared_secret(SECRET)(ID, found))
    assert reply.status_code == 201
    assert asks(world.http, reply.json()["token"]).status_code == 200
    renewed = world.http.post("/v1/devices/token", headers=bearer(reply.json()["token"]))
    assert renewed.status_code == 201  # without evidence


def test_without_evidence_or_with_that_of_another_secret_nobody_enrols(world: World, attesting):
    assert "send a nonce and evidence" in refused(enrol(world.http, attesting, None, None))
    found = nonce(world, attesting)
    refused(enrol(world.http, attesting, found, None))
    refused(enrol(world.http, attesting, None, shared_secret(SECRET)(ID, found)))
    good = shared_secret(SECRET)(ID, found)
    for wrong in ("", "0" * 64, shared_secret(SECRET + "x")(ID, found), good.upper(), good[:-1], good + "0", "é" * 64):
        text = refused(enrol(world.http, attesting, found, wrong))
        assert SECRET not in text
    assert not list(world.store.list("devices/"))
    assert enrol(world.http, attesting, found, good).status_code == 201  # a refusal has not used the nonce up


def test_evidence_is_of_one_installation_one_nonce_and_one_app(world: World, attesting):
    theirs = world.app("other")
    set_attestation(world, theirs, SHARED)
    found = nonce(world, attesting)
    refused(enrol(world.http, attesting, found, shared_secret(SECRET)(ID, found), "installation-two"))
    refused(enrol(world.http, attesting, nonce(world, attesting), shared_secret(SECRET)(ID, found)))
    assert "nonce" in refused(enrol(world.http, theirs, found, shared_secret(SECRET)(ID, found)))
    device = world.app()  # a token is no nonce
    assert "nonce" in refused(enrol(world.http, attesting, device, shared_secret(SECRET)(ID, device)))
    for senseless in ("", "x", "a.b.c", "\u0000", found[:-3]):
        assert "nonce" in refused(enrol(world.http, attesting, senseless, shared_secret(SECRET)(ID, senseless)))


def test_a_nonce_is_good_for_five_minutes(world: World, attesting):
    found = nonce(world, attesting)
    world.clock.advance(NONCE_LIFE_S)
    assert "older than 300 s" in refused(enrol(world.http, attesting, found, shared_secret(SECRET)(ID, found)))
    found = nonce(world, attesting)
    world.clock.advance(NONCE_LIFE_S - 1)
    assert enrol(world.http, attesting, found, shared_secret(SECRET)(ID, found)).status_code == 201


def test_evidence_that_was_used_is_refused_at_every_replica(world: World, attesting):
    """The record of the device remembers the newest nonce: older evidence that was never sent is refused too."""
    older = nonce(world, attesting)
    world.clock.advance(1)
    found = nonce(world, attesting)
    evidence = shared_secret(SECRET)(ID, found)
    assert enrol(world.http, attesting, found, evidence).status_code == 201
    for http in (world.http, replica(world)):
        assert "used before" in refused(enrol(http, attesting, found, evidence))
        refused(enrol(http, attesting, older, shared_secret(SECRET)(ID, older)))
    world.clock.advance(1)
    again = nonce(world, attesting)
    assert enrol(replica(world), attesting, again, shared_secret(SECRET)(ID, again)).status_code == 201


# Setting -----------------------------------------------------------------------------------------------------------


def test_what_is_set_is_told_by_name_alone(world: World, attesting):
    told = world.http.get("/v1/attestation", headers=bearer(attesting))
    assert told.json() == {"attestation": "shared_secret"}
    operator = world.http.put("/v1/apps/acme/attestation", json={"attestation": SHARED}, headers=bearer(OPERATOR_KEY))
    assert SECRET not in operator.text
    again = world.http.post("/v1/apps", json={"name": "acme"}, headers=bearer(OPERATOR_KEY))
    assert SECRET not in again.text
    assert SECRET not in repr(SharedSecret(secret=SECRET))
    set_attestation(world, attesting, "none")
    assert enrol(world.http, attesting, None, None).status_code == 201


@pytest.mark.parametrize(
    "wrong",
    [
        "sgx", {"name": "shared_secret"}, {"name": "shared_secret", "secret": "short"}, SHARED | {"more": 1},
        {"name": "ed25519", "public_key": "x" * 44}, {"name": "ed25519", "public_key": "AAAA"}, None, 5, [],
        {"name": ["none"]}, {"secret": SECRET},
    ],
    ids=str,
)  # fmt: skip
def test_what_cannot_be_set(world: World, key, wrong):
    reply = world.http.put("/v1/attestation", json={"attestation": wrong}, headers=bearer(key))
    problem(reply, 422, "invalid-input")
    assert SECRET not in reply.text


def test_devices_that_enrolled_before_stay_until_all_tokens_are_revoked(world: World, key):
    token = world.device(key, "one")
    set_attestation(world, key, SHARED)
    assert asks(world.http, token).status_code == 200
    world.clock.advance(1)
    world.http.post("/v1/devices/revoke", json={}, headers=bearer(key))
    problem(asks(world.http, token), 401, "unauthenticated")
    refused(enrol(world.http, key, None, None))


# Signatures, and verifiers of others -------------------------------------------------------------------------------


def service() -> tuple[Ed25519PrivateKey, dict[str, str]]:
    """Return the private key of an app's attestation service, and what the cloud is told."""
    private = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    public = base64.b64encode(private.public_key().public_bytes_raw()).decode()
    return private, {"name": "ed25519", "public_key": public}


def test_the_signature_of_the_apps_own_service_enrols(world: World, key):
    private, told = service()
    set_attestation(world, key, told)
    found = nonce(world, key)
    signature = private.sign(statement(found, ID))
    other = Ed25519PrivateKey.from_private_bytes(bytes(32)).sign(statement(found, ID))
    for wrong in (other, signature[:-1], b"", signature + b"\0", private.sign(statement(found, "another-one"))):
        refused(enrol(world.http, key, found, base64.b64encode(wrong).decode()))
    for senseless in ("é", "====", "a", "%", " ", base64.b64encode(signature).decode() + "\n"):
        refused(enrol(world.http, key, found, senseless))
    assert enrol(world.http, key, found, base64.b64encode(signature).decode()).status_code == 201


def test_ed25519_is_that_of_rfc_8032():
    """Section 7.1, test 1: the empty message cannot be made of a nonce, so the library's answer is compared."""
    public = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
    private = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    key = Ed25519PrivateKey.from_private_bytes(private)
    assert key.public_key().public_bytes_raw() == public
    verifier = Ed25519(public_key=base64.b64encode(public).decode())
    evidence = base64.b64encode(key.sign(b"nonce\ninstallation")).decode()
    assert verifier.verify(evidence, "installation", "nonce", 0.0) == ACCEPTED
    assert not verifier.verify(evidence, "nonce", "installation", 0.0).accepted


def test_the_mac_is_that_of_rfc_2104():
    """Against HMAC written out: H(K xor opad, H(K xor ipad, text))."""
    padded = SECRET.encode().ljust(64, b"\0")
    inner = hashlib.sha256(bytes(b ^ 0x36 for b in padded) + b"nonce\ninstallation").digest()
    expected = hashlib.sha256(bytes(b ^ 0x5C for b in padded) + inner).hexdigest()
    assert shared_secret(SECRET)("installation", "nonce") == expected
    assert SharedSecret(secret=SECRET).verify(expected, "installation", "nonce", 0.0) == ACCEPTED


PUNCTUAL = """
from typing import Literal

from flsys_ray.cloud.attestation.base import ACCEPTED, Attestation, Verdict


class Punctual(Attestation):
    name: Literal["punctual"] = "punctual"
    word: str

    def verify(self, evidence: str, installation_id: str, nonce: str, now: float) -> Verdict:
        wanted = f"{self.word}:{installation_id}:{nonce[-8:]}:{now:.0f}"
        return ACCEPTED if evidence == wanted else Verdict(accepted=False, reason="not punctual")
"""
PLAY = """
import sys

import flsys_ray.cloud.attestation

flsys_ray.cloud.attestation.__path__.append(sys.argv[1])

from fastapi.testclient import TestClient

from flsys_ray.cloud.credentials import set_operator_key
from flsys_ray.cloud.hosts import LocalHosts
from flsys_ray.cloud.service import Cloud
from flsys_ray.http.app import create_app
from flsys_ray.storage.memory import MemoryStore

store, clock = MemoryStore(), lambda: 1000.0
set_operator_key(store, "flsys_operator_x")
http = TestClient(create_app(Cloud(store, LocalHosts(store, clock), clock)))
as_operator = {"Authorization": "Bearer flsys_operator_x"}
key = http.post("/v1/apps", json={"name": "acme"}, headers=as_operator).json()["key"]
headers = {"Authorization": f"Bearer {key}"}
own = {"attestation": {"name": "punctual", "word": "hello"}}
assert http.put("/v1/attestation", json=own, headers=headers).json() == {"attestation": "punctual"}
nonce = http.post("/v1/devices/nonce", headers=headers).json()["nonce"]
body = {"installation_id": "installation", "nonce": nonce}
refused = http.post("/v1/devices", json=body | {"attestation": "hello"}, headers=headers)
assert (refused.status_code, refused.json()["detail"]) == (403, "attestation refused: not punctual")
evidence = f"hello:installation:{nonce[-8:]}:1000"
assert http.post("/v1/devices", json=body | {"attestation": evidence}, headers=headers).status_code == 201
"""


def test_a_verifier_of_ones_own_is_one_file(tmp_path):
    """Found by its name, with its own fields in the app's record, and asked with all there is."""
    (tmp_path / "punctual.py").write_text(PUNCTUAL)
    done = subprocess.run(
        [sys.executable, "-c", PLAY, str(tmp_path)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_phone_attests_by_itself_with_another_nonce_each_time(world: World, attesting):
    """Through the phone's own client, over a real connection; the app's code is asked anew at each attempt."""
    asked = []

    def attest(installation_id: str, found: str) -> str:
        asked.append(found)
        world.clock.advance(1)
        return shared_secret(SECRET)(installation_id, found)

    def broken(installation_id: str, found: str) -> str:
        raise OSError("the platform's service is away")

    with served(world.http.app) as url, httpx2.Client(base_url=url) as http:
        client = CloudClient(http, wait=lambda seconds: None, jitter=lambda: 0.5)
        first, second = (client.enrol(attesting, ID, attest) for _ in range(2))
        assert first.device_id == second.device_id
        assert len(set(asked)) == 2
        assert client.renew(second.token).device_id == first.device_id
        with pytest.raises(Forbidden, match="send a nonce"):
            client.enrol(attesting, ID)
        with pytest.raises(TryLater, match="OSError"):
            client.enrol(attesting, ID, broken)


def test_the_registry_offers_what_lies_in_the_folder():
    assert {"none", "shared_secret", "ed25519"} <= set(VERIFIERS.classes)
    with pytest.raises(ValidationError):
        SharedSecret(secret="x")


# What this cloud lacks ---------------------------------------------------------------------------------------------

PUBLIC = {"name": "ed25519", "public_key": base64.b64encode(bytes(32)).decode()}


@pytest.fixture
def without_cryptography(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("flsys_ray.cloud.attestation.ed25519.find_spec", lambda name: None)


@pytest.mark.usefixtures("without_cryptography")
def test_what_the_cloud_could_not_judge_is_not_saved(world: World, key: str):
    calls = [("/v1/attestation", key), ("/v1/apps/acme/attestation", OPERATOR_KEY)]
    for path, caller in calls:
        reply = world.http.put(path, json={"attestation": PUBLIC}, headers=bearer(caller))
        assert "this cloud lacks cryptography: pip install" in problem(reply, 422, "invalid-input")["detail"]
    assert world.http.get("/v1/attestation", headers=bearer(key)).json() == {"attestation": "none"}


def test_no_cloud_is_started_that_could_not_judge(world: World, key: str, request: pytest.FixtureRequest):
    set_attestation(world, key, PUBLIC)
    prepare(world.store, "s")
    request.getfixturevalue("without_cryptography")
    with pytest.raises(InvalidInput, match="phones of app 'acme' attest with 'ed25519': this cloud lacks cryptography"):
        prepare(world.store, "s")


def test_a_verifier_that_is_not_installed_stops_a_start_and_is_no_bug_of_a_running_cloud(world: World, key: str):
    """Its record was written by a cloud that has the verifier: another replica's, or one of last week."""
    record = json.loads(world.store.get("apps/acme.json").body)
    body = json.dumps(record | {"attestation": {"name": "own", "word": "hush"}}).encode()
    world.store.swap("apps/acme.json", body, world.store.get("apps/acme.json").etag)
    with pytest.raises(InvalidInput, match="phones of app 'acme' attest with 'own', and no such verifier") as refused:
        prepare(world.store, "s")
    assert "hush" not in refused.value.message
    for reply in (
        enrol(world.http, key, None, None),
        world.http.get("/v1/models", headers=bearer(key)),
        world.http.put("/v1/apps/acme/keys/2", headers=bearer(OPERATOR_KEY)),
    ):
        assert "'own', and no such verifier" in problem(reply, 503, "try-later")["detail"]
    assert world.store.get("apps/acme.json").body == body
