"""How much of phones' requests a replica has in hand at once. More is refused at once, and what was let in is kept.

Three bounds: check-ins between their body and their answer, uploads between theirs and theirs, and the bytes of all
bodies. A call is refused before anything of it is looked at when there is no room for it. For its first moments an
upload has room for its whole body, so that what was let in need not be refused half-way; after that a slow one takes
up the bytes that it has sent, and no thread. A refusal says when to come back: after as long as it takes to serve all
that were refused lately, each at its own moment.
"""

import random
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from fastapi import Request

from flsys_ray.cloud.credentials import Device, Ticket
from flsys_ray.cloud.meter import UPLOAD_S, Stages
from flsys_ray.cloud.service import Cloud
from flsys_ray.core.pacing.steering import busy_retry_s
from flsys_ray.errors import TryLater
from flsys_ray.http.limits import declared_bytes, read_body
from flsys_ray.wire.schemas import UpdateReply

WINDOW_S = 10.0
RESERVED_S = 2.0  # a body that takes longer has room for what has come
UPLOADS_FIRST_S = 1.0  # after an upload was refused no work is given out for so long


@dataclass(frozen=True, slots=True)
class Bounds:
    """The most that a replica has in hand. One body alone may have more than `body_bytes`.

    While its event loop is later than `lag_s` it takes no check-ins in, and no uploads at four times that.
    """

    check_ins: int = 256
    uploads: int = 96
    readers: int = 1024
    body_bytes: int = 64 * 1024 * 1024
    lag_s: float = 0.25


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
        self._reserved_bytes = 0
        self._whole_bytes = 0
        self._lag_s = self._last_lag_s = 0.0
        self._upload_refused_at = float("-inf")
        self._reservations: deque[_Reservation] = deque()

    def check_room(self, body_bytes: int) -> None:
        """Raises `TryLater` if an upload with a body of so many bytes would have to wait, or its body has no room."""
        self._let_go()
        if self._too_many_uploads or not self._fits(body_bytes, 0):
            self._note_refused_upload()
            raise self._refusal("uploads" if self._too_many_uploads else "bytes of uploads")

    def check_room_for_check_in(self) -> None:
        """Raises `TryLater` if a check-in would be refused."""
        if self._too_many_check_ins:
            raise self._refusal("check-ins")

    def is_late(self, lag_s: float) -> None:
        """Take note that the event loop is so late: everything waits for so long before it is even looked at.

        What counts is the lesser of two after one another: being late once is no overload.
        """
        self._lag_s, self._last_lag_s = min(lag_s, self._last_lag_s), lag_s

    @property
    def strained(self) -> bool:
        """Whether a check-in, or an upload with a small body, would be refused now."""
        self._let_go()
        return self._too_many_check_ins or self._too_many_uploads or not self._fits(1, 0)

    @property
    def _too_many_check_ins(self) -> bool:
        """Too many of them, or of their uploads: who would be refused with the work should not be given it."""
        return (
            self._in_hand["check-ins"] >= self.bounds.check_ins
            or self._lag_s > self.bounds.lag_s
            or 2 * self._in_hand["uploads"] > self.bounds.uploads
            or 2 * self._whole_bytes > self.bounds.body_bytes
            or self._clock() - self._upload_refused_at < UPLOADS_FIRST_S
        )

    @property
    def _too_many_uploads(self) -> bool:
        return (
            self._in_hand["uploads"] >= self.bounds.uploads
            or self._in_hand["readers"] >= self.bounds.readers
            or self._lag_s > 4 * self.bounds.lag_s
        )

    @contextmanager
    def check_in(self) -> Iterator[None]:
        """Have a check-in in hand. Raises `TryLater`."""
        self.check_room_for_check_in()
        with self._counted("check-ins"):
            yield

    @contextmanager
    def arrival(self) -> Iterator[None]:
        """Have an upload in hand of which it is not known yet who sends it."""
        self._in_hand["readers"] += 1
        try:
            yield
        finally:
            self._in_hand["readers"] -= 1

    @contextmanager
    def upload(self, body_bytes: int) -> Iterator[None]:
        """Have an upload in hand whose body is there."""
        self._whole_bytes += body_bytes
        try:
            with self._counted("uploads"):
                yield
        finally:
            self._whole_bytes -= body_bytes

    @contextmanager
    def body(self, declared_bytes: int = 0) -> Iterator[Callable[[int], None]]:
        """Hold a body: yields what is to be called with the number of bytes that came. That raises `TryLater`.

        So many bytes as it says it has are reserved, for `RESERVED_S`. Its own are no hindrance to it.
        """
        held, mine = 0, _Reservation(self._clock() + RESERVED_S, declared_bytes)
        self._reserved_bytes += declared_bytes
        self._reservations.append(mine)

        def came(more: int) -> None:
            nonlocal held
            within = min(more, mine.left_bytes)
            if more > within and not self._fits(more - within, held + mine.left_bytes):
                raise self._refusal("bytes of uploads")
            self._use(mine, within)
            self.held_bytes += more
            held += more

        try:
            with self.arrival():
                yield came
        finally:
            self._use(mine, mine.left_bytes)
            self.held_bytes -= held

    def _note_refused_upload(self) -> None:
        """Remember it, unless there is much room, and what was refused only said that it is very large."""
        if self._too_many_uploads or 2 * (self.held_bytes + self._reserved_bytes) > self.bounds.body_bytes:
            self._upload_refused_at = self._clock()

    def _fits(self, more: int, own: int) -> bool:
        """Return whether so many more bytes have room. Of a body whose `own` are all that there are, any have."""
        taken = self.held_bytes + self._reserved_bytes
        return taken <= own or taken + more <= self.bounds.body_bytes

    def _use(self, reservation: "_Reservation", size: int) -> None:
        reservation.left_bytes -= size
        self._reserved_bytes -= size

    def _let_go(self) -> None:
        """End reservations whose time is over."""
        now, waiting = self._clock(), self._reservations
        while waiting and (waiting[0].until <= now or waiting[0].left_bytes == 0):
            first = waiting.popleft()
            self._use(first, first.left_bytes)

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
    declared = min(declared_bytes(request), max_bytes)
    admission.check_room(declared)
    with admission.arrival():
        await cloud.quotas.ready(device.app_id)
    cloud.quotas.admit_upload(device.app_id)
    with admission.body(declared) as came:
        stages = Stages(cloud.meter, UPLOAD_S)
        body = await read_body(request, max_bytes, came)
        stages.done("body")
        cloud.quotas.count_upload(device.app_id, len(body))
        with admission.upload(len(body)):
            return await cloud.updates.take_in(ticket, body)


@dataclass(slots=True)
class _Reservation:
    """Bytes of a body that have not come yet."""

    until: float
    left_bytes: int


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
