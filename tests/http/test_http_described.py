"""Requests that schemathesis makes from `docs/openapi.json`, good ones and bad ones: no answer is an error of ours.

`FLSYS_FUZZ=200 pytest tests/http/test_http_described.py` tries 200 of each kind for every call (default: 6).
"""

import json
import os
from pathlib import Path

import httpx2
import pytest
import schemathesis
from cloud_world import OPERATOR_KEY, PAIR, World, bearer, open_world
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis import GenerationMode
from tiny_program import PARAMETERS, tiny_program

MEDIA = ("application/vnd.safetensors", "application/vnd.flsys.program")
DESCRIBED = json.loads((Path(__file__).parents[2] / "docs" / "openapi.json").read_text())
SCHEMA = schemathesis.openapi.from_dict(DESCRIBED)
CALLS = {call.label: call for call in (found.ok() for found in SCHEMA.get_all_operations())}
EXAMPLES = int(os.environ.get("FLSYS_FUZZ", "6"))


@schemathesis.serializer(*MEDIA)
def as_bytes(context: object, value: object) -> bytes:
    return value if isinstance(value, bytes) else json.dumps(value, default=str).encode()


@pytest.fixture(scope="module")
def busy():
    """One cloud for all requests, with something under every name that they are likely to hit."""
    for world in open_world(tiny_program().data, PARAMETERS):
        key = world.app()
        world.training(key, plan=PAIR | {"pacing": {"cohort": 50, "deadline_s": 1e5}})
        device = world.device(key, "one")
        work = world.work(device)
        yield world, {"operator key": OPERATOR_KEY, "app key": key, "device token": device}, work


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE], ids=["good", "bad"])
@pytest.mark.parametrize("label", sorted(CALLS))
def test_no_request_is_an_error_of_ours(busy, label, mode):
    call = CALLS[label]
    if mode is GenerationMode.NEGATIVE and not (call.body or call.path_parameters or call.query or call.headers):
        assert label in ("GET /healthz", "GET /readyz"), "nothing of it can be wrong"
        return

    @settings(
        max_examples=EXAMPLES,
        database=None,
        derandomize=True,
        deadline=None,
        phases=(Phase.explicit, Phase.generate),
        suppress_health_check=list(HealthCheck),
    )
    @given(call.as_strategy(generation_mode=mode), st.sampled_from(("its own", "none", "as drawn")), st.booleans())
    def check(case, credential, known) -> None:
        send(busy, call, case, credential, known=known)

    check()


def send(busy, call, case, credential: str, *, known: bool) -> int | None:
    """Send one request, with the credential that the call takes, and names that exist where `known` is true.

    Returns the status; None if it cannot be sent.
    """
    world, secrets, work = busy
    if known:
        names = {"model": "tiny", "app": "acme", "assignment_id": work["assignment_id"], "number": "0"}
        for name, value in names.items():
            if name in (case.path_parameters or {}):
                case.path_parameters[name] = value
    asked = case.as_transport_kwargs(base_url="http://testserver")
    headers = {name: str(value).encode("latin-1", "replace") for name, value in (asked.pop("headers") or {}).items()}
    if credential != "as drawn":
        headers = {name: value for name, value in headers.items() if name.lower() != "authorization"}
    if credential == "its own":
        kinds = [kind for choice in DESCRIBED_SECURITY[call.label] for kind in choice]
        headers |= {
            name: value.encode() for name, value in (bearer(secrets[kinds[0]], work["token"]) if kinds else {}).items()
        }
    reply = told(world, asked, headers)
    if reply is None:
        return None
    assert reply.status_code < 500, (asked, reply.text)
    if reply.status_code >= 400:
        assert reply.headers["content-type"] == "application/problem+json"
        assert reply.json()["status"] == reply.status_code
    return reply.status_code


def told(world: World, asked, headers) -> httpx2.Response | None:
    """Return the answer; None for a request that no HTTP client can put on the wire."""
    content = {name: asked[name] for name in ("json", "content", "params") if asked.get(name) is not None}
    if asked.get("data") is not None:
        content["content"] = asked["data"] if isinstance(asked["data"], bytes) else json.dumps(asked["data"]).encode()
    try:
        return world.http.request(asked["method"], asked["url"], headers=headers, **content)
    except (httpx2.InvalidURL, httpx2.LocalProtocolError, UnicodeEncodeError, ValueError, TypeError):
        return None


DESCRIBED_SECURITY = {
    f"{method.upper()} {path}": what.get("security", [])
    for path, methods in DESCRIBED["paths"].items()
    for method, what in methods.items()
}


def test_the_requests_are_no_noise(busy):
    """With their own credential and names that exist, good requests of most calls succeed."""
    succeeded = {label for label in CALLS if succeeds(busy, label)}
    assert len(succeeded) >= len(CALLS) // 2, sorted(set(CALLS) - succeeded)


def succeeds(busy, label: str) -> bool:
    """Return whether one of a few good requests of a call is answered with success."""
    statuses = []

    @settings(
        max_examples=3,
        database=None,
        derandomize=True,
        deadline=None,
        phases=(Phase.generate,),
        suppress_health_check=list(HealthCheck),
    )
    @given(CALLS[label].as_strategy(generation_mode=GenerationMode.POSITIVE))
    def check(case) -> None:
        statuses.append(send(busy, CALLS[label], case, "its own", known=True))

    check()
    return any(status is not None and status < 400 for status in statuses)


def test_after_all_that_the_cloud_still_works(busy):
    world, _, _ = busy
    key = world.app("after")
    world.training(key)
    world.commit(key)
    assert world.info(key)["version"] == 1
