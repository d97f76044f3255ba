"""Updates that phones put into the store by themselves: under a name where nothing counts, until they are announced.

A phone asks for an address, puts its update there and announces it. Only then is the object read, checked and written
under its final name, by the very way of an update that came through the cloud: what is promised there holds here, and
an object that nobody announced is in no round. An address creates one object, of one size and hash, for one assignment.

What is staged goes when its announcement is answered. What was never announced, or could not be removed then, goes
some time after its deadline, with a sweep that every now and then follows a call for an address.
"""

import asyncio
import base64
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import ParamSpec, TypeVar

from flsys_ray.cloud import places
from flsys_ray.cloud.credentials import Ticket
from flsys_ray.cloud.updates import Updates
from flsys_ray.cloud.versions import sha256
from flsys_ray.core.ids import is_evaluation
from flsys_ray.errors import Conflict, Late, Missing, NotFound, StoreUnavailable, TooLarge, UpdateUnusable
from flsys_ray.storage.base import ObjectStore
from flsys_ray.wire.schemas import UpdateReply
from flsys_ray.wire.staged_schemas import StagedUpdate, UploadAddress

P = ParamSpec("P")
T = TypeVar("T")
EXPIRES_S = 900.0
SWEEP_EVERY_S = 600.0
KEPT_S = 3600.0
SWEPT_AT_ONCE = 1000
THREADS = 8  # that read what was announced: reads of S3 wait most of their time


class Staging:
    """The way of an update through the store. `updates` takes in what was announced."""

    def __init__(self, store: ObjectStore, clock: Callable[[], float], updates: Updates) -> None:
        self._store = store
        self._clock = clock
        self._updates = updates
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="staged")
        self._swept_at = -math.inf

    @property
    def open(self) -> bool:
        """Whether assignments offer this way."""
        return self._store.presigns

    def check(self, ticket: Ticket, said: StagedUpdate) -> None:
        """Raises `NotFound` if there is no such way, `Conflict` for an evaluation, `TooLarge`."""
        name, limit = ticket.assignment.assignment_id, self._updates.max_bytes(ticket)
        if not self.open:
            raise NotFound("this cloud's store takes no updates from phones: upload to the cloud")
        if is_evaluation(name):
            raise Conflict(f"assignment {name} is for evaluation: it takes no update")
        if said.size_bytes > limit:
            raise TooLarge(f"the update has {said.size_bytes} bytes, the assignment takes {limit}")

    def address(self, ticket: Ticket, said: StagedUpdate) -> UploadAddress:
        """Return where a phone may put its update. Raises `Late` when the deadline has passed."""
        now, work = self._clock(), ticket.assignment
        if now >= work.deadline:
            raise Late(f"assignment {work.assignment_id}: deadline-passed")
        expires_s = max(1.0, min(EXPIRES_S, work.deadline - now))
        digest = base64.b64encode(bytes.fromhex(said.sha256)).decode()
        signed = self._store.presigned_put(_key(ticket), said.size_bytes, expires_s, digest)
        return UploadAddress(url=signed.url, headers=dict(signed.headers), expires_in_s=expires_s)

    async def take_in(self, ticket: Ticket, said: StagedUpdate) -> UpdateReply:
        """Count an update that a phone says it has put there, once, however often it says so.

        Raises:
            Conflict: there is no such object, or another one: the phone may still upload to the cloud.
            UpdateUnusable, Late: as `Updates.take_in`.
        """
        staged = await self._in_thread(self._read_staged, ticket, said)
        body = await self._in_thread(self._read_counted, ticket) if staged is None else staged
        try:
            reply = await self._updates.take_in(ticket, body)
        except (Late, UpdateUnusable):
            await self._in_thread(self._remove, _key(ticket))
            raise
        if staged is not None:
            await self._in_thread(self._remove, _key(ticket))
        return reply

    async def sweep_now_and_then(self) -> None:
        """Sweep if the last time is long ago. It may take long: nobody should wait for it."""
        now = self._clock()
        if now - self._swept_at >= SWEEP_EVERY_S:
            self._swept_at = now
            await self._in_thread(self.sweep)

    def sweep(self) -> int:
        """Remove what was staged for deadlines that passed an hour ago, and return how many. May be repeated."""
        found = 0
        with suppress(StoreUnavailable):
            for key in self._store.list(places.STAGED):
                if places.staged_until(key) + KEPT_S > self._clock() or found == SWEPT_AT_ONCE:
                    break
                self._store.remove(key)
                found += 1
        return found

    def _read_staged(self, ticket: Ticket, said: StagedUpdate) -> bytes | None:
        """Return the announced bytes, None if there is no object. No more is read than was announced."""
        key = _key(ticket)
        try:
            found = self._store.get(key, 0, said.size_bytes)
        except Missing:
            return None
        if found.size == said.size_bytes and sha256(found.body) == said.sha256:
            return found.body
        self._remove(key)
        raise Conflict(f"assignment {ticket.assignment.assignment_id}: what was put there is not what was announced")

    def _read_counted(self, ticket: Ticket) -> bytes:
        """Return what an earlier announcement, or an upload, left under the final name."""
        name = ticket.assignment.assignment_id
        try:
            body = self._updates.stored(ticket)
        except Missing:
            if self._clock() > ticket.assignment.deadline:
                raise Late(f"assignment {name}: deadline-passed") from None
            raise Conflict(f"assignment {name}: nothing was put there") from None
        if not body:
            raise Late(f"assignment {name}: given-back")
        return body

    def _remove(self, key: str) -> None:
        with suppress(StoreUnavailable):  # the sweep comes
            self._store.remove(key)

    async def _in_thread(self, use: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(use, *args, **kwargs))


def _key(ticket: Ticket) -> str:
    work = ticket.assignment
    return places.staged(work.model, work.deadline, work.assignment_id, work.device_id)
