import email.utils
import hashlib
import os
import time

import httpx2
import pytest
from device_fakes import URL, FakeCloud, problem, sha

from flsys_ray.core.plan import LocalTraining
from flsys_ray.device.client import CloudClient, Jitter, RetryPolicy
from flsys_ray.device.download import FileCache
from flsys_ray.errors import (
    Conflict,
    FlsysError,
    Forbidden,
    InvalidInput,
    Late,
    NotFound,
    TooLarge,
    TryLater,
    Unauthenticated,
    UpdateUnusable,
    all_errors,
)
from flsys_ray.wire.answers import error_of
from flsys_ray.wire.schemas import (
    AssignmentMessage,
    CheckInRequest,
    ModelCandidacy,
    ProgramLink,
    UploadLink,
    WeightsLink,
)

BODY = bytes(range(256)) * 40
HASH = sha(BODY)
ASSIGNMENT = AssignmentMessage(
    assignment_id="a1", token="assignment-token", model="m", round=0, version=0,
    program=ProgramLink(url="/p", sha256=HASH), weights=WeightsLink(url="/w", sha256=HASH), local=LocalTraining(),
    upload=UploadLink(url="/v1/assignments/a1/update", max_bytes=10), deadline_s=1.0,
)  # fmt: skip
CHECK_IN = CheckInRequest(models=[ModelCandidacy(model="m", examples=1)])
EMPTY = b'{"assignments": [], "rejections": [], "eligibility": {}, "retry_after_s": 1, "of_a_newer_cloud": true}'


class Script:
    """Answers in order; an exception is raised; the last one stays."""

    def __init__(self, *answers) -> None:
        self.answers, self.requests, self.waits = list(answers), [], []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        request.read()
        self.requests.append(request)
        found = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(found, type):
            raise found("broken", request=request)
        return found(request) if callable(found) else found

    def client(self, retry: RetryPolicy = RetryPolicy(), jitter=lambda: 0.5) -> CloudClient:  # noqa: B008
        http = httpx2.Client(base_url=URL, transport=httpx2.MockTransport(self))
        return CloudClient(http, self.waits.append, jitter, retry)


def test_a_repeated_call_waits_with_full_jitter():
    script = Script(httpx2.ConnectError, httpx2.ReadTimeout, httpx2.Response(500), httpx2.Response(200, content=EMPTY))
    reply = script.client().check_in("token", CHECK_IN)
    assert reply.retry_after_s == 1
    assert script.waits == [0.25, 0.5, 1.0]
    assert len({request.content for request in script.requests}) == 1


def test_attempts_are_bounded():
    script = Script(httpx2.ConnectError)
    with pytest.raises(TryLater, match="cannot be reached"):
        script.client(RetryPolicy(attempts=3)).check_in("token", CHECK_IN)
    assert len(script.requests) == 3


def test_jitter_is_a_function_of_the_seed():
    assert [Jitter(3)() for _ in range(2)] == [Jitter(3)()] * 2
    jitter = Jitter(3)
    draws = [jitter() for _ in range(500)]
    assert 0 <= min(draws) < 0.05
    assert 0.95 < max(draws) < 1


@pytest.mark.parametrize("status", [503, 429])
def test_retry_after_in_seconds(status):
    busy = httpx2.Response(status, headers={"Retry-After": "7"})
    script = Script(busy, httpx2.Response(200, content=EMPTY))
    script.client().check_in("token", CHECK_IN)
    assert script.waits == [7.25]


def test_retry_after_as_a_date():
    date = email.utils.formatdate(time.time() + 1000, usegmt=True)
    script = Script(httpx2.Response(503, headers={"Retry-After": date}))
    with pytest.raises(TryLater) as caught:
        script.client().check_in("token", CHECK_IN)
    assert 990 < caught.value.retry_after_s < 1001
    assert len(script.requests) == 1  # longer than the client's patience: the phone comes back


@pytest.mark.parametrize("text", ["", "soon", "-3", "Wed, 99 Foo", "Wed, 21 Oct 2015 07:28:00 GMT"])
def test_a_retry_after_that_says_nothing(text):
    assert error_of(httpx2.Response(503, headers={"Retry-After": text})).retry_after_s == 0


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [(401, "unauthenticated", Unauthenticated), (403, "forbidden", Forbidden), (404, "not-found", NotFound),
     (409, "conflict", Conflict), (410, "late", Late), (413, "too-large", TooLarge),
     (422, "update-unusable", UpdateUnusable), (422, "invalid-input", InvalidInput),
     (400, "what-is-this", InvalidInput),
     (410, "of-a-newer-cloud", Late), (503, "store-unavailable", TryLater), (507, "store-full", TryLater)],
)  # fmt: skip
def test_problems_become_errors(status, code, kind):
    error = error_of(problem(status, code, "why"))
    assert type(error) is kind
    assert "why" in error.message


def test_every_error_that_the_cloud_may_send_comes_back():
    for kind in all_errors():
        if 400 <= kind.status < 500:
            assert type(error_of(problem(kind.status, kind.code, "why"))) is kind


@pytest.mark.parametrize(
    "answer",
    [httpx2.Response(200, content=b"<html>Welcome to our Wi-Fi</html>"),
     httpx2.Response(302, headers={"Location": "http://portal"}),
     httpx2.Response(404, content=b"<html>no such page</html>"),
     httpx2.Response(200, content=b'{"status": "counted"}')],
)  # fmt: skip
def test_what_does_not_come_from_the_cloud_is_no_answer(answer):
    client = Script(answer).client()
    with pytest.raises(TryLater):
        client.check_in("token", CHECK_IN)
    with pytest.raises(TryLater):
        client.upload("token", ASSIGNMENT, b"delta")


def test_no_retry_of_what_cannot_succeed():
    script = Script(problem(422, "update-unusable", "no"))
    with pytest.raises(UpdateUnusable):
        script.client().upload("token", ASSIGNMENT, b"delta")
    assert len(script.requests) == 1
    assert script.requests[0].headers["Flsys-Assignment"] == "assignment-token"
    assert script.requests[0].headers["Authorization"] == "Bearer token"


@pytest.mark.parametrize("url", ["http://elsewhere.test/x", "//elsewhere.test/x", "x"])
def test_a_token_goes_to_no_other_host(url, tmp_path):
    script = Script(httpx2.Response(200, content=BODY))
    with pytest.raises(InvalidInput, match="relative to the cloud"):
        FileCache(tmp_path).fetch(script.client(), "token", url, HASH)
    assert not script.requests


# Downloads -------------------------------------------------------------------------------------------------------


class Breaking(httpx2.SyncByteStream):
    def __init__(self, body: bytes) -> None:
        self.body = body

    def __iter__(self):
        yield self.body
        raise httpx2.ReadError("broken")


class FileServer:
    """Serves BODY with ranges, breaking off after each of `pieces` bytes until they are used up."""

    def __init__(self, *pieces: int, etag: str = '"tag"', body: bytes = BODY) -> None:
        self.pieces, self.etag, self.body = list(pieces), etag, body

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        start, status, headers = 0, 200, {"ETag": self.etag}
        if "Range" in request.headers and request.headers.get("If-Range") == self.etag:
            start = int(request.headers["Range"].removeprefix("bytes=").removesuffix("-"))
            status, headers["Content-Range"] = 206, f"bytes {start}-{len(self.body) - 1}/{len(self.body)}"
            if start >= len(self.body):
                return problem(416, "range-unsatisfiable", "past the end")
        if self.pieces:
            return httpx2.Response(
                status, stream=Breaking(self.body[start : start + self.pieces.pop(0)]), headers=headers
            )
        return httpx2.Response(status, content=self.body[start:], headers=headers)


def ranges(script: Script) -> list[str | None]:
    return [request.headers.get("Range") for request in script.requests]


def test_a_download_resumes_where_it_broke_off(tmp_path):
    script = Script(FileServer(1000, 500))
    client = script.client()
    path = FileCache(tmp_path).fetch(client, "token", "/file", HASH)
    assert path.read_bytes() == BODY
    assert ranges(script) == [None, "bytes=1000-", "bytes=1500-"]
    assert client.traffic.down_bytes == len(BODY)
    assert [entry.name for entry in tmp_path.iterdir()] == [HASH]
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_new_process_resumes_too(tmp_path):
    with pytest.raises(TryLater):
        FileCache(tmp_path).fetch(Script(FileServer(1000)).client(RetryPolicy(attempts=1)), "token", "/file", HASH)
    script = Script(FileServer())
    assert FileCache(tmp_path).fetch(script.client(), "token", "/file", HASH).read_bytes() == BODY
    assert ranges(script) == ["bytes=1000-"]


def test_a_killed_phone_that_had_all_bytes_asks_for_none(tmp_path):
    (tmp_path / f"{HASH}.part").write_bytes(BODY)
    script = Script(FileServer())
    assert FileCache(tmp_path).fetch(script.client(), "token", "/file", HASH).read_bytes() == BODY
    assert not script.requests


@pytest.mark.parametrize("etag", ['W/"tag"', ""])
def test_without_a_strong_tag_it_starts_anew(tmp_path, etag):
    script = Script(FileServer(1000, etag=etag))
    assert FileCache(tmp_path).fetch(script.client(), "token", "/file", HASH).read_bytes() == BODY
    assert ranges(script) == [None, None]


@pytest.mark.parametrize("old", [b"other bytes", BODY[:-1] + b"x", BODY + b"more"])
def test_a_part_of_another_file_does_no_harm(tmp_path, old):
    (tmp_path / f"{HASH}.part").write_bytes(old)
    (tmp_path / f"{HASH}.etag").write_text('"tag"')
    assert FileCache(tmp_path).fetch(Script(FileServer()).client(), "token", "/file", HASH).read_bytes() == BODY


def test_another_file_than_announced_is_refused_after_one_new_start(tmp_path):
    script = Script(FileServer(body=b"not the file"))
    with pytest.raises(InvalidInput, match="does not have the announced sha256"):
        FileCache(tmp_path).fetch(script.client(), "token", "/file", HASH)
    assert len(script.requests) == 2
    assert not list(tmp_path.iterdir())


def test_a_server_that_sends_another_range(tmp_path):
    (tmp_path / f"{HASH}.part").write_bytes(BODY[:1000])
    (tmp_path / f"{HASH}.etag").write_text('"tag"')
    wrong = httpx2.Response(206, content=BODY[5:], headers={"ETag": '"tag"', "Content-Range": "bytes 5-9/10"})
    script = Script(wrong, FileServer())
    assert FileCache(tmp_path).fetch(script.client(), "token", "/file", HASH).read_bytes() == BODY
    assert ranges(script) == ["bytes=1000-", None]


def test_the_cloud_may_refuse_a_download(tmp_path):
    with pytest.raises(NotFound):
        FileCache(tmp_path).fetch(Script(problem(404, "not-found", "gone")).client(), "token", "/file", HASH)


def test_the_cache_forgets_what_was_not_used_for_longest(tmp_path, monkeypatch):
    bodies = [bytes([i]) * 1000 for i in range(4)]
    cache, instants = FileCache(tmp_path, cap_bytes=3000), iter(range(1, 100))
    real = os.utime
    monkeypatch.setattr(os, "utime", lambda path: real(path, (now := next(instants), now)))
    for body in bodies[:3]:
        (tmp_path / sha(body)).write_bytes(body)
        cache.path(sha(body))
    cache.path(sha(bodies[0]))  # used again
    cache.fetch(Script(FileServer(body=bodies[3])).client(), "token", "/file", sha(bodies[3]))
    assert {path.name for path in tmp_path.iterdir()} == {sha(bodies[i]) for i in (0, 2, 3)}


def test_the_newest_version_is_asked_for_by_one_byte(clock):
    cloud = FakeCloud(clock)
    cloud.tokens["token"] = "device"
    client = CloudClient(httpx2.Client(base_url=URL, transport=cloud.transport), clock.wait, lambda: 0.5)
    latest = client.latest("token", "har-wild")
    model = cloud.models["har-wild"]
    assert (latest.version, latest.weights_sha256, latest.program_sha256) == (
        0, sha(model.versions[0]), hashlib.sha256(model.program).hexdigest()
    )  # fmt: skip
    assert cloud.recorded[0].headers["Range"] == "bytes=0-0"
    with pytest.raises(FlsysError):
        client.latest("token", "nobody")
