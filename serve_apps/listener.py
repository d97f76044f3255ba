"""Replicas that listen themselves, all on one port: nothing stands between a phone and the replica that serves it.

Serve starts, watches and replaces the replicas, and its own proxy or HAProxy reaches them as ever. On one machine that
way costs more than the work: a body passes two processes, and each request several tasks and records. Serve's direct
ingress does without, but it binds its port so that a replica which is started anew cannot have the same one for as long
as any phone holds an old connection. Here the kernel spreads connections over the replicas of a machine
(`SO_REUSEPORT`), and a new replica listens at once.

A connection on which no request comes is closed, and so is one whose request's head takes too long. They hold a socket,
and neither a thread nor a worker; of so many sockets the oldest ways out are closed by the limit on connections.
"""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from serve_apps.door import Door, Keeper

HEAD_S = 30.0
MAX_CONNECTIONS = 16_384
_FULL = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 10\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Address:
    """Where to listen."""

    host: str
    port: int

    def socket(self) -> socket.socket:
        """Return a socket that is bound there, beside those of other replicas of this machine."""
        made = socket.socket(socket.AF_INET6 if ":" in self.host else socket.AF_INET, socket.SOCK_STREAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind((self.host, self.port))
        return made


class PromptProtocol(HttpToolsProtocol):
    """Closes a connection whose next request's head does not come within `HEAD_S`, and those beyond the limit."""

    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as uvicorn's own
        """A phone connected."""
        super().connection_made(transport)
        if len(self.connections) > MAX_CONNECTIONS:
            transport.write(_FULL)
            transport.close()
        else:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        self._stop_waiting()
        super().connection_lost(exc)

    def on_headers_complete(self) -> None:
        """A request's head is there: its body has a deadline of its own."""
        self._stop_waiting()
        super().on_headers_complete()
        self.cycle.transport = _InOne(self.transport, self.cycle)  # type: ignore[assignment] # what a cycle needs of one

    def on_body(self, body: bytes) -> None:
        """A piece of a body came: the first that waits to be read is kept as it is, and not copied twice."""
        if self.cycle.response_complete or self.cycle.body:
            super().on_body(body)
            return
        self.cycle.body = body  # type: ignore[assignment] # it is only added to, and turned into bytes
        if len(body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()
        self.cycle.message_event.set()

    def on_response_complete(self) -> None:
        """The next one may come."""
        super().on_response_complete()
        if not self.transport.is_closing():
            self._wait()

    def _wait(self) -> None:
        self._stop_waiting()
        self._waiting = self.loop.call_later(HEAD_S, self.transport.close)

    def _stop_waiting(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None


class _InOne:
    """Writes the head of a response together with the first piece of its body: one system call and packet for two.

    Of an answer to `HEAD` nothing follows: its head is written at once.
    """

    def __init__(self, transport: asyncio.Transport, cycle: RequestResponseCycle) -> None:
        self._transport = transport
        self._cycle = cycle
        self._head: bytes | None = None
        self._begun = False

    def write(self, data: bytes) -> None:
        """Write what comes before a response (`100 Continue`) at once, and its head with what follows."""
        if self._cycle.response_started and not self._begun and self._cycle.scope["method"] != "HEAD":
            self._begun, self._head = True, data
        elif self._head is not None:
            self._transport.writelines([self._head, data])
            self._head = None
        else:
            self._transport.write(data)

    def close(self) -> None:
        """Write what is left, and close."""
        if self._head is not None:
            self._transport.write(self._head)
            self._head = None
        self._transport.close()

    def __getattr__(self, name: str) -> object:
        return getattr(self._transport, name)


class _Server(uvicorn.Server):
    """Has a door of its own, and leaves signals to the process that it lives in."""

    def __init__(self, config: uvicorn.Config, listening: socket.socket, keeper: Keeper | None) -> None:
        super().__init__(config)
        self._listening = listening
        self._keeper = keeper

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Open the door."""
        self.servers = []
        self._door = Door(self._listening, self._protocol, self._keeper)
        self.started = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close the door, and wait for the requests that are under way."""
        self._door.close()
        await super().shutdown(sockets)

    def _protocol(self) -> PromptProtocol:
        return PromptProtocol(self.config, self.server_state, {})

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Capture none."""
        yield


def listening(address: Address) -> Callable[[FastAPI], contextlib.AbstractAsyncContextManager[None]]:
    """Return a lifespan for an app: while it lives, it is served at the address too."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        config = uvicorn.Config(
            app,
            http=PromptProtocol,
            ws="none",
            lifespan="off",
            loop="none",
            log_config=None,
            access_log=False,
            timeout_keep_alive=int(HEAD_S),
            timeout_graceful_shutdown=int(HEAD_S),
        )
        server = _Server(config, address.socket(), getattr(app, "short_way", None))
        serving = asyncio.ensure_future(server.serve())
        while not server.started and not serving.done():
            await asyncio.sleep(0.01)
        try:
            yield
        finally:
            server.should_exit = True
            await serving

    return lifespan
