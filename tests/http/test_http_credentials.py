"""Who may do what: three kinds of credentials, tokens of assignments, and nothing told to the wrong caller."""

import base64
import hashlib
import hmac
import json
import logging
import warnings

import jwt
import numpy as np
import pytest
from cloud_world import OPERATOR_KEY, PAIR, World, bearer, problem

from flsys_ray.cloud import places
from flsys_ray.cloud.credentials import DEVICE_TOKEN_LIFE_S, new_operator_key, set_operator_key
from flsys_ray.wire.tensors import decode_vector


def signing_key(world: World) -> bytes:
    return base64.b64decode(json.loads(world.store.get(places.SIGNING_KEY).body)["key"])


def claims_of(token: str) -> dict[str, object]:
    return jwt.decode(token, options={"verify_signature": False})


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


@pytest.fixture
def secrets(world: World, key: str) -> dict[str, str]:
    """One valid credential of each kind."""
    world.training(key)
    device = world.device(key, "one")
    enrol = world.cloud.credentials.app_key("acme", kind="enrol")
    work = world.work(device)["token"]
    return {"operator": OPERATOR_KEY, "app": key, "enrol": enrol, "device": device, "assignment": work}


# Which call takes which credential -----------------------------------------------------------------------------------

OPERATOR = [
    ("POST", "/v1/apps", {"name": "x"}),
    ("GET", "/v1/overview", None),
    ("GET", "/v1/overview/acme/tiny/rounds", None),
]
APP = [
    ("GET", "/v1/attestation", None),
    ("GET", "/v1/models", None),
    ("PUT", "/v1/models/tiny", {"plan": PAIR}),
    ("PUT", "/v1/models/tiny/program", None),
    ("PUT", "/v1/models/tiny/augmentation", None),
    ("GET", "/v1/models/tiny", None),
    ("GET", "/v1/models/tiny/rounds", None),
    ("GET", "/v1/models/tiny/versions", None),
    ("GET", "/v1/models/tiny/versions/0/manifest", None),
    ("GET", "/v1/models/tiny/versions/0/evaluation", None),
    ("POST", "/v1/models/tiny/infer", {"instances": [[1, 2, 3, 4]]}),
    ("POST", "/v1/models/tiny/promote", {"version": 0}),
    ("POST", "/v1/models/tiny/rollback", {"version": 0}),
    ("POST", "/v1/models/tiny/pause", None),
]
DEVICE = [("POST", "/v1/checkins", {"models": [{"model": "tiny", "examples": 5}]})]
READER = [
    ("GET", "/v1/models/tiny/versions/0", None),
    ("GET", f"/v1/models/tiny/program/{'0' * 64}", None),
    ("GET", f"/v1/models/tiny/control/{'0' * 64}", None),
    ("GET", f"/v1/models/tiny/augmentation/{'0' * 64}", None),
    ("GET", f"/v1/models/tiny/public/half/{'0' * 64}", None),
]
ID = "00000000-" + "0" * 20
WORK = [
    ("PUT", f"/v1/assignments/{ID}/update", None),
    ("POST", f"/v1/assignments/{ID}/staged", {"size_bytes": 1, "sha256": "0" * 64}),
    ("PUT", f"/v1/assignments/{ID}/staged", {"size_bytes": 1, "sha256": "0" * 64}),
    ("DELETE", f"/v1/assignments/{ID}", None),
    ("PUT", f"/v1/assignments/{ID}/evaluation", {"loss_sum": 1, "correct": 1, "count": 1}),
]
ENROLLER = [("POST", "/v1/devices", {"installation_id": "12345678"}), ("POST", "/v1/devices/nonce", None)]
DEVICE_ID = "d-" + "0" * 24
OPERATOR_ACCESS = [
    ("PUT", "/v1/apps/acme/keys/2", None),
    ("DELETE", "/v1/apps/acme/keys/2", None),
    ("PUT", "/v1/apps/acme/attestation", {"attestation": "none"}),
    ("POST", "/v1/apps/acme/devices/revoke", {"issued_before": 1}),
    ("DELETE", f"/v1/apps/acme/devices/{DEVICE_ID}", None),
    ("POST", f"/v1/apps/acme/devices/{DEVICE_ID}/readmit", None),
    ("GET", "/v1/keys", None),
    ("POST", "/v1/keys", {}),
    ("DELETE", "/v1/keys/1", None),
]
APP_ACCESS = [
    ("PUT", "/v1/attestation", {"attestation": "none"}),
    ("DELETE", f"/v1/devices/{DEVICE_ID}", None),
    ("POST", f"/v1/devices/{DEVICE_ID}/readmit", None),
    ("POST", "/v1/devices/revoke", {}),
]
TAKES = [
    *((call, ("operator",)) for call in OPERATOR),
    *((call, ("app",)) for call in APP),
    *((call, ("device",)) for call in DEVICE),
    *((call, ("app", "device")) for call in READER),
    *((call, ("device",)) for call in WORK),
    *((call, ("app", "enrol")) for call in ENROLLER),
    (("POST", "/v1/devices/token", None), ("device",)),
    *((call, ("operator",)) for call in OPERATOR_ACCESS),
    *((call, ("app",)) for call in APP_ACCESS),
]


def test_the_table_of_calls_is_whole(world: World):
    """Every path of the API stands above: a new one cannot be left without a look at who may call it."""
    described = {
        (method.upper(), path)
        for path, methods in world.http.get("/openapi.json").json()["paths"].items()
        for method in methods
    }
    filled = {
        "{app}": "acme",
        "{model}": "tiny",
        "{number}": "0",
        "{sha256}": "0" * 64,
        "{assignment_id}": ID,
        "{device_id}": DEVICE_ID,
        "{generation}": "2",
        "{kid}": "1",
        "{action}": "pause",
        "{way}": "half",
    }
    calls = set()
    for method, path in described:
        for name, value in filled.items():
            path = path.replace(name, value)
        calls.add((method, path))
    listed = {(method, path) for (method, path, _), _ in TAKES}
    assert calls == listed | {("GET", "/healthz"), ("GET", "/readyz")}


@pytest.mark.parametrize(("call", "takes"), TAKES, ids=[f"{call[0]} {call[1]}" for call, _ in TAKES])
def test_only_its_own_kind_of_credential_opens_a_call(world: World, secrets, call, takes):
    method, path, body = call
    for kind, secret in secrets.items():
        reply = world.http.request(method, path, json=body, headers=bearer(secret, secrets["assignment"]))
        assert (reply.status_code == 401) == (kind not in takes), (kind, reply.text)


@pytest.mark.parametrize("call", [call for call, _ in TAKES], ids=[f"{call[0]} {call[1]}" for call, _ in TAKES])
@pytest.mark.parametrize(
    "header",
    [None, "", "Bearer", "Bearer ", "Bearer x", "Basic dXNlcjpwYXNz", "Bearer \xe4\xf6", "Bearer a.b.c", "Token x"],
)
def test_no_credential_and_a_senseless_one_get_the_same_answer_everywhere(world: World, call, header):
    method, path, body = call
    headers = {} if header is None else {"Authorization": header.encode("latin-1")}
    reply = world.http.request(method, path, json=body, headers=headers)
    found = problem(reply, 401, "unauthenticated")
    assert reply.headers["www-authenticate"] == "Bearer"
    assert set(found) == {"type", "title", "status", "detail", "instance"}
    assert found["title"] == "The credential is not valid"
    assert found["detail"].startswith("this call needs ")


# Operator and apps ---------------------------------------------------------------------------------------------------


def test_a_new_operator_key_replaces_the_old_one(world: World):
    fresh = new_operator_key()
    assert fresh != new_operator_key()
    for _ in range(2):
        set_operator_key(world.store, fresh)
    problem(world.http.post("/v1/apps", json={"name": "a"}, headers=bearer(OPERATOR_KEY)), 401, "unauthenticated")
    assert world.http.post("/v1/apps", json={"name": "a"}, headers=bearer(fresh)).status_code == 201


def test_a_key_made_for_one_app_opens_no_other(world: World, key):
    world.app("other")
    secret = key.rpartition("_")[2]
    for forged in (f"flsys_app_other_{secret}", f"flsys_app__{secret}", key[:-1], key + "0", secret, key.upper()):
        problem(world.http.get("/v1/models", headers=bearer(forged)), 401, "unauthenticated")


def test_the_key_of_an_app_that_was_never_registered_opens_nothing(world: World):
    genuine = world.cloud.credentials.app_key("ghost")
    problem(world.http.get("/v1/models", headers=bearer(genuine)), 401, "unauthenticated")


def test_another_apps_model_does_not_exist(world: World, secrets):
    """Every call answers for another app's model as it does for none: the documents differ in the name only."""
    stranger = world.app("other")
    for method, path, body in APP[2:]:
        if (method, path) == ("PUT", "/v1/models/tiny"):
            continue  # it makes a model of that name for the caller: below
        for secret in (stranger,):
            there = world.http.request(method, path, json=body, headers=bearer(secret))
            gone = world.http.request(method, path.replace("tiny", "none"), json=body, headers=bearer(secret))
            assert problem(there, 404, "not-found") == json.loads(gone.text.replace("none", "tiny"))
    for method, path, _ in READER:
        for secret in (stranger, world.device(stranger, "spy")):
            there = world.http.request(method, path, headers=bearer(secret))
            gone = world.http.request(method, path.replace("tiny", "none"), headers=bearer(secret))
            assert problem(there, 404, "not-found") == json.loads(gone.text.replace("none", "tiny"))
    spy = world.check_in(world.device(stranger, "spy"), "tiny", "none")
    assert {rejection["reason"] for rejection in spy["rejections"]} == {"unknown-model"}


def test_a_name_that_another_app_uses_is_as_free_as_any(world: World, secrets):
    """What a developer is told of a new model of their own does not depend on what others have."""
    stranger = world.app("other")
    replies = [
        world.http.put(f"/v1/models/{name}", json={"plan": PAIR}, headers=bearer(stranger)) for name in ("tiny", "none")
    ]
    assert [reply.status_code for reply in replies] == [201, 201]
    assert replies[0].json() == replies[1].json() | {"model": "tiny"}


def test_two_apps_train_models_of_one_name_side_by_side(world: World, key):
    """Their devices, versions, rounds and inference never meet, nor does what one of them stops touch the other."""
    theirs = world.app("other")
    world.training(key)
    world.training(theirs, plan=PAIR | {"seed": 7})
    world.commit(key, value=0.25)
    world.commit(theirs, value=-0.5)
    world.commit(theirs, value=-0.5)
    own, other = parameters(world, key), parameters(world, theirs)
    np.testing.assert_allclose(own["1"] - own["0"], 0.25, atol=1e-5)
    np.testing.assert_allclose(other["2"] - other["0"], -1.0, atol=1e-5)
    assert (own["0"] != other["0"]).any()
    assert (world.info(key)["app_id"], world.info(key)["version"]) == ("acme", 1)
    assert (world.info(theirs)["app_id"], world.info(theirs)["version"]) == ("other", 2)
    mine = {line["assignment_id"] for line in world.manifest(key, 1)["updates"]}
    assert not mine & {line["assignment_id"] for line in world.manifest(theirs, 1)["updates"]}
    gone = world.http.get("/v1/models/tiny/versions/2", headers=bearer(world.device(key, "one")))
    problem(gone, 404, "not-found")

    spy = world.device(theirs, "spy")
    work = world.work(world.device(key, "one"))
    address = f"/v1/assignments/{work['assignment_id']}/update"
    stolen = world.http.put(address, content=world.body(), headers=bearer(spy, work["token"]))
    problem(stolen, 403, "forbidden")
    world.act(theirs, "stop")
    assert world.info(key)["state"] == "training"
    found = world.http.get("/v1/overview", headers=bearer(OPERATOR_KEY)).json()["models"]
    assert [(info["app_id"], info["model"], info["state"]) for info in found] == [
        ("acme", "tiny", "training"),
        ("other", "tiny", "finished"),
    ]


def parameters(world: World, key: str) -> dict[str, np.ndarray]:
    """Return the parameters of each version, by its number."""
    numbers = world.http.get("/v1/models/tiny/versions", headers=bearer(key)).json()["versions"]
    bodies = {n: world.http.get(f"/v1/models/tiny/versions/{n}", headers=bearer(key)).content for n in numbers}
    return {str(n): decode_vector(body, "parameters", world.size) for n, body in bodies.items()}


# Device tokens -------------------------------------------------------------------------------------------------------


def test_a_device_token_expires_and_enrolling_again_renews_it(world: World, key):
    world.training(key)
    token = world.device(key, "one")
    world.clock.advance(DEVICE_TOKEN_LIFE_S - 1)
    assert world.check_in(token)
    world.clock.advance(1)
    body = {"models": [{"model": "tiny", "examples": 5}]}
    reply = world.http.post("/v1/checkins", json=body, headers=bearer(token))
    assert "enrol again" in problem(reply, 401, "unauthenticated")["detail"]
    problem(world.http.get("/v1/models/tiny/versions/0", headers=bearer(token)), 401, "unauthenticated")
    assert world.check_in(world.device(key, "one"))


def forgeries(token: str, signing: bytes) -> dict[str, str]:
    """Return tokens that say the same as a genuine one, none of them signed as it must be."""
    claims = claims_of(token)
    head, body, signature = token.split(".")
    sha512 = hmac.new(signing, f"{b64(json.dumps({'alg': 'HS512'}).encode())}.{body}".encode(), hashlib.sha512)
    unsigned = b64(b'{"alg":"none","typ":"JWT"}')
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a library that knows better than to make weak tokens says so
        return {
            "alg none": jwt.encode(claims, "", algorithm="none"),
            "alg none, signature kept": f"{unsigned}.{body}.{signature}",
            "alg None in capitals": f"{b64(json.dumps({'alg': 'NONE'}).encode())}.{body}.",
            "HS512 with our key": f"{b64(json.dumps({'alg': 'HS512'}).encode())}.{body}.{b64(sha512.digest())}",
            "HS384 with our key": jwt.encode(claims, signing, algorithm="HS384"),
            "another key": jwt.encode(claims, b"x" * 32, algorithm="HS256"),
            "no key": f"{head}.{body}.{b64(hmac.new(b'', f'{head}.{body}'.encode(), hashlib.sha256).digest())}",
            "no signature": f"{head}.{body}.",
            "a bit of the signature": f"{head}.{body}.{'B' if signature[0] == 'A' else 'A'}{signature[1:]}",
            "other claims": f"{head}.{b64(json.dumps(claims | {'sub': 'd-0'}).encode())}.{signature}",
            "two parts": f"{head}.{body}",
            "four parts": f"{token}.x",
            "deep header": f"{b64(b'[' * 100_000)}.{body}.{signature}",
            "header not JSON": f"{b64(b'{')}.{body}.{signature}",
        }


FORGERIES = sorted(forgeries(jwt.encode({"sub": "x"}, b"k" * 32, algorithm="HS256"), b"k" * 32))


@pytest.mark.parametrize("case", FORGERIES)
def test_a_forged_device_token_is_refused(world: World, secrets, case):
    forged = forgeries(secrets["device"], signing_key(world))[case]
    body = {"models": [{"model": "tiny", "examples": 5}]}
    problem(world.http.post("/v1/checkins", json=body, headers=bearer(forged)), 401, "unauthenticated")


@pytest.mark.parametrize("case", FORGERIES)
def test_a_forged_assignment_token_is_refused(world: World, secrets, case):
    forged = forgeries(secrets["assignment"], signing_key(world))[case]
    path = f"/v1/assignments/{claims_of(secrets['assignment'])['aid']}/update"
    reply = world.http.put(path, content=world.body(), headers=bearer(secrets["device"], forged))
    problem(reply, 401, "unauthenticated")
    genuine = bearer(secrets["device"], secrets["assignment"])
    assert world.http.put(path, content=world.body(), headers=genuine).status_code == 200


def test_signed_by_us_but_of_another_kind_is_refused(world: World, secrets):
    """What we signed as one thing is never taken for another, whatever else it says."""
    signing = signing_key(world)
    device, work = claims_of(secrets["device"]), claims_of(secrets["assignment"])
    as_device = jwt.encode(work | {"app": "acme", "exp": device["exp"]}, signing, algorithm="HS256")
    body = {"models": [{"model": "tiny", "examples": 5}]}
    problem(world.http.post("/v1/checkins", json=body, headers=bearer(as_device)), 401, "unauthenticated")
    as_work = jwt.encode(work | {"kind": "device"}, signing, algorithm="HS256")
    path = f"/v1/assignments/{work['aid']}/update"
    reply = world.http.put(path, content=world.body(), headers=bearer(secrets["device"], as_work))
    problem(reply, 401, "unauthenticated")


# Assignment tokens ---------------------------------------------------------------------------------------------------


def calls_on(world: World, assignment_id: str, headers: dict[str, str]):
    """Make every call on an assignment."""
    base = f"/v1/assignments/{assignment_id}"
    metrics = {"loss_sum": 1, "correct": 1, "count": 1}
    yield world.http.put(f"{base}/evaluation", json=metrics, headers=headers)
    yield world.http.put(f"{base}/update", content=world.body(), headers=headers)
    yield world.http.request("DELETE", base, headers=headers)


def test_another_devices_assignment_is_forbidden(world: World, key):
    world.training(key)
    one, two = world.device(key, "one"), world.device(key, "two")
    work, own = world.work(one), world.work(two)
    for reply in calls_on(world, work["assignment_id"], bearer(two, work["token"])):
        assert "another device" in problem(reply, 403, "forbidden")["detail"]
    for reply in calls_on(world, work["assignment_id"], bearer(two, own["token"])):
        assert "another assignment" in problem(reply, 403, "forbidden")["detail"]
    counters = world.info(key)["open_round"]["counters"]
    assert (counters["pending"], counters["counted"], counters["given_back"]) == (2, 0, 0)


def test_a_call_on_an_assignment_needs_both_tokens(world: World, secrets):
    aid = str(claims_of(secrets["assignment"])["aid"])
    wrong = [
        bearer(secrets["device"]),
        bearer(secrets["device"], ""),
        bearer(secrets["device"], secrets["device"]),
        bearer(secrets["device"], secrets["app"]),
        bearer(secrets["assignment"], secrets["assignment"]),
        bearer(secrets["app"], secrets["assignment"]),
        {"Flsys-Assignment": secrets["assignment"]},
    ]
    for headers in wrong:
        for reply in calls_on(world, aid, headers):
            problem(reply, 401, "unauthenticated")


def test_an_assignment_of_an_earlier_round_opens_nothing_in_this_one(world: World, key):
    world.training(key)
    token = world.device(key, "three")
    old = world.work(token)
    world.commit(key)
    new = world.work(token)
    reply = world.upload(token, new | {"token": old["token"]})
    problem(reply, 403, "forbidden")
    problem(world.upload(token, old), 410, "late")


# What hands out what the caller is to keep.
ISSUING = ("/v1/apps", "/v1/devices", "/v1/devices/token", "/v1/devices/nonce", "/v1/checkins", "/v1/apps/acme/keys/2")

# Nothing leaks -------------------------------------------------------------------------------------------------------


def test_no_secret_is_ever_in_an_answer_or_a_log(world: World, secrets, caplog):
    """Every call, with every credential in every place: what was given as a secret comes back nowhere."""
    caplog.set_level(logging.DEBUG)
    signing = signing_key(world)
    given = {*secrets.values(), signing.hex(), base64.b64encode(signing).decode(), "a-secret-that-is-wrong"}
    heard = []
    for (method, path, body), _ in TAKES:
        for secret in (*secrets.values(), "a-secret-that-is-wrong"):
            for ticket in (None, secrets["assignment"], "a-secret-that-is-wrong", secrets["device"]):
                reply = world.http.request(method, path, json=body, headers=bearer(secret, ticket))
                issues = reply.status_code < 300 and path in ISSUING
                if not issues:
                    heard.append(reply.text + str(reply.headers))
    heard += [record.getMessage() for record in caplog.records if record.name.startswith("flsys_ray")]
    heard += [str(record.exc_info) for record in caplog.records if record.exc_info]
    for secret in given:
        assert not any(secret in text for text in heard)


def test_the_records_of_the_store_hold_no_operator_key_and_no_app_key(world: World, secrets):
    everything = b"".join(world.store.get(name).body for name in world.store.list(""))
    for kind in ("operator", "app", "device", "assignment"):
        assert secrets[kind].encode() not in everything
