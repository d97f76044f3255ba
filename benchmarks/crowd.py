"""Phones that arrive at a fixed rate, whether or not the ones before were answered: the load of `overload.py`.

A process of its own, with one thread and no framework: two cores have to do for the cloud and for this. Each call has
a connection of its own. A phone checks in; if it is given work it uploads. Who is refused is gone: the next one comes
for it. Who has waited for `PATIENCE_S` hangs up.
"""

import argparse
import json
import select
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flsys_ray.wire.schemas import ASSIGNMENT_HEADER

PATIENCE_S = 30.0
SEND_BUFFER_BYTES = 65_536  # a phone's link holds no more: on loopback the whole update would fit into the buffers
CHUNK_BYTES = 262_144
MOST_OPEN = 16_000
CONTINUE = b"HTTP/1.1 100"


@dataclass(slots=True)
class Told:
    """What the cloud answered, by call: `check-in` or `upload`."""

    statuses: dict[str, dict[int, int]] = field(default_factory=lambda: {"check-in": {}, "upload": {}})
    latencies_s: dict[str, list[float]] = field(default_factory=lambda: {"check-in": [], "upload": []})
    refused_s: list[float] = field(default_factory=list)
    late_s: list[float] = field(default_factory=list)
    counted: list[str] = field(default_factory=list)
    refused: int = 0
    with_retry_after: int = 0
    sent_bytes: int = 0
    errors: dict[str, int] = field(default_factory=dict)

    def failed(self, kind: str, why: str) -> None:
        """Note a call that got no answer."""
        name = f"{kind}: {why}"
        self.errors[name] = self.errors.get(name, 0) + 1


@dataclass(slots=True)
class Call:
    """One call on its way. `waits`: the body is sent when the cloud says "100 Continue", and not before."""

    kind: str
    token: str
    connection: socket.socket
    begun: float
    parts: list[memoryview]
    waits: bool = False
    work: dict[str, Any] | None = None
    got: bytearray = field(default_factory=bytearray)


class Crowd:
    """The event loop: sends and receives for all calls that are on their way."""

    def __init__(self, port: int, body: bytes, told: Told, *, expect: bool) -> None:
        self._port = port
        self._body = memoryview(body)
        self._told = told
        self._expect = expect
        self._poll = select.epoll()
        self._calls: dict[int, Call] = {}
        asked = json.dumps({"models": [{"model": "load", "examples": 100}]})
        self._check_in = f"Content-Type: application/json\r\nContent-Length: {len(asked)}\r\n\r\n{asked}"

    @property
    def open(self) -> int:
        """How many calls are on their way."""
        return len(self._calls)

    def arrive(self, token: str) -> None:
        """Have a phone check in."""
        head = f"POST /v1/checkins HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n{self._check_in}"
        self._begin("check-in", token, [memoryview(head.encode())])

    def serve(self, wait_s: float) -> None:
        """Do what can be done now, and wait at most so long for that."""
        for number, events in self._poll.poll(max(0.0, wait_s), 512):
            call = self._calls.get(number)
            if call is None:
                continue
            try:
                if events & select.EPOLLIN:
                    self._receive(number, call)
                elif events & (select.EPOLLERR | select.EPOLLHUP):
                    error = call.connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                    self._end(number, call, f"errno {error}")
                else:
                    self._send(number, call)
            except (BrokenPipeError, ConnectionResetError):
                self._closed_early(number, call)
            except BlockingIOError:
                continue
            except OSError as error:
                self._end(number, call, f"errno {error.errno}")

    def hang_up(self, before: float) -> None:
        """End the calls that began before this instant."""
        for number, call in list(self._calls.items()):
            if call.begun < before:
                self._end(number, call, "no answer in time")

    def _begin(self, kind: str, token: str, parts: list[memoryview], work: dict[str, Any] | None = None) -> None:
        connection = socket.socket()
        connection.settimeout(0)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        connection.connect_ex(("127.0.0.1", self._port))
        waits = self._expect and work is not None
        self._calls[connection.fileno()] = Call(kind, token, connection, time.perf_counter(), parts, waits, work)
        self._poll.register(connection, select.EPOLLIN | select.EPOLLOUT)

    def _send(self, number: int, call: Call) -> None:
        """Send what there is to send. An answer may come before the end of it."""
        while call.parts and not (call.waits and len(call.parts) == 1):
            sent = call.connection.send(call.parts[0][:CHUNK_BYTES])
            self._told.sent_bytes += sent
            call.parts[0] = call.parts[0][sent:]
            if not call.parts[0]:
                call.parts.pop(0)
        self._poll.modify(number, select.EPOLLIN)

    def _receive(self, number: int, call: Call) -> None:
        more = call.connection.recv(65_536)
        call.got += more
        if call.waits and call.got.startswith(CONTINUE) and b"\r\n\r\n" in call.got:
            del call.got[: call.got.index(b"\r\n\r\n") + 4]
            call.waits = False
            self._poll.modify(number, select.EPOLLIN | select.EPOLLOUT)
        head, end, body = bytes(call.got).partition(b"\r\n\r\n")
        if end:
            head = head.lower()
            length = int(head.partition(b"content-length:")[2].split()[0])
            if len(body) >= length:
                self._close(number, call)
                self._answered(call, head, body)
                return
        if not more:
            self._end(number, call, "closed without an answer")

    def _closed_early(self, number: int, call: Call) -> None:
        """The cloud wants no more of it. Its answer came before, if there is one."""
        try:
            self._receive(number, call)
        except OSError as error:
            self._end(number, call, f"errno {error.errno}")

    def _answered(self, call: Call, head: bytes, body: bytes) -> None:
        told, status, took_s = self._told, int(head.split()[1]), time.perf_counter() - call.begun
        seen = told.statuses[call.kind]
        seen[status] = seen.get(status, 0) + 1
        if status in (503, 429):
            told.refused += 1
            told.with_retry_after += b"\r\nretry-after:" in head
            told.refused_s.append(took_s)
        if status != 200:
            return
        told.latencies_s[call.kind].append(took_s)
        if call.work is not None:
            told.counted.append(call.work["assignment_id"])
        else:
            self._upload(call.token, json.loads(body)["assignments"])

    def _upload(self, token: str, works: list[dict[str, Any]]) -> None:
        for work in works:
            head = (
                f"PUT {work['upload']['url']} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {token}\r\n"
                f"{ASSIGNMENT_HEADER}: {work['token']}\r\nContent-Length: {len(self._body)}\r\n"
            )
            head += "Expect: 100-continue\r\n\r\n" if self._expect else "\r\n"
            self._begin("upload", token, [memoryview(head.encode()), self._body], work)

    def _end(self, number: int, call: Call, why: str) -> None:
        self._close(number, call)
        self._told.failed(call.kind, why)

    def _close(self, number: int, call: Call) -> None:
        self._poll.unregister(number)
        call.connection.close()
        del self._calls[number]


def arrivals(crowd: Crowd, tokens: list[str], per_s: float, told: Told) -> None:
    """Have a phone arrive every `1 / per_s` seconds, and wait for the last answers."""
    begun, left = time.perf_counter(), iter(enumerate(tokens))
    due = next(left, None)
    looked = begun
    while due is not None or crowd.open:
        now = time.perf_counter()
        while due is not None and begun + due[0] / per_s <= now and crowd.open < MOST_OPEN:
            told.late_s.append(now - begun - due[0] / per_s)
            crowd.arrive(due[1])
            due = next(left, None)
            crowd.serve(0.0)
            now = time.perf_counter()
        if now - looked > 1:
            crowd.hang_up(now - PATIENCE_S)
            looked = now
        crowd.serve(0.1 if due is None else begun + due[0] / per_s - now)


def percentiles_ms(latencies_s: list[float]) -> dict[str, float]:
    """Return p50, p99 and the maximum."""
    ordered = sorted(latencies_s)
    if not ordered:
        return {}
    at = {"p50": len(ordered) // 2, "p99": int(0.99 * len(ordered)), "max": len(ordered) - 1}
    return {name: round(1000 * ordered[place], 1) for name, place in at.items()}


def reads(path: str) -> Iterator[str]:
    """Yield a file's lines."""
    with open(path) as file:
        yield from (line.strip() for line in file)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("port", type=int)
    arguments.add_argument("tokens", help="a file: a device's token each line, in the order of arrival")
    arguments.add_argument("body", help="a file: the update that all send")
    arguments.add_argument("per_s", type=float)
    arguments.add_argument("--expect", action="store_true", help="uploads ask first: `Expect: 100-continue`")
    given = arguments.parse_args()
    told, tokens = Told(), list(reads(given.tokens))
    begun, used = time.perf_counter(), time.process_time()
    arrivals(Crowd(given.port, Path(given.body).read_bytes(), told, expect=given.expect), tokens, given.per_s, told)
    report = {
        "took_s": time.perf_counter() - begun,
        "cpu_s": time.process_time() - used,
        "statuses": told.statuses,
        "errors": told.errors,
        "refused": told.refused,
        "refused_with_retry_after": told.with_retry_after,
        "sent_mb": told.sent_bytes / 1e6,
        "phones_per_s": len(tokens) / (told.late_s[-1] + len(tokens) / given.per_s),
        "late_ms": percentiles_ms(told.late_s),
        "check_in_ms": percentiles_ms(told.latencies_s["check-in"]),
        "upload_ms": percentiles_ms(told.latencies_s["upload"]),
        "refused_ms": percentiles_ms(told.refused_s),
        "counted": told.counted,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
