"""A corpus of payloads that mean harm: each is refused as the caller's fault, quickly, and changes nothing."""

import contextlib
import time

import pytest
from cloud_world import PAIR, World, bearer, problem
from hostile import plans, tensors, tokens, yaml_bombs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_program import PARAMETERS

from flsys_ray.core.plan import parse_plan_yaml
from flsys_ray.errors import PlanInvalid

QUICK_S = 5.0  # of the processor: the machine may have other things to do
JSON = {"Content-Type": "application/json"}


@pytest.mark.parametrize(
    ("case", "body"), [*tensors(PARAMETERS)], ids=lambda value: value if isinstance(value, str) else ""
)
def test_a_hostile_tensor_is_refused(shared_phone, case, body):
    world, key, token, work = shared_phone
    began = time.process_time()
    reply = world.upload(token, work, body)
    assert time.process_time() - began < QUICK_S
    if reply.status_code == 413:
        return
    assert problem(reply, 422, "update-unusable")["detail"].startswith("update for tiny v0: ")
    assert len(reply.content) < 5000
    counters = world.info(key)["open_round"]["counters"]
    assert (counters["counted"], counters["pending"]) == (0, 1)


def test_no_hostile_token_opens_anything(shared_phone):
    world, key, token, work = shared_phone
    kid, signing = world.cloud.credentials.keys.signer(world.clock())
    others = {"assignment": work["token"], "app": key, "nonce": world.cloud.credentials.nonce("acme", world.clock())}
    tried = 0
    for case, forged in tokens(token, signing, others):
        headers = {"Authorization": f"Bearer {forged}".encode("utf-8", "surrogatepass")}
        body = {"models": [{"model": "tiny", "examples": 5}]}
        reply = world.http.post("/v1/checkins", json=body, headers=headers)
        assert reply.status_code == 401, (case, reply.text)
        assert forged not in reply.text or len(forged) < 8
        tried += 1
    assert tried > 250
    for case, forged in tokens(work["token"], signing, {"device": token, "app": key}):
        ticket = {"Flsys-Assignment": forged.encode("utf-8", "surrogatepass")}
        reply = world.http.put(work["upload"]["url"], content=world.body(), headers=bearer(token) | ticket)
        assert reply.status_code == 401, (case, reply.text)
    assert kid == "1"


@pytest.mark.parametrize(("case", "text"), [*plans()], ids=lambda value: str(value)[:40])
def test_a_hostile_plan_is_refused_or_harmless(shared_phone, case, text):
    world, key, _, _ = shared_phone
    began = time.process_time()
    body = ('{"plan": ' + text + "}").encode("utf-8", "surrogatepass")
    reply = world.http.put("/v1/models/hostile", content=body, headers=bearer(key) | JSON)
    assert time.process_time() - began < QUICK_S
    assert reply.status_code in (200, 201, 422), reply.text[:500]
    assert len(reply.content) < 10_000
    if reply.status_code == 422:
        assert reply.headers["content-type"] == "application/problem+json"
    with contextlib.suppress(PlanInvalid):
        parse_plan_yaml(text)
    assert time.process_time() - began < QUICK_S


@pytest.mark.parametrize(("case", "text"), [*yaml_bombs()], ids=lambda value: str(value)[:40])
def test_no_yaml_runs_away(case, text):
    began = time.process_time()
    with pytest.raises(PlanInvalid):
        parse_plan_yaml(text)
    assert time.process_time() - began < QUICK_S


ROUTES = (
    "/v1/models/{}", "/v1/models/{}/versions/{}", "/v1/models/{}/program/{}", "/v1/models/{}/control/{}",
    "/v1/assignments/{}/update", "/v1/overview/{}/{}/rounds", "/v1/apps/{}/keys/{}", "/v1/apps/{}/devices/{}",
    "/v1/devices/{}", "/v1/keys/{}", "/v1/models/{}/versions/{}/manifest",
)  # fmt: skip
CLIMBING = st.sampled_from((
    "..", ".", "%2e%2e", "..%2f..%2fsecrets%2fsigning.json", "%2Fetc%2Fpasswd", "..%5c..", "%00", "a%00b", "%0d%0aX: y",
    "tiny%2f..%2f..", "secrets", "signing.json", "%c0%af", "..;", "~", "tiny.json", "con", "%F0%9F%98%80", "a" * 300,
    "acme%2Ftiny", "-", "_", "TINY",
))  # fmt: skip


@given(st.sampled_from(("GET", "PUT", "POST", "DELETE")), st.sampled_from(ROUTES), CLIMBING, CLIMBING)
@settings(max_examples=300, suppress_health_check=list(HealthCheck))
def test_no_name_climbs_out_of_its_place(shared_phone, method, route, one, two):
    """No call with such a name reads or writes anything, whoever makes it."""
    world, key, token, work = shared_phone
    before = sorted(world.store.list(""))
    for secret in (key, token):
        reply = world.http.request(method, route.format(one, two), headers=bearer(secret, work["token"]), json={})
        assert 400 <= reply.status_code < 500 or (reply.status_code, reply.content) == (307, b""), reply.text
    assert sorted(world.store.list("")) == before


def test_after_all_that_the_cloud_still_trains(shared_phone):
    world: World
    world, key, token, work = shared_phone
    assert world.upload(token, work).status_code == 200
    world.draft(key, plan=PAIR)
    world.commit(key, "two")
    assert world.info(key)["version"] == 1
