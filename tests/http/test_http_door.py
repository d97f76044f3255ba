"""The door of a replica: it accepts all that wait, and turns away what would be refused, at once and in good order."""

import asyncio
import hashlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx2
import pytest
import uvloop
from cloud_world import World
from fastapi import FastAPI, Request

from flsys_ray.http.admission import Bounds
from flsys_ray.http.app import App
from serve_apps.door import BEGIN_BYTES, Door
from serve_apps.listener import Address, listening

UPDATE = "/v1/assignments/00000001-0123456789abcdef0123/update"
CHECK_IN = b"POST /v1/checkins HTTP/1.1\r\nHost: here\r\nContent-Length: 2\r\n\r\n{}"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def served(app: FastAPI, play: Callable[[int], Awaitable[None]]) -> None:
    """Have an app listen, on the event loop that replicas have, while `play` goes on."""

    async def run() -> None:
        address = Address("127.0.0.1", free_port())
        async with listening(address)(app):
            await asyncio.wait_for(play(address.port), 20)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


@pytest.fixture
def full(world: World) -> App:
    """An app that has no room for anything."""
    app: Any = world.http.app
    app.state.admission.bounds = Bounds(uploads=0, check_ins=0)
    assert isinstance(app, App)
    return app


async def put(port: int, size: int, headers: dict[str, str] | None = None, first: str = "") -> httpx2.Response:
    """Upload so many bytes, as phones do; before that, over the same connection, ask for `first`."""
    async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
        if first:
            assert (await client.get(first)).status_code == 200
        return await client.put(UPDATE, content=bytes(size), headers=headers)


async def closed(writer: asyncio.StreamWriter) -> None:
    writer.close()
    await writer.wait_closed()


def said(reply: httpx2.Response) -> None:
    """Check that a refusal says all that it should."""
    assert reply.status_code == 503
    found = reply.json()
    assert reply.headers["content-type"] == "application/problem+json"
    assert int(reply.headers["retry-after"]) >= found["retry_after_s"] > 0
    assert (found["type"].rpartition("/")[2], found["instance"], found["status"]) == ("try-later", UPDATE, 503)


@pytest.mark.parametrize("assignment", ["00000001-0123456789abcdef0123", "99999999-0123456789abcdef0123-t999999"])
def test_an_upload_is_known_by_its_first_bytes(full, assignment):
    begin = f"PUT /v1/assignments/{assignment}/update HTTP/1.1\r\nHost: here\r\n".encode()[:BEGIN_BYTES]
    assert full.short_way.turned_away(begin).startswith(b"HTTP/1.1 503")


@pytest.mark.parametrize("first", ["", "/healthz"], ids=["at the door", "on a connection that is let in"])
@pytest.mark.parametrize("size", [10, 4 * 1024 * 1024])
def test_who_is_refused_while_sending_gets_the_answer(full, size, first):
    async def play(port: int) -> None:
        said(await put(port, size, first=first))

    served(full, play)


def test_who_asks_before_sending_is_refused_without_being_told_to_go_on(full):
    async def play(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"PUT {UPDATE} HTTP/1.1\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n".encode())
        assert (await reader.read()).startswith(b"HTTP/1.1 503")
        await closed(writer)

    served(full, play)


def test_a_full_replica_answers_what_is_neither_a_check_in_nor_an_upload(full):
    async def play(port: int) -> None:
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            assert (await client.get("/healthz")).status_code == 200
            assert (await client.post("/v1/devices", json={})).status_code == 401
        for path in ("evaluation", "updates"):
            async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
                reply = await client.put(UPDATE.replace("update", path), content=b"{}")
                assert reply.status_code != 503, path

    served(full, play)


def test_a_check_in_is_refused_before_the_app_sees_it_and_let_in_when_there_is_room(full, monkeypatch):
    seen: list[str] = []
    monkeypatch.setattr(full.short_way, "takes", lambda scope: seen.append(scope["path"]))

    async def play(port: int) -> None:
        connection = socket.create_connection(("127.0.0.1", port))
        connection.sendall(CHECK_IN)  # it is there before the door is looked at
        connection.settimeout(0)
        reader, writer = await asyncio.open_connection(sock=connection)
        head, _, body = (await reader.read()).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503")
        assert json.loads(body)["instance"] == "/v1/checkins"
        assert seen == []
        await closed(writer)
        full.state.admission.bounds = Bounds()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(CHECK_IN)
        assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 401")
        assert seen == ["/v1/checkins"]
        await closed(writer)

    served(full, play)


@pytest.mark.parametrize("pieces", [[b""], [b"x"], [bytes(70_000)] * 3, [b"ab", b"", bytes(3_000_000), b"c"]])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_comes_as_it_was_sent_whatever_its_pieces(pieces, chunked):
    app = FastAPI()
    whole = b"".join(pieces)

    @app.put("/echo")
    async def echo(request: Request) -> str:
        await asyncio.sleep(0)  # the first pieces wait
        return hashlib.sha256(await request.body()).hexdigest()

    async def sent() -> AsyncIterator[bytes]:
        for piece in pieces:
            yield piece

    async def play(port: int) -> None:
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            for _ in range(2):
                reply = await client.put("/echo", content=sent() if chunked else whole)
                assert reply.json() == hashlib.sha256(whole).hexdigest()

    served(app, play)


def test_all_that_wait_are_accepted_in_one_turn():
    accepted: list[asyncio.BaseTransport] = []

    class Silent(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            accepted.append(transport)

    async def play() -> None:
        address = Address("127.0.0.1", free_port())
        opened = Door(address.socket(), Silent, None)
        phones = [socket.create_connection(("127.0.0.1", address.port)) for _ in range(100)]
        for _ in range(10):
            await asyncio.sleep(0)
        assert len(accepted) == 100
        opened.close()
        for end in [*phones, *accepted]:
            end.close()
        for _ in range(3):
            await asyncio.sleep(0)

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(play())
