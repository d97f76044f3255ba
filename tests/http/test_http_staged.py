"""Updates that phones put into the store by themselves: what was promised of an upload holds, and nothing else counts.

The store is S3 (moto's server, behind a gate that checks signatures); the cloud in front of it is the real one.
"""

import hashlib
import http.client
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx2
import numpy as np
import pytest
from cloud_fakes import START
from cloud_world import OPERATOR_KEY, PAIR, World, bearer, open_world, problem
from fastapi.testclient import TestClient
from s3_server import ENVIRONMENT, S3Server
from served import served
from tiny_program import PARAMETERS

from flsys_ray.cloud import places
from flsys_ray.cloud.staging import EXPIRES_S, KEPT_S
from flsys_ray.device.clock import VirtualClock
from flsys_ray.device.conditions import FixedConditions
from flsys_ray.device.configuration import PhoneConfig
from flsys_ray.device.phone import Phone
from flsys_ray.errors import StoreUnavailable
from flsys_ray.storage.s3 import S3Store, make_client
from flsys_ray.storage.s3_place import parse_place

ONE = PAIR | {"pacing": PAIR["pacing"] | {"cohort": 1}}


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with pytest.MonkeyPatch.context() as patch, S3Server().running() as running:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        yield running


@pytest.fixture(scope="module")
def client(server: S3Server) -> Iterator[Any]:
    made = make_client(parse_place(server.uri()))
    yield made
    made.close()


@pytest.fixture
def s3(server: S3Server, client: Any, tiny) -> Iterator[World]:
    store = S3Store(parse_place(server.uri(presigned="true", tries=2)), client, pause=lambda seconds: None)
    yield from open_world(tiny.data, PARAMETERS, store)


@pytest.fixture
def key(s3: World) -> str:
    return s3.app()


def said(body: bytes) -> dict[str, Any]:
    return {"size_bytes": len(body), "sha256": hashlib.sha256(body).hexdigest()}


def ask(world: World, token: str, work: Any, what: dict[str, Any]) -> httpx2.Response:
    return world.http.post(work["upload"]["staged"], json=what, headers=bearer(token, work["token"]))


def announce(world: World, token: str, work: Any, what: dict[str, Any]) -> httpx2.Response:
    return world.http.put(work["upload"]["staged"], json=what, headers=bearer(token, work["token"]))


def put(address: Any, body: bytes, **headers: str) -> int:
    parts = urlsplit(address["url"])
    connection = http.client.HTTPConnection(parts.netloc, timeout=10)
    try:
        connection.request("PUT", f"{parts.path}?{parts.query}", body, address["headers"] | headers)
        return connection.getresponse().status
    finally:
        connection.close()


def send(world: World, token: str, work: Any, body: bytes) -> httpx2.Response:
    """Ask, put, announce."""
    reply = ask(world, token, work, said(body))
    assert reply.status_code == 201, reply.text
    assert put(reply.json(), body) in (200, 412)
    return announce(world, token, work, said(body))


def staged(world: World) -> list[str]:
    return [*world.store.list(places.STAGED)]


# What holds ------------------------------------------------------------------------------------------------------


def test_an_update_that_was_put_there_counts_like_an_upload_and_nothing_stays_behind(s3: World, key: str):
    s3.training(key)
    one, two = (s3.device(key, name) for name in ("one", "two"))
    first, second, body = s3.work(one), s3.work(two), s3.body()
    assert first["upload"]["staged"] == f"/v1/assignments/{first['assignment_id']}/staged"
    assert send(s3, one, first, body).json() == {"status": "counted", "duplicate": False}
    assert s3.upload(two, second).json()["duplicate"] is False
    manifest = s3.manifest(key, 1)
    assert len(manifest["updates"]) == 2
    assert {line["sha256"] for line in manifest["updates"]} == {hashlib.sha256(body).hexdigest()}
    assert staged(s3) == []


def test_every_step_may_be_repeated_and_counts_once(s3: World, key: str):
    s3.training(key, plan=PAIR | {"pacing": PAIR["pacing"] | {"cohort": 3}})
    token = s3.device(key, "one")
    work, body = s3.work(token), s3.body()
    address = ask(s3, token, work, said(body)).json()
    assert ask(s3, token, work, said(body)).status_code == 201
    assert (put(address, body), put(address, body)) == (200, 412)
    assert announce(s3, token, work, said(body)).json()["duplicate"] is False
    assert announce(s3, token, work, said(body)).json()["duplicate"] is True
    assert s3.upload(token, work, body).json()["duplicate"] is True
    assert send(s3, token, work, body).json()["duplicate"] is True
    assert s3.info(key)["open_round"]["counters"]["counted"] == 1
    assert staged(s3) == []


def test_what_nobody_announced_is_in_no_round_and_a_new_owner_does_not_find_it(s3: World, key: str):
    s3.training(key, plan=ONE)
    token = s3.device(key, "one")
    work, body = s3.work(token), s3.body()
    assert put(ask(s3, token, work, said(body)).json(), body) == 200
    s3.cloud.hosts.host("acme/tiny")._model = None  # the owner dies; the next one looks what is in the store
    info = s3.info(key)
    assert (info["version"], info["open_round"]["counters"]["counted"]) == (0, 0)
    assert s3.give_back(token, work).status_code == 204
    found = problem(announce(s3, token, work, said(body)), 410, "late")
    assert "given-back" in found["detail"]
    assert staged(s3) == []


def test_counted_before_the_answer_was_lost_is_a_duplicate_even_after_the_deadline(s3: World, key: str):
    s3.training(key, plan=ONE)
    token = s3.device(key, "one")
    work, body = s3.work(token), s3.body()
    send(s3, token, work, body)
    assert s3.info(key)["version"] == 1
    s3.clock.advance(61)
    problem(ask(s3, token, work, said(body)), 410, "late")
    assert announce(s3, token, work, said(body)).json() == {"status": "counted", "duplicate": True}


def test_too_late_is_late_and_takes_the_object_away(s3: World, key: str):
    s3.training(key, plan=ONE)
    token = s3.device(key, "one")
    work, body = s3.work(token), s3.body()
    assert put(ask(s3, token, work, said(body)).json(), body) == 200
    s3.clock.advance(61)
    problem(announce(s3, token, work, said(body)), 410, "late")
    problem(announce(s3, token, work, said(body)), 410, "late")
    assert staged(s3) == []


def test_it_is_checked_like_an_upload(s3: World, key: str):
    s3.training(key, plan=ONE | {"limits": {"max_norm": 0.01}})
    token = s3.device(key, "one")
    work = s3.work(token)
    for body in (s3.body(float("nan")), b"no tensors", s3.body(1.0)):
        problem(send(s3, token, work, body), 422, "update-unusable")
    assert staged(s3) == []
    assert send(s3, token, work, s3.body(0.0001)).json()["duplicate"] is False


def test_the_store_failing_anywhere_loses_nothing(s3: World, server: S3Server, key: str):
    s3.training(key, plan=ONE)
    token = s3.device(key, "one")
    work, body = s3.work(token), s3.body()
    assert put(ask(s3, token, work, said(body)).json(), body) == 200
    requests = 0
    while True:  # fail at the first request of an announcement, at the second, ...
        server.gate.faults[:] = [None] * requests + ["500-before"] * 2
        reply = announce(s3, token, work, said(body))
        struck = not server.gate.faults
        server.gate.faults.clear()
        if reply.status_code == 200 and not struck:
            break
        if reply.status_code != 200:
            problem(reply, 503, "store-unavailable")
        requests += 1
    assert requests >= 3
    info = s3.info(key)
    assert (info["version"], len(s3.manifest(key, 1)["updates"])) == (1, 1)


# Whose address it is ---------------------------------------------------------------------------------------------


def test_an_address_takes_what_was_said_for_the_assignment_and_nothing_else(s3: World, key: str):
    s3.training(key)
    one, two = (s3.device(key, name) for name in ("one", "two"))
    first, second, body, evil = s3.work(one), s3.work(two), s3.body(0.1), s3.body(0.2)
    address = ask(s3, one, first, said(body)).json()
    assert address["expires_in_s"] == 60.0 <= EXPIRES_S
    assert "X-Amz-Expires=60&" in address["url"]
    assert put(address, evil) == 400  # another content: its checksum is not the signed one
    assert put(address, body + b"x", **{"Content-Length": str(len(body) + 1)}) == 403
    elsewhere = address | {"url": address["url"].replace(first["assignment_id"], second["assignment_id"])}
    assert put(elsewhere, body) == 403
    assert staged(s3) == []
    assert put(address, body) == 200
    problem(announce(s3, two, second, said(body)), 409, "conflict")


def test_only_the_device_of_the_assignment_gets_one(s3: World, key: str):
    s3.training(key)
    one, two = (s3.device(key, name) for name in ("one", "two"))
    work, body = s3.work(one), s3.body()
    for call in (ask, announce):
        problem(call(s3, two, work, said(body)), 403, "forbidden")
        problem(call(s3, "nobody", work, said(body)), 401, "unauthenticated")
        problem(call(s3, one, work | {"token": "x"}, said(body)), 401, "unauthenticated")
    other = s3.app("other")
    s3.training(other)
    stranger = s3.device(other, "one")
    problem(ask(s3, stranger, work, said(body)), 403, "forbidden")


def test_what_is_announced_is_what_is_there(s3: World, key: str):
    s3.training(key)
    token = s3.device(key, "one")
    work, body = s3.work(token), s3.body()
    problem(announce(s3, token, work, said(body)), 409, "conflict")
    assert put(ask(s3, token, work, said(body)).json(), body) == 200
    other = s3.body(0.2)
    found = problem(announce(s3, token, work, said(other)), 409, "conflict")
    assert "not what was announced" in found["detail"]
    assert staged(s3) == []
    assert s3.upload(token, work, other).json()["duplicate"] is False


@pytest.mark.parametrize(
    "wrong",
    [{"size_bytes": 0}, {"size_bytes": -1}, {"size_bytes": "x"}, {"sha256": "AB"}, {"sha256": None}, {"more": 1}],
    ids=str,
)
def test_a_message_that_is_none_is_refused(s3: World, key: str, wrong):
    s3.training(key)
    token = s3.device(key, "one")
    work = s3.work(token)
    for call in (ask, announce):
        problem(call(s3, token, work, said(s3.body()) | wrong), 422, "invalid-input")


def test_more_bytes_than_the_assignment_takes_get_no_address(s3: World, key: str):
    s3.training(key)
    token = s3.device(key, "one")
    work = s3.work(token)
    large = said(b"x") | {"size_bytes": work["upload"]["max_bytes"] + 1}
    for call in (ask, announce):
        problem(call(s3, token, work, large), 413, "too-large")


def test_an_evaluation_assignment_has_no_update(s3: World, key: str):
    plan = PAIR | {"evaluation": {"every": 1, "cohort": 2, "deadline_s": 60}}
    s3.training(key, plan=PAIR | plan)
    tokens = [s3.device(key, str(n)) for n in range(8)]
    offers = [(token, work) for token in tokens for work in s3.check_in(token)["assignments"]]
    token, work = next((token, work) for token, work in offers if work["kind"] == "evaluate")
    for call in (ask, announce):
        problem(call(s3, token, work, said(b"x" * 100)), 409, "conflict")


# Quotas and room -------------------------------------------------------------------------------------------------


def limited(world: World, **quotas: int) -> str:
    body = {"name": "acme", "quotas": quotas}
    return str(world.http.post("/v1/apps", json=body, headers=bearer(OPERATOR_KEY)).json()["key"])


def test_the_bytes_of_an_address_count_as_those_of_an_upload_do(s3: World):
    key, body = s3.app(), s3.body()
    s3.training(key)
    one, two = (s3.device(key, name) for name in ("one", "two"))
    first, second = s3.work(one), s3.work(two)
    limited(s3, upload_bytes_per_min=len(body))
    assert ask(s3, one, first, said(body)).status_code == 201
    for call in (ask, announce):
        problem(call(s3, two, second, said(body)), 429, "quota-exceeded")
    problem(s3.upload(two, second), 429, "quota-exceeded")
    s3.clock.advance(30)
    assert ask(s3, two, second, said(body)).status_code == 201


def test_a_repeated_announcement_counts_its_bytes_the_first_does_not(s3: World):
    key, body = s3.app(), s3.body()
    s3.training(key)
    token = s3.device(key, "one")
    work = s3.work(token)
    limited(s3, upload_bytes_per_min=len(body) + 1)
    assert send(s3, token, work, body).json()["duplicate"] is False
    assert announce(s3, token, work, said(body)).json()["duplicate"] is True
    problem(announce(s3, token, work, said(body)), 429, "quota-exceeded")


def test_what_is_announced_needs_room_like_a_body(s3: World, key: str):
    s3.training(key)
    token = s3.device(key, "one")
    work, body = s3.work(token), s3.body()
    assert put(ask(s3, token, work, said(body)).json(), body) == 200
    admission = s3.http.app.state.admission
    with admission.body() as came:
        came(admission.bounds.body_bytes)
        problem(announce(s3, token, work, said(body)), 503, "try-later")
    assert announce(s3, token, work, said(body)).json()["duplicate"] is False


# What is left behind ---------------------------------------------------------------------------------------------


def test_what_was_never_announced_goes_an_hour_after_its_deadline(s3: World, key: str):
    s3.training(key, plan=PAIR | {"pacing": PAIR["pacing"] | {"quorum": 1}})
    one, two = (s3.device(key, name) for name in ("one", "two"))
    body = s3.body()
    assert put(ask(s3, one, s3.work(one), said(body)).json(), body) == 200
    s3.clock.advance(60 + KEPT_S - 120)
    work = s3.work(two)
    assert put(ask(s3, two, work, said(body)).json(), body) == 200
    assert len(staged(s3)) == 2
    s3.clock.advance(59)
    assert s3.cloud.staging.sweep() == 0
    s3.clock.advance(62)
    assert s3.cloud.staging.sweep() == 1
    assert s3.cloud.staging.sweep() == 0
    assert [places.owner_of(name)[0] for name in staged(s3)] == [work["assignment_id"]]
    s3.clock.advance(2 * KEPT_S)
    assert ask(s3, one, s3.work(one), said(body)).status_code == 201  # who asks has it swept
    assert staged(s3) == []


def test_who_asks_has_the_answer_before_the_sweep_begins(s3: World, key: str, monkeypatch: pytest.MonkeyPatch):
    """A thousand objects take a store many seconds to remove: longer than a phone waits for an answer."""
    s3.training(key)
    one, two = (s3.device(key, name) for name in ("one", "two"))
    body, happened, remove = s3.body(), list[str](), s3.store.remove
    assert put(ask(s3, one, s3.work(one), said(body)).json(), body) == 200
    s3.clock.advance(2 * KEPT_S)
    work = s3.work(two)
    monkeypatch.setattr(s3.store, "remove", lambda name: (happened.append("removed"), remove(name)))

    async def watched(scope: Any, receive: Any, send: Any) -> None:
        async def told(message: Any) -> None:
            happened.append(message["type"])
            await send(message)

        await s3.http.app(scope, receive, told)

    reply = TestClient(watched).post(work["upload"]["staged"], json=said(body), headers=bearer(two, work["token"]))
    assert reply.status_code == 201
    assert happened == ["http.response.start", "http.response.body", "removed"]
    assert staged(s3) == []


def test_a_store_that_fails_stops_no_sweep_for_ever(s3: World, server: S3Server, key: str):
    s3.training(key)
    token = s3.device(key, "one")
    body = s3.body()
    assert put(ask(s3, token, s3.work(token), said(body)).json(), body) == 200
    s3.clock.advance(2 * KEPT_S)
    for place in range(2):
        server.gate.faults[:] = [None] * place + ["503-before"] * 2
        assert s3.cloud.staging.sweep() == 0
    server.gate.faults.clear()
    assert s3.cloud.staging.sweep() == 1


def test_no_other_store_offers_it(world: World, s3: World):
    assert not world.store.presigns
    key = world.app()
    world.training(key)
    token = world.device(key, "one")
    work = world.work(token)
    assert work["upload"]["staged"] is None
    path = f"/v1/assignments/{work['assignment_id']}/staged"
    for method in ("POST", "PUT"):
        reply = world.http.request(method, path, json=said(b"x"), headers=bearer(token, work["token"]))
        problem(reply, 404, "not-found")


def test_a_bucket_offers_it_only_if_its_uri_says_so(server: S3Server, client: Any):
    assert not S3Store(parse_place(server.uri()), client).presigns
    assert S3Store(parse_place(server.uri(presigned="true")), client).presigns


# Real phones -----------------------------------------------------------------------------------------------------


def phones(folder: Path, url: str, key: str) -> Iterator[Phone]:
    clock, rng = VirtualClock(START), np.random.default_rng(0)
    for number in range(2):
        config = PhoneConfig(url=url, app_key=key, models=("tiny",), seed=5)
        phone = Phone(folder / str(number), config, conditions=FixedConditions(), clock=clock)
        for example in range(60):
            y = example % 3
            phone.add_example("tiny", rng.normal(y, 0.3, 4).astype(np.float32), y, at_s=START + 2.5 * example)
        phone.consent("tiny", granted=True)
        yield phone


@pytest.mark.parametrize("reachable", [True, False], ids=["straight to S3", "S3 refuses phones"])
def test_real_phones_put_their_updates_there_and_fall_back_to_the_cloud(
    s3: World, server: S3Server, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reachable: bool
):
    s3.training(key, plan=PAIR | {"pacing": PAIR["pacing"] | {"over_selection": 1}})
    if not reachable:
        monkeypatch.setattr("s3_server.SECRET", "another secret")  # every signature is wrong now
    server.gate.seen.clear()
    with served(s3.http.app) as url:
        found = [*phones(tmp_path, url, key)]
        try:
            for _ in range(12):
                for phone in found:
                    phone.step()
        finally:
            for phone in found:
                phone.close()
    assert s3.info(key)["version"] >= 1
    assert staged(s3) == []
    sent = [path for method, path in server.gate.seen if method == "PUT" and "/staged/" in path]
    assert len(sent) >= 2
    assert s3.http.app.state.admission.held_bytes == 0


def test_an_address_that_leads_nowhere_costs_a_phone_no_update(s3: World, key: str, tmp_path: Path):
    """The cloud reaches its bucket by a name that phones cannot."""
    s3.training(key, plan=ONE)
    inner = s3.store.presigned_put

    def elsewhere(*args: Any) -> Any:
        signed = inner(*args)
        return type(signed)("http://127.0.0.1:9/nowhere", signed.headers)

    with pytest.MonkeyPatch.context() as patch, served(s3.http.app) as url:
        patch.setattr(s3.store, "presigned_put", elsewhere)
        phone = next(phones(tmp_path, url, key))
        try:
            kinds = [phone.step().kind for _ in range(6)]
        finally:
            phone.close()
    assert "uploaded" in kinds
    assert s3.info(key)["version"] == 1


def test_a_sweep_that_meets_a_store_that_is_away_raises_nothing(s3: World, monkeypatch: pytest.MonkeyPatch):
    def away(*_: Any) -> Any:
        raise StoreUnavailable("store: gone")

    monkeypatch.setattr(s3.store, "list", away)
    assert s3.cloud.staging.sweep() == 0
