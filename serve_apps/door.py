"""The door of a replica that listens itself: it accepts connections, and turns calls away that are too many.

uvloop accepts one connection in each turn of its loop. Under load, when a turn takes long, connections would wait in
the kernel's queue for seconds, where nobody can refuse them. Here all that wait are accepted at once. While the replica
is full, the first bytes of a request tell whether it is a call that would be refused; if so it is answered right here,
for a small part of what a request costs otherwise. Nothing else is decided here: who is let in may still be refused.

The door also measures how late the loop is: the time that everything waits before it is even looked at.
"""

import asyncio
import socket
from collections import deque
from collections.abc import Callable
from typing import Protocol

LINGER_S = 5.0
TICK_S = 0.05
BEGIN_BYTES = 96
BACKLOG = 2_048
MOST_LINGERING = 4_096
DROPPED_BYTES = 262_144
DROPS_AT_ONCE = 8
AFTER_ERROR_S = 1.0


class Keeper(Protocol):
    """Says what is turned away."""

    @property
    def strained(self) -> bool:
        """Whether any call would be refused now: only then requests are looked at before they are let in."""

    def turned_away(self, begin: bytes) -> bytes | None:
        """Return the answer to a request that begins with these bytes if it is refused, None if it is let in."""

    def is_late(self, lag_s: float) -> None:
        """Take note that the event loop is so late."""


class Door:
    """Accepts connections on a socket from one event loop, and hands them to protocols that `make` makes."""

    def __init__(self, listening: socket.socket, make: Callable[[], asyncio.Protocol], keeper: Keeper | None) -> None:
        self._loop = asyncio.get_running_loop()
        self._socket = listening
        self._make = make
        self._keeper = keeper
        self._handed_on: set[asyncio.Task[object]] = set()
        self._lingering: deque[tuple[float, socket.socket]] = deque()
        self._due = self._loop.time() + TICK_S
        self._ticking = self._loop.call_at(self._due, self._tick)
        listening.settimeout(0)
        listening.listen(BACKLOG)
        self._loop.add_reader(listening, self._accept)

    def close(self) -> None:
        """Accept no more. Connections that were let in go on."""
        self._loop.remove_reader(self._socket)
        self._ticking.cancel()
        self._sweep(float("inf"))
        self._socket.close()

    def _accept(self) -> None:
        for _ in range(BACKLOG):
            try:
                connection, _ = self._socket.accept()
            except (BlockingIOError, ConnectionAbortedError):
                return
            except OSError:  # no file descriptor is left, for example: later there may be one
                self._loop.remove_reader(self._socket)
                self._loop.call_later(AFTER_ERROR_S, self._open_again)
                return
            connection.settimeout(0)
            if self._keeper is None or not self._keeper.strained or not self._turned_away(self._keeper, connection):
                task: asyncio.Task[object]
                task = self._loop.create_task(self._loop.connect_accepted_socket(self._make, connection))
                self._handed_on.add(task)
                task.add_done_callback(self._done)

    def _turned_away(self, keeper: Keeper, connection: socket.socket) -> bool:
        """Refuse a connection's request if that has begun and is to be refused."""
        try:
            answer = keeper.turned_away(connection.recv(BEGIN_BYTES, socket.MSG_PEEK))
            if answer is None:
                return False
            connection.send(answer)
            connection.shutdown(socket.SHUT_WR)
            self._lingering.append((self._loop.time() + LINGER_S, connection))
            if len(self._lingering) > MOST_LINGERING:
                self._lingering.popleft()[1].close()
        except BlockingIOError:
            return False
        except OSError:
            connection.close()
        return True

    def _done(self, task: "asyncio.Task[object]") -> None:
        self._handed_on.discard(task)
        if not task.cancelled():
            task.exception()  # a phone that is gone already is no error

    def _open_again(self) -> None:
        if self._socket.fileno() >= 0:
            self._loop.add_reader(self._socket, self._accept)

    def _tick(self) -> None:
        now = self._loop.time()
        if self._keeper is not None:
            self._keeper.is_late(max(0.0, now - self._due))
        self._sweep(now)
        self._due = self._loop.time() + TICK_S
        self._ticking = self._loop.call_at(self._due, self._tick)

    def _sweep(self, now: float) -> None:
        """Close refused connections whose phone has hung up, or has had time enough.

        To close one before that would reset it, and the answer might be lost (RFC 9112, 9.6). What a phone sends
        meanwhile is dropped in the kernel.
        """
        for _ in range(len(self._lingering)):
            until, connection = self._lingering.popleft()
            if now < until and _still_there(connection):
                self._lingering.append((until, connection))
            else:
                connection.close()


def _still_there(connection: socket.socket) -> bool:
    """Drop what has come (MSG_TRUNC: without a copy). Return whether more may come."""
    try:
        for _ in range(DROPS_AT_ONCE):
            if not connection.recv(DROPPED_BYTES, socket.MSG_TRUNC):
                return False
    except BlockingIOError:
        return True
    except OSError:
        return False
    return True
