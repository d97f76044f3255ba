"""Back-pressure: what is too much is refused early, with a time to come back; what was let in is kept.

Bodies that come drop by drop are cut off.
"""

import asyncio
import json
import threading
from collections.abc import Callable
from typing import Any

import pytest
from cloud_fakes import Clock
from cloud_world import World, bearer, problem
from hypothesis import example, given
from hypothesis import strategies as st

from flsys_ray.errors import TryLater
from flsys_ray.http import limits
from flsys_ray.http.admission import RESERVED_S, UPLOADS_FIRST_S, WINDOW_S, Admission, Bounds


def bounded(world: World, **bounds: int) -> Admission:
    """Give the app other bounds."""
    admission = world.http.app.state.admission
    admission.bounds = Bounds(**bounds)
    return admission


class Phone:
    """Speaks ASGI: the body comes piece by piece, when it is let."""

    def __init__(self, world: World, method: str, path: str, headers: dict[str, str]) -> None:
        self.app = world.http.app
        self.asked = 0
        self.pieces: asyncio.Queue[bytes | None] = asyncio.Queue()
        self.status: int | None = None
        self.headers: dict[str, str] = {}
        self.body = b""
        self.scope: dict[str, Any] = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": method, "path": path,
            "raw_path": path.encode(), "query_string": b"", "root_path": "", "scheme": "http", "server": ("test", 80),
            "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        }  # fmt: skip

    async def _receive(self) -> dict[str, Any]:
        self.asked += 1
        piece = await self.pieces.get()
        return {"type": "http.request", "body": piece or b"", "more_body": piece is not None}

    async def _send(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            self.headers = {name.decode(): value.decode() for name, value in message["headers"]}
        self.body += message.get("body", b"")

    async def call(self) -> None:
        await self.app(self.scope, self._receive, self._send)

    def start(self, body: bytes, size: int = 65536, *, whole: bool = True) -> "asyncio.Task[None]":
        for at in range(0, len(body), size):
            self.pieces.put_nowait(body[at : at + size])
        if whole:
            self.pieces.put_nowait(None)
        return asyncio.ensure_future(self.call())


def uploading(world: World, key: str, name: str, body: bytes) -> Phone:
    token = world.device(key, name)
    work = world.work(token)
    headers = bearer(token, work["token"]) | {"Content-Length": str(len(body))}
    return Phone(world, "PUT", work["upload"]["url"], headers)


def refusal(phone: Phone) -> float:
    """Return when a refused phone comes back."""
    assert phone.status == 503
    found = json.loads(phone.body)
    assert found["type"].endswith("/try-later")
    assert int(phone.headers["retry-after"]) >= found["retry_after_s"] > 0
    return float(found["retry_after_s"])


def test_an_upload_that_has_no_room_is_refused_before_its_body_is_read(world: World, key):
    world.training(key)
    body = world.body()
    phone = uploading(world, key, "one", body)
    bounded(world, uploads=0)

    async def play() -> None:
        await phone.start(body)

    asyncio.run(play())
    refusal(phone)
    assert phone.asked == 0
    bounded(world)
    assert world.info(key)["open_round"]["counters"]["pending"] == 1, "its work is still its own"


def test_bodies_are_bounded_by_the_bytes_that_have_come(world: World, key):
    world.training(key, plan={"pacing": {"name": "rounds", "cohort": 8, "deadline_s": 600}, "selection": "first_come"})
    body = world.body()
    phones = [uploading(world, key, f"phone-{n}", body) for n in range(4)]
    admission = bounded(world, body_bytes=2 * len(body))

    async def play() -> None:
        slow = [phone.start(body, whole=False) for phone in phones[:2]]  # all bytes are there, the end is not
        await settled(lambda: admission.held_bytes == 2 * len(body))
        refused = phones[2]
        await refused.start(body)
        refusal(refused)
        assert refused.asked == 0
        for phone in phones[:2]:
            phone.pieces.put_nowait(None)
        await asyncio.gather(*slow)
        assert [phone.status for phone in phones[:2]] == [200, 200], "what was let in is kept"
        assert admission.held_bytes == 0
        await phones[3].start(body)
        assert phones[3].status == 200

    asyncio.run(play())


def test_a_body_that_outgrows_the_room_on_its_way_is_refused_there_but_not_if_it_is_alone(world: World, key):
    world.training(key, plan={"pacing": {"name": "rounds", "cohort": 8, "deadline_s": 600}, "selection": "first_come"})
    body = world.body()
    first, second = (uploading(world, key, name, body) for name in ("one", "two"))
    del second.scope["headers"][-1]  # no Content-Length
    admission = bounded(world, body_bytes=len(body) // 2)

    async def play() -> None:
        large = first.start(body, whole=False)
        await settled(lambda: admission.held_bytes == len(body))
        await second.start(body, size=16)
        refusal(second)
        first.pieces.put_nowait(None)
        await large
        assert first.status == 200

    asyncio.run(play())
    assert admission.held_bytes == 0


def test_too_many_check_ins_at_once_are_refused_and_the_others_answered(world: World, key):
    world.training(key)
    token = world.device(key, "one")
    bounded(world, check_ins=0)
    body = {"models": [{"model": "tiny", "examples": 5}]}
    reply = world.http.post("/v1/checkins", json=body, headers=bearer(token))
    found = problem(reply, 503, "try-later")
    assert int(reply.headers["retry-after"]) >= found["retry_after_s"]
    assert world.http.get("/healthz").status_code == 200
    bounded(world)
    assert world.work(token)


class HeldStore:
    """Has a world's store hold back what is read of some keys until it is let, and counts it."""

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch, *prefixes: str) -> None:
        self.let = threading.Event()
        self.asked: list[str] = []
        kind = type(world.store)
        get = kind.get

        def held(store: Any, key: str, *span: Any) -> Any:
            if key.startswith(prefixes):
                self.asked.append(key)
                assert self.let.wait(10)
            return get(store, key, *span)

        monkeypatch.setattr(kind, "get", held)

    def answers(self, phones: list[Phone], body: bytes, refused: int) -> list[int]:
        """Have phones call; let the store answer once so many were refused. Return all statuses, sorted."""

        async def play() -> None:
            asking = [phone.start(body) for phone in phones]
            await settled(lambda: sum(task.done() for task in asking) == refused)
            self.let.set()
            await asyncio.gather(*asking)

        asyncio.run(play())
        return sorted(phone.status or 0 for phone in phones)


def test_check_ins_that_wait_for_the_store_are_bounded_and_look_once(world: World, key, monkeypatch):
    """What a replica knows grows old for all calls at once: no call may wait unseen, and one look is enough for all."""
    world.training(key, plan={"pacing": {"name": "rounds", "cohort": 8, "deadline_s": 600}, "selection": "first_come"})
    tokens = [world.device(key, f"phone-{n}") for n in range(40)]
    world.check_in(tokens[0])
    world.clock.advance(60)
    held = HeldStore(world, monkeypatch, "secrets/", "apps/")
    body = json.dumps({"models": [{"model": "tiny", "examples": 100}]}).encode()
    headers = [bearer(token) | {"Content-Type": "application/json"} for token in tokens]
    phones = [Phone(world, "POST", "/v1/checkins", each) for each in headers]
    bounded(world, check_ins=30)

    assert held.answers(phones, body, refused=10) == [200] * 30 + [503] * 10
    assert len(held.asked) == len(set(held.asked)) >= 2


def test_uploads_that_wait_for_the_store_are_bounded(world: World, key, monkeypatch):
    world.training(key, plan={"pacing": {"name": "rounds", "cohort": 8, "deadline_s": 600}, "selection": "first_come"})
    body = world.body()
    phones = [uploading(world, key, f"phone-{n}", body) for n in range(8)]
    world.clock.advance(60)
    held = HeldStore(world, monkeypatch, "secrets/")
    bounded(world, readers=5)

    assert held.answers(phones, body, refused=3) == [200] * 5 + [503] * 3
    assert len(held.asked) == 1


def test_a_look_that_takes_longer_than_its_result_is_fresh_is_good_for_those_who_wait(world: World, key, monkeypatch):
    """A slow store makes calls slow: it must not make them look for ever."""
    world.training(key)
    token = world.device(key, "one")
    world.check_in(token)
    world.clock.advance(60)
    kind = type(world.store)
    get = kind.get
    asked = []

    def slow(store: Any, name: str, *span: Any) -> Any:
        asked.append(name)
        assert len(asked) < 100, "it looks again and again"
        world.clock.advance(30)
        return get(store, name, *span)

    monkeypatch.setattr(kind, "get", slow)
    assert world.check_in(token)["retry_after_s"] > 0
    assert len([name for name in asked if name.startswith("secrets/")]) <= 2


@pytest.mark.parametrize("path", ["update", "checkins", "give back"])
def test_a_body_that_comes_drop_by_drop_is_cut_off(world: World, key, path, monkeypatch):
    monkeypatch.setattr(limits, "PATIENCE_S", 0.05)
    monkeypatch.setattr(limits, "SLOWEST_BYTES_PER_S", 1e9)
    world.training(key)
    body = world.body()
    phone = uploading(world, key, "one", body)
    if path == "checkins":
        phone.scope |= {"method": "POST", "path": "/v1/checkins"}
        phone.scope["headers"].append((b"content-type", b"application/json"))
    elif path == "give back":
        phone.scope |= {"method": "DELETE", "path": phone.scope["path"].removesuffix("/update")}
        phone.scope["headers"].append((b"content-type", b"application/json"))

    async def play() -> None:
        await asyncio.wait_for(phone.start(body[:10], whole=False), 10)

    asyncio.run(play())
    assert phone.status == 503
    assert int(phone.headers["retry-after"]) == limits.SLOW_RETRY_S
    assert json.loads(phone.body)["detail"] == limits.TOO_SLOW


def test_a_phone_that_hangs_up_frees_its_room(world: World, key):
    world.training(key)
    body = world.body()
    phone = uploading(world, key, "one", body)
    admission = bounded(world)

    async def play() -> None:
        call = phone.start(body, whole=False)
        await settled(lambda: admission.held_bytes == len(body))
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)

    asyncio.run(play())
    assert admission.held_bytes == 0
    admission.check_room(1)


async def settled(reached: Callable[[], bool]) -> None:
    for _ in range(1000):
        if reached():
            return
        await asyncio.sleep(0)
    raise AssertionError("never reached")


def open_to(admission: Admission) -> tuple[bool, bool]:
    """Return whether a check-in is taken in, and an upload of one byte."""
    taken = []
    for check in (admission.check_room_for_check_in, lambda: admission.check_room(1)):
        try:
            check()
        except TryLater:
            taken.append(False)
        else:
            taken.append(True)
    return taken[0], taken[1]


def test_a_loop_that_is_late_once_takes_everything_in_and_one_that_stays_late_does_not():
    admission = Admission(Bounds(lag_s=0.2), Clock())
    for lag_s, taken in [(9.0, True), (0.0, True), (0.3, True), (0.3, False), (0.1, True), (9.0, True), (9.0, False)]:
        admission.is_late(lag_s)
        assert open_to(admission)[0] is taken
    assert open_to(admission) == (False, False)
    admission.is_late(0.0)
    assert admission.strained, "an upload was refused a moment ago"


def test_no_work_is_given_out_while_its_uploads_are_refused():
    clock = Clock()
    admission = Admission(Bounds(uploads=2), clock)
    with admission.upload(0), admission.upload(0):
        assert open_to(admission) == (False, False)
    assert open_to(admission) == (False, True)
    clock.advance(UPLOADS_FIRST_S)
    assert open_to(admission) == (True, True)


def test_who_says_that_it_sends_very_much_keeps_nobody_else_out():
    admission = Admission(Bounds(body_bytes=100), Clock())
    with admission.body(50):
        with pytest.raises(TryLater):
            admission.check_room(10**12)
        assert open_to(admission) == (True, True)


def test_no_work_is_given_out_when_half_of_the_room_is_taken_by_whole_uploads():
    admission = Admission(Bounds(body_bytes=100), Clock())
    with admission.upload(50):
        assert open_to(admission) == (True, True)
        with admission.upload(1):
            assert open_to(admission) == (False, True)


def test_a_body_has_room_for_its_whole_length_at_first_and_a_slow_one_for_what_has_come():
    clock = Clock()
    admission = Admission(Bounds(body_bytes=100), clock)
    with admission.body(80) as came:
        came(10)
        admission.check_room(20)
        with pytest.raises(TryLater):
            admission.check_room(21)
        clock.advance(RESERVED_S)
        admission.check_room(90)
        with admission.body(90) as fast:
            with pytest.raises(TryLater):
                came(1)
            fast(90)
    assert admission.held_bytes == 0


BODY_STEP = st.tuples(
    st.sampled_from(["begin", "come", "come", "end", "wait"]), st.sampled_from([0, 1, 30, 60]), st.integers(0, 2)
)


@example(steps=[("begin", 60, 0), ("begin", 30, 0), ("come", 60, 0), ("come", 60, 0), ("come", 1, 1)])
@example(steps=[("begin", 60, 0), ("begin", 60, 0), ("come", 60, 0), ("come", 60, 1)])
@given(steps=st.lists(BODY_STEP, max_size=60))
def test_bytes_in_hand_are_within_the_bound_but_for_one_body_alone(steps):
    clock = Clock()
    admission = Admission(Bounds(body_bytes=100), clock, lambda: 0.5)
    inside: list[tuple[Any, Any, list[int]]] = []
    for step, size, which in steps:
        body = inside[which % len(inside)] if inside else None
        if step == "wait":
            clock.advance(RESERVED_S / 2)
        elif step == "begin":
            try:
                admission.check_room(size)
            except TryLater:
                continue
            holding = admission.body(size)
            inside.append((holding, holding.__enter__(), []))
        elif step == "end" and body is not None:
            inside.remove(body)
            body[0].__exit__(None, None, None)
        elif body is not None:
            try:
                body[1](size)
            except TryLater:
                continue
            body[2].append(size)
        held = [sum(came) for _, _, came in inside]
        assert admission.held_bytes == sum(held)
        assert sum(held) <= 100 or sum(held) == max(held)
    for holding, _, _ in inside:
        holding.__exit__(None, None, None)
    assert admission.held_bytes == 0
    admission.check_room(10**9)


STEP = st.sampled_from(["come", "go", "wait"])


@given(steps=st.lists(STEP, max_size=60), room=st.integers(0, 4))
def test_never_more_than_the_bound_are_in_hand_and_room_comes_back(steps, room):
    clock = Clock()
    admission = Admission(Bounds(check_ins=room), clock, lambda: 0.5)
    inside: list[Any] = []
    for step in steps:
        if step == "wait":
            clock.advance(WINDOW_S / 2)
        elif step == "go" and inside:
            inside.pop().__exit__(None, None, None)
        elif step == "come" and len(inside) == room:
            with pytest.raises(TryLater) as refused:
                admission.check_in().__enter__()
            assert refused.value.retry_after_s > 0
        elif step == "come":
            inside.append(admission.check_in())
            inside[-1].__enter__()
        assert len(inside) <= room
