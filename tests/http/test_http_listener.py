"""Replicas that listen themselves: on one port together, and with no patience for connections that ask for nothing."""

import asyncio
import socket
from collections.abc import Awaitable, Callable

import pytest
from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from serve_apps import listener
from serve_apps.listener import Address, listening

GET = b"GET /name HTTP/1.1\r\nHost: here\r\n\r\n"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def named(name: str) -> FastAPI:
    app = FastAPI()

    @app.get("/name")
    async def answer() -> str:
        return name

    return app


def served(apps: list[FastAPI], play: Callable[[int], Awaitable[None]]) -> None:
    """Have apps listen on one port while `play` goes on."""

    async def run() -> None:
        address = Address("127.0.0.1", free_port())
        lifespans = [listening(address)(app) for app in apps]
        for each in lifespans:
            await each.__aenter__()
        try:
            await asyncio.wait_for(play(address.port), 20)
        finally:
            for each in lifespans:
                await each.__aexit__(None, None, None)

    asyncio.run(run())


async def asked(port: int, request: bytes = GET) -> bytes:
    """Send bytes over a connection of their own, and read until it is closed or an answer has come."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    head = b""
    while b'"' not in head and (more := await reader.read(1000)):
        head += more
    writer.close()
    return head


def test_replicas_share_a_port_and_one_that_goes_leaves_it_to_the_others():
    async def play(port: int) -> None:
        names = {(await asked(port)).rpartition(b"\r\n")[2] for _ in range(60)}
        assert names == {b'"one"', b'"two"'}

    served([named("one"), named("two")], play)


def test_the_port_is_free_again_at_once_though_a_phone_holds_its_old_connection():
    held: list[socket.socket] = []
    ports: list[int] = []

    async def play(port: int) -> None:
        ports.append(port)
        held.append(socket.create_connection(("127.0.0.1", port)))
        held[0].sendall(GET)
        assert b"200 OK" in await asyncio.to_thread(held[0].recv, 1000)

    served([named("one")], play)
    Address("127.0.0.1", ports[0]).socket().close()
    held[0].close()


@pytest.mark.parametrize("begun", [b"", b"GET /name HT", GET[:-2]], ids=["silent", "half a line", "no end"])
def test_a_connection_whose_request_does_not_come_is_closed(begun, monkeypatch):
    monkeypatch.setattr(listener, "HEAD_S", 0.05)

    async def play(port: int) -> None:
        assert await asked(port, begun) == b""

    served([named("one")], play)


def test_an_idle_connection_is_closed_after_its_answer_too(monkeypatch):
    monkeypatch.setattr(listener, "HEAD_S", 0.05)

    async def play(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(GET + GET[:10])
        assert b"200 OK" in await reader.read(1000)
        assert await reader.read() == b""
        writer.close()

    served([named("one")], play)


def test_a_connection_beyond_the_limit_is_told_to_come_back(monkeypatch):
    monkeypatch.setattr(listener, "MAX_CONNECTIONS", 1)

    async def play(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(GET)
        assert b"200 OK" in await reader.read(1000)
        refused = await asked(port, b"")
        assert refused.startswith(b"HTTP/1.1 503")
        assert b"Retry-After: 10\r\n" in refused
        writer.write(GET)
        assert b"200 OK" in await reader.read(1000), "who was there before is served on"
        writer.close()

    served([named("one")], play)


class Pieces(asyncio.Protocol):
    """A client that keeps what comes, piece by piece as the kernel hands it over."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.closed = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.pieces.append(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set_result(None)


def pieces_of(app: FastAPI, request: bytes) -> list[bytes]:
    """Return what an app answers to a request that closes its connection, in the pieces in which it was sent."""
    found: list[bytes] = []

    async def play(port: int) -> None:
        transport, client = await asyncio.get_running_loop().create_connection(Pieces, "127.0.0.1", port)
        transport.write(request)
        await client.closed
        found.extend(client.pieces)

    served([app], play)
    return found


ENDING = b" HTTP/1.1\r\nHost: here\r\nConnection: close\r\n"


def test_head_and_body_of_an_answer_are_sent_in_one_piece():
    (piece,) = pieces_of(named("one"), b"GET /name" + ENDING + b"\r\n")
    assert piece.startswith(b"HTTP/1.1 200 OK\r\n")
    assert piece.endswith(b'\r\n\r\n"one"')


def test_an_answer_without_a_body_is_sent():
    answer = b"".join(pieces_of(named("one"), b"HEAD /name" + ENDING + b"\r\n"))
    assert answer.startswith(b"HTTP/1.1 405 ")
    assert answer.endswith(b"\r\n\r\n")


def test_an_answer_without_a_body_is_sent_though_the_connection_stays():
    async def play(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            for request, status in ((GET.replace(b"GET", b"HEAD"), b"405"), (GET, b"200")):
                writer.write(request)
                assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 " + status)
        finally:
            writer.close()
            await writer.wait_closed()

    served([named("one")], play)


def test_who_waits_for_a_continue_before_the_body_gets_it():
    app = FastAPI()

    @app.put("/echo")
    async def echo(request: Request) -> Response:
        return Response(await request.body())

    async def play(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"PUT /echo HTTP/1.1\r\nHost: here\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(b"hello")
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 OK")
        assert await reader.readexactly(5) == b"hello"
        writer.close()

    served([app], play)


def test_an_app_that_fails_behind_its_head_has_sent_the_head_when_the_connection_ends():
    async def broken(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
        raise RuntimeError("no body")

    app = FastAPI()
    app.mount("/broken", broken)
    answer = b"".join(pieces_of(app, b"GET /broken/" + ENDING + b"\r\n"))
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"\r\n\r\n")


def test_an_answer_in_parts_comes_whole():
    app = FastAPI()

    @app.get("/parts")
    async def parts() -> StreamingResponse:
        return StreamingResponse(iter([b"one ", b"two ", b"three"]))

    answer = b"".join(pieces_of(app, b"GET /parts" + ENDING + b"\r\n"))
    assert answer.endswith(b"\r\n\r\n4\r\none \r\n4\r\ntwo \r\n5\r\nthree\r\n0\r\n\r\n")
