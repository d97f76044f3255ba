"""How much of phones' requests a replica has in hand at once. More is refused at once, and what was let in is kept.

Three bounds: check-ins between their body and their answer, uploads between theirs and theirs, and the bytes of all
bodies, as far as they have come. An upload is refused before its body is read when there is no room for it; a slow one
takes up the bytes that it has sent, and no thread. A refusal says when to come back: after as long as it takes to
serve all that were refused lately, each at its own moment.
"""

import asyncio
import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fastapi import Request

from flsys_ray.cloud.credentials import Device, Ticket
from flsys_ray.cloud.service import Cloud
from flsys_ray.core.pacing.steering import busy_retry_s
from flsys_ray.errors import TryLater
from flsys_ray.http.limits import declared_bytes, read_body
from flsys_ray.wire.schemas import UpdateReply

WINDOW_S = 10.0


@dataclass(frozen=True, slots=True)
class Bounds:
    """The most that a replica has in hand. One body alone may have more than `body_bytes`."""

    check_ins: int = 512
    uploads: int = 96
    readers: int = 1024
    body_bytes: int = 64 * 1024 * 1024


class Admission:
    """Counts what is in hand. To be used from one event loop."""

    def __init__(
        self,
        bounds: Bounds | None = None,
        clock: Callable[[], float] = time.monotonic,
        lot: Callable[[], float] = random.random,
    ) -> None:
        self.bounds = bounds or Bounds()
        self.held_bytes = 0
        self._in_hand = {"check-ins": 0, "uploads": 0, "readers": 0}
        self._clock = clock
        self._lot = lot
        self._recent = _Recent(clock())

    def check_room(self, body_bytes: int) -> None:
        """Raises `TryLater` if an upload with a body of so many bytes would have to wait, or its body has no room."""
        if self._in_hand["uploads"] >= self.bounds.uploads or self._in_hand["readers"] >= self.bounds.readers:
            raise self._refusal("uploads")
        if self.held_bytes > 0 and self.held_bytes + body_bytes > self.bounds.body_bytes:
            raise self._refusal("bytes of uploads")

    @contextmanager
    def check_in(self) -> Iterator[None]:
        """Have a check-in in hand. Raises `TryLater`."""
        if self._in_hand["check-ins"] >= self.bounds.check_ins:
            raise self._refusal("check-ins")
        with self._counted("check-ins"):
            yield

    @contextmanager
    def upload(self) -> Iterator[None]:
        """Have an upload in hand whose body is there."""
        with self._counted("uploads"):
            yield

    @contextmanager
    def body(self) -> Iterator[Callable[[int], None]]:
        """Hold a body: yields what is to be called with the number of bytes that came. That raises `TryLater`."""
        held = 0

        def came(more: int) -> None:
            nonlocal held
            if self.held_bytes > held and self.held_bytes + more > self.bounds.body_bytes:
                raise self._refusal("bytes of uploads")
            self.held_bytes += more
            held += more

        self._in_hand["readers"] += 1
        try:
            yield came
        finally:
            self._in_hand["readers"] -= 1
            self.held_bytes -= held

    @contextmanager
    def _counted(self, what: str) -> Iterator[None]:
        self._in_hand[what] += 1
        try:
            yield
        finally:
            self._in_hand[what] -= 1
            self._recent.served(self._clock())

    def _refusal(self, what: str) -> TryLater:
        refused, served = self._recent.refused(self._clock())
        retry_s = busy_retry_s(refused, served, WINDOW_S, self._lot())
        return TryLater(f"too many {what} at once: try again", retry_s)


async def take_in(cloud: Cloud, admission: Admission, request: Request, who: tuple[Device, Ticket]) -> UpdateReply:
    """Read the update that a request of a device carries for its ticket, and have it counted."""
    device, ticket = who
    max_bytes = cloud.updates.max_bytes(ticket)
    admission.check_room(min(declared_bytes(request), max_bytes))
    if cloud.quotas.is_fresh(device.app_id):
        cloud.quotas.admit_upload(device.app_id)
    else:
        await asyncio.to_thread(cloud.quotas.admit_upload, device.app_id)
    with admission.body() as came:
        body = await read_body(request, max_bytes, came)
        cloud.quotas.count_upload(device.app_id, len(body))
        with admission.upload():
            return await cloud.updates.take_in(ticket, body)


class _Recent:
    """How many were served and refused in the last one to two windows."""

    def __init__(self, now: float) -> None:
        self._since = now
        self._now = [0, 0]
        self._before = [0, 0]

    def served(self, now: float) -> None:
        self._roll(now)
        self._now[0] += 1

    def refused(self, now: float) -> tuple[int, int]:
        """Count a refusal. Returns (refused, served)."""
        self._roll(now)
        self._now[1] += 1
        return self._now[1] + self._before[1], self._now[0] + self._before[0]

    def _roll(self, now: float) -> None:
        if now - self._since >= WINDOW_S:
            recent = now - self._since < 2 * WINDOW_S
            self._before, self._now = self._now if recent else [0, 0], [0, 0]
            self._since = now
