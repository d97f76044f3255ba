"""An update straight into the cloud's store: each answer on that way, no token on it, and the way through the cloud."""

import json

import httpx2
import pytest
from device_fakes import problem, sha
from test_device_client import ASSIGNMENT, Script

from flsys_ray.device.client import CloudClient, RetryPolicy
from flsys_ray.device.staged import send_update
from flsys_ray.errors import Late, TryLater, Unauthenticated, UpdateUnusable

STAGED = "/v1/assignments/a1/staged"
BUCKET = "https://bucket.s3.test/staged/a1?X-Amz-Signature=abc"
HEADERS = {"If-None-Match": "*", "Content-Length": "6", "x-amz-checksum-sha256": "x"}
MESSAGE = ASSIGNMENT.model_copy(update={"upload": ASSIGNMENT.upload.model_copy(update={"staged": STAGED})})
BODY = b"update"
COUNTED = httpx2.Response(200, json={"status": "counted", "duplicate": False})


def place(url: str = BUCKET) -> httpx2.Response:
    return httpx2.Response(201, json={"url": url, "headers": HEADERS, "expires_in_s": 900.0})


def told(script: Script) -> list[str]:
    return [f"{request.method} {request.url.host} {request.url.path}" for request in script.requests]


def client(script: Script) -> CloudClient:
    http = httpx2.Client(base_url="https://cloud.test", transport=httpx2.MockTransport(script))
    return CloudClient(http, script.waits.append, lambda: 0.5, RetryPolicy(attempts=2))


def sent(*answers) -> Script:
    """Send an update that is counted; return what was asked."""
    script = Script(*answers)
    assert send_update(client(script), "device-token", MESSAGE, BODY).status == "counted"
    return script


ASK, PUT, ANNOUNCE, DIRECT = (
    f"POST cloud.test {STAGED}",
    "PUT bucket.s3.test /staged/a1",
    f"PUT cloud.test {STAGED}",
    "PUT cloud.test /v1/assignments/a1/update",
)


def test_three_steps_and_the_bucket_sees_no_token():
    script = sent(place(), httpx2.Response(200), COUNTED)
    assert told(script) == [ASK, PUT, ANNOUNCE]
    ask, put, announce = script.requests
    said = {"size_bytes": 6, "sha256": sha(BODY)}
    assert (json.loads(ask.content), put.content, json.loads(announce.content)) == (said, BODY, said)
    assert "authorization" not in put.headers
    assert "flsys-assignment" not in put.headers
    assert {name: put.headers[name] for name in HEADERS} == HEADERS
    for own in (ask, announce):
        assert own.headers["authorization"] == "Bearer device-token"
        assert own.headers["flsys-assignment"] == "assignment-token"


def test_an_assignment_that_does_not_offer_it_is_uploaded():
    script = Script(COUNTED)
    send_update(client(script), "device-token", ASSIGNMENT, BODY)
    assert told(script) == [DIRECT]


@pytest.mark.parametrize(
    ("answers", "calls"),
    [
        ([place(), httpx2.Response(412), COUNTED], [ASK, PUT, ANNOUNCE]),
        ([place(), httpx2.ConnectError, httpx2.Response(200), COUNTED], [ASK, PUT, PUT, ANNOUNCE]),
        ([place(), httpx2.Response(503), httpx2.Response(412), COUNTED], [ASK, PUT, PUT, ANNOUNCE]),
        ([problem(410, "late", "deadline"), COUNTED], [ASK, ANNOUNCE]),
    ],
    ids=["there already", "a lost answer", "a busy bucket", "perhaps counted before the deadline"],
)
def test_what_may_be_there_is_announced(answers, calls):
    assert told(sent(*answers)) == calls


@pytest.mark.parametrize(
    ("answers", "calls"),
    [
        ([problem(404, "not-found", "none"), COUNTED], [ASK, DIRECT]),
        ([problem(422, "invalid-input", "what?"), COUNTED], [ASK, DIRECT]),
        ([place(), httpx2.Response(403), COUNTED], [ASK, PUT, DIRECT]),
        ([place(), httpx2.Response(301, headers={"Location": "https://x.test/"}), COUNTED], [ASK, PUT, DIRECT]),
        ([place(), httpx2.ConnectError, httpx2.ConnectTimeout, COUNTED], [ASK, PUT, PUT, DIRECT]),
        ([place(), httpx2.Response(200), problem(409, "conflict", "not there"), COUNTED], [ASK, PUT, ANNOUNCE, DIRECT]),
        ([place(), httpx2.Response(200), problem(404, "not-found", "gone"), COUNTED], [ASK, PUT, ANNOUNCE, DIRECT]),
        ([place("http://bucket.s3.test/x"), COUNTED], [ASK, DIRECT]),
        ([place("file:///etc/passwd"), COUNTED], [ASK, DIRECT]),
        ([place("/v1/relative"), COUNTED], [ASK, DIRECT]),
        ([place("https://bucket:port/"), COUNTED], [ASK, DIRECT]),
    ],
    ids=[
        *("no such way", "not understood", "refused", "redirected", "out of reach", "not there", "switched off"),
        *("in the clear", "a file", "relative", "no address"),
    ],
)
def test_where_that_way_does_not_lead_through_the_cloud_takes_it(answers, calls):
    assert told(sent(*answers)) == calls


@pytest.mark.parametrize(
    ("answers", "error", "calls"),
    [
        ([problem(401, "unauthenticated", "who?")], Unauthenticated, [ASK]),
        ([problem(429, "quota-exceeded", "much", {"Retry-After": "60"})], TryLater, [ASK]),
        ([problem(503, "try-later", "busy", {"Retry-After": "60"})], TryLater, [ASK]),
        ([place(), httpx2.Response(200), problem(410, "late", "over")], Late, [ASK, PUT, ANNOUNCE]),
        ([place(), httpx2.Response(200), problem(422, "update-unusable", "NaN")], UpdateUnusable, [ASK, PUT, ANNOUNCE]),
        ([place(), httpx2.Response(200), httpx2.ConnectError], TryLater, [ASK, PUT, ANNOUNCE, ANNOUNCE]),
        ([problem(410, "late", "over")], Late, [ASK, ANNOUNCE]),
    ],
    ids=["token", "quota", "overload", "late", "unusable", "no answer", "too late to ask"],
)
def test_what_the_cloud_refuses_is_not_sent_a_second_time(answers, error, calls):
    script = Script(*answers)
    with pytest.raises(error):
        send_update(client(script), "device-token", MESSAGE, BODY)
    assert told(script) == calls
