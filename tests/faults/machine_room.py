"""The machines that fail: processes, the network between them, and a store that every process sees for itself.

Everything that happens is drawn from one random generator. `Faults` says how likely each kind of fault is.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from virtual_time import Died, VirtualLoop

from flsys_ray.errors import StoreFull, StoreUnavailable
from flsys_ray.storage.base import ObjectStore, StoredObject

T = TypeVar("T")
START = 1_800_000_000.0
CALL_TIMEOUT_S = 20.0


class Lost(Exception):
    """No answer came. What was asked may have happened."""


@dataclass
class Faults:
    """How likely each fault is: a call of the store or a message, or by the hour of virtual time for those `_per_h`."""

    crash_at_store: float = 0.0
    store_fails_before: float = 0.0
    store_fails_after: float = 0.0
    slow_store: float = 0.0
    request_lost: float = 0.0
    reply_lost: float = 0.0
    repeated: float = 0.0
    delayed: float = 0.0
    crash_actor_per_h: float = 0.0
    crash_replica_per_h: float = 0.0
    zombie_per_h: float = 0.0
    clock_jump_per_h: float = 0.0
    disk_full_per_h: float = 0.0
    blackout_per_h: float = 0.0

    @classmethod
    def drawn(cls, rng: random.Random) -> "Faults":
        """Draw which kinds happen in a run, and how often: runs with few kinds find what many kinds hide."""
        worst = {
            "crash_at_store": 0.02, "store_fails_before": 0.05, "store_fails_after": 0.05, "slow_store": 0.05,
            "request_lost": 0.1, "reply_lost": 0.1, "repeated": 0.2, "delayed": 0.2, "crash_actor_per_h": 240.0,
            "crash_replica_per_h": 240.0, "zombie_per_h": 240.0, "clock_jump_per_h": 120.0, "disk_full_per_h": 60.0,
            "blackout_per_h": 40.0,
        }  # fmt: skip
        return cls(**{kind: rng.random() * most for kind, most in worst.items() if rng.random() < 0.5})

    def none(self) -> None:
        """Let nothing fail any more."""
        for each in fields(self):
            setattr(self, each.name, 0.0)


@dataclass(eq=False)
class Process:
    """Something that dies as a whole. `skew_s` is how far its clock is off."""

    room: "MachineRoom"
    name: str
    alive: bool = True
    skew_s: float = 0.0
    waiting: dict["asyncio.Future[Any]", None] = field(default_factory=dict)  # a set has no order of its own

    def clock(self) -> float:
        """Return UTC seconds, as this process believes."""
        return START + self.room.loop.time() + self.skew_s

    def die(self) -> None:
        """End here and now. Who waits for an answer learns that the connection is gone."""
        self.alive = False
        waiting, self.waiting = self.waiting, {}
        for future in waiting:
            if not future.done():
                future.set_exception(Lost())

    def check(self) -> None:
        """Raises `Died` in code of a dead process."""
        if not self.alive:
            raise Died

    async def serve(self, make: Callable[[], Awaitable[T]]) -> T:
        """Take a request over the network, and answer it: delayed, lost or delivered twice as chance has it."""
        room, future = self.room, self.room.loop.create_future()
        await asyncio.sleep(room.latency())
        if room.strikes("request_lost"):
            await asyncio.sleep(CALL_TIMEOUT_S)
            raise Lost
        if not self.alive:
            raise Lost
        self.waiting[future] = None
        for _ in range(1 + room.strikes("repeated")):
            room.keep(asyncio.ensure_future(self._answer(make, future)))
        try:
            async with asyncio.timeout(CALL_TIMEOUT_S):
                return await future
        except TimeoutError:
            raise Lost from None
        finally:
            self.waiting.pop(future, None)

    async def _answer(self, make: Callable[[], Awaitable[T]], future: "asyncio.Future[T]") -> None:
        room, deliver, what = self.room, future.set_result, None
        try:
            what = await make()
        except Died:
            return
        except Exception as error:
            deliver, what = future.set_exception, error
        if room.strikes("reply_lost"):
            return
        await asyncio.sleep(room.latency())
        if self.alive and not future.done():
            deliver(what)


@dataclass(eq=False)
class MachineRoom:
    """The loop, the dice, and what was counted."""

    loop: VirtualLoop
    rng: random.Random
    faults: Faults
    struck: Counter[str] = field(default_factory=Counter)
    full_until: float = -1.0
    _kept: set["asyncio.Task[Any]"] = field(default_factory=set)

    def strikes(self, kind: str) -> bool:
        """Roll the dice for one kind of fault."""
        chance = getattr(self.faults, kind)
        if chance == 0.0 or self.rng.random() >= chance:
            return False
        self.struck[kind] += 1
        return True

    def latency(self) -> float:
        """Return how long a message is on its way."""
        return self.rng.uniform(5.0, 15.0) if self.strikes("delayed") else self.rng.uniform(0.001, 0.05)

    def keep(self, task: "asyncio.Task[Any]") -> None:
        """Hold a task that nobody awaits."""
        self._kept.add(task)
        task.add_done_callback(self._kept.discard)


class ProcessStore(ObjectStore):
    """The store as one process sees it: other processes act between any two steps of a call."""

    def __init__(self, inner: ObjectStore, process: Process) -> None:
        self._inner = inner
        self._process = process
        self._room = process.room

    def put_new(self, key: str, body: bytes) -> str:
        return self._around(lambda: self._inner.put_new(key, body), writes=True)

    def swap(self, key: str, body: bytes, etag: str) -> str:
        return self._around(lambda: self._inner.swap(key, body, etag), writes=True)

    def get(self, key: str, start: int = 0, end: int | None = None) -> StoredObject:
        return self._around(lambda: self._inner.get(key, start, end))

    def list(self, prefix: str, after: str = "") -> Iterator[str]:
        return iter(self._around(lambda: [*self._inner.list(prefix, after)]))

    def remove(self, key: str) -> None:
        self._around(lambda: self._inner.remove(key), writes=True)

    def _around(self, call: Callable[[], T], writes: bool = False) -> T:
        self._step()
        if self._room.strikes("store_fails_before"):
            raise StoreUnavailable("store: gone", 0.1)
        if writes and self._room.loop.time() < self._room.full_until:
            raise StoreFull("store: no space left")
        try:
            return call()
        finally:
            self._step()
            if self._room.strikes("store_fails_after"):
                raise StoreUnavailable("store: it may have happened", 0.1)

    def _step(self) -> None:
        """Let time pass, and perhaps die."""
        room = self._room
        self._process.check()
        room.loop.belongs(lambda: self._process.alive)
        if room.loop.may_pause:
            room.loop.pause(room.rng.uniform(2.0, 12.0) if room.strikes("slow_store") else room.rng.uniform(0.0, 0.02))
        if room.strikes("crash_at_store"):
            self._process.die()
            raise Died
