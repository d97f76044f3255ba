"""Whatever is sent, the answer is a refusal of the caller: never an error of ours, never a changed model."""

import json
import string
from urllib.parse import quote

import numpy as np
import pytest
from cloud_world import PAIR, World, bearer
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tiny_program import PARAMETERS

from flsys_ray.errors import Forbidden, Unauthenticated
from flsys_ray.wire.developer_schemas import InferRequest, PlanRequest
from flsys_ray.wire.schemas import CheckInRequest, EnrolRequest
from flsys_ray.wire.tensors import encode_update

JSON = {"Content-Type": "application/json"}
few = settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


def refused(world: World, reply, *allowed: int) -> None:
    assert 400 <= reply.status_code < 500 or reply.status_code in allowed, reply.text
    if reply.status_code >= 400:
        assert reply.headers["content-type"] == "application/problem+json"
        assert reply.json()["status"] == reply.status_code


GENUINE = encode_update(np.full(PARAMETERS, 0.1, dtype=np.float32), 5, 1.0)
HEADER_BYTES = len(GENUINE) - 4 * PARAMETERS


def framed(text: bytes) -> bytes:
    """Return a safetensors file with this header and no data."""
    return len(text).to_bytes(8, "little") + text


@st.composite
def damaged(draw) -> bytes:
    """Return a genuine update with some bytes of its header replaced, removed or added."""
    body = bytearray(GENUINE)
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, HEADER_BYTES - 1))
        how = draw(st.sampled_from(("replace", "remove", "add")))
        if how == "remove":
            del body[at]
        else:
            body[at : at + (how == "replace")] = bytes([draw(st.integers(0, 255))])
    return bytes(body)


leaf = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
name = st.sampled_from(("delta", "__metadata__", "dtype", "shape", "data_offsets", "F32", "x")) | st.text(max_size=4)
header = st.recursive(leaf, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(name, inner, max_size=4))


@given(st.binary(max_size=400) | damaged() | header.map(lambda value: framed(json.dumps(value).encode())))
@example(b"")
@example(GENUINE[:-4])
@few
def test_no_bytes_that_are_uploaded_are_an_error_of_ours(shared_phone, body):
    world, key, token, _ = shared_phone
    work = world.work(token)
    reply = world.upload(token, work, body)
    refused(world, reply, 200)
    if reply.status_code == 200:  # damaged where it does not matter: counted as what it says, and over
        world.commit(key, "two")


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)


def near(message: type):
    """Return JSON that has the shape of a message at first, and then anything."""
    fields = st.sampled_from(sorted(message.model_fields))
    inside = st.dictionaries(st.sampled_from(words(message)), anything, max_size=4)
    return anything | st.dictionaries(fields, anything | inside | st.lists(inside, max_size=3), max_size=3)


def words(message: type) -> list[str]:
    """Return every name of a field in a message's schema."""
    found: set[str] = set()

    def walk(schema) -> None:
        if isinstance(schema, dict):
            found.update(schema.get("properties", {}))
            for inner in schema.values():
                walk(inner)
        elif isinstance(schema, list):
            for inner in schema:
                walk(inner)

    walk(message.model_json_schema())
    return sorted(found)


@given(near(CheckInRequest) | st.binary(max_size=50))
@few
def test_no_check_in_is_an_error_of_ours(shared_phone, body):
    world, _, token, _ = shared_phone
    content = body if isinstance(body, bytes) else json.dumps(body)
    refused(world, world.http.post("/v1/checkins", content=content, headers=bearer(token) | JSON), 200)


@given(near(PlanRequest))
@few
def test_no_plan_is_an_error_of_ours(shared_phone, body):
    world, key, _, _ = shared_phone
    reply = world.http.put("/v1/models/fuzzed", content=json.dumps(body), headers=bearer(key) | JSON)
    refused(world, reply, 200, 201)
    if reply.status_code < 300:
        assert world.info(key, "fuzzed")["plan"] == reply.json()["plan"]


@given(
    near(InferRequest)
    | st.fixed_dictionaries({"instances": st.lists(st.lists(st.floats(), min_size=4, max_size=4), max_size=2)})
)
@few
def test_no_example_to_infer_is_an_error_of_ours(shared_phone, body):
    world, key, _, _ = shared_phone
    reply = world.http.post("/v1/models/tiny/infer", content=json.dumps(body), headers=bearer(key) | JSON)
    refused(world, reply, 200)


@given(st.dictionaries(st.sampled_from(("loss_sum", "correct", "count", "x")), anything, max_size=4))
@few
def test_no_evaluation_is_an_error_of_ours(shared_phone, body):
    world, _, token, work = shared_phone
    path = f"/v1/assignments/{work['assignment_id']}/evaluation"
    reply = world.http.put(path, content=json.dumps(body), headers=bearer(token, work["token"]) | JSON)
    refused(world, reply, 200)


@given(
    st.sampled_from(("GET", "PUT", "POST", "DELETE")),
    st.lists(st.text(string.ascii_lowercase + string.digits + "-.%_/", max_size=8), max_size=5),
    st.text(string.printable.strip(), max_size=60),
    st.text(string.printable.strip(), max_size=60),
)
@few
def test_no_path_or_credential_is_an_error_of_ours(shared_phone, method, segments, secret, ticket):
    world, _, _, _ = shared_phone
    headers = bearer(secret, ticket) | {"Range": ticket, "If-None-Match": secret}
    for start in ("/v1/models/", "/v1/assignments/", "/v1/"):
        reply = world.http.request(method, start + quote("/".join(segments), safe="/%"), headers=headers)
        refused(world, reply, 200, 307)


@given(near(EnrolRequest) | st.binary(max_size=50))
@few
def test_no_enrolment_is_an_error_of_ours(shared_phone, body):
    world, key, _, _ = shared_phone
    content = body if isinstance(body, bytes) else json.dumps(body)
    refused(world, world.http.post("/v1/devices", content=content, headers=bearer(key) | JSON), 201)


@given(st.data(), st.sampled_from(("device", "assignment", "app", "enrol", "nonce")))
@settings(few, max_examples=400)
def test_no_credential_with_other_bytes_is_taken(shared_phone, data, kind):
    """Any bytes changed, left out or put in: none of it is the credential any more."""
    world, key, token, work = shared_phone
    credentials = world.cloud.credentials
    genuine = {
        "device": token,
        "assignment": work["token"],
        "app": key,
        "enrol": credentials.app_key("acme", kind="enrol"),
        "nonce": credentials.nonce("acme", world.clock()),
    }[kind]
    changed = bytearray(genuine.encode())
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(changed) - 1))
        how, byte = data.draw(st.sampled_from(("bit", "byte", "out", "in"))), data.draw(st.integers(0x21, 0x7E))
        if how == "bit":
            changed[at] ^= 1 << data.draw(st.integers(0, 6))
        elif how == "out":
            del changed[at]
        else:
            changed[at : at + (how == "byte")] = bytes([byte])
    text = changed.decode("ascii", "replace")
    if text == genuine:
        return
    now = world.clock()
    checks = {
        "device": lambda: credentials.check_device(text, now),
        "assignment": lambda: credentials.check_assignment(
            text, credentials.check_device(token, now), work["assignment_id"]
        ),
        "app": lambda: credentials.check_app(text),
        "enrol": lambda: credentials.check_enroller(text),
        "nonce": lambda: credentials.check_nonce(text, "acme", now),
    }
    with pytest.raises((Unauthenticated, Forbidden)):
        checks[kind]()


def test_after_all_that_the_cloud_still_trains(shared_phone):
    world, key, _, _ = shared_phone
    world.draft(key, plan=PAIR)
    version = world.info(key)["version"]
    world.clock.advance(61)
    world.commit(key, "three", "four")
    assert world.info(key)["version"] > version
