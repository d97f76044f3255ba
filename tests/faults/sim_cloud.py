"""The whole cloud on simulated machines: replicas, model actors, the registry that finds them. It is the real code.

What is simulated is what Ray does: it holds an actor for each model, makes it again when it dies, carries calls to it
that happen at most once and may have happened when they fail - and, at worst, believes that one is dead which is not.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from machine_room import Lost, MachineRoom, Process, ProcessStore
from virtual_time import Died

from actors.gate import Gate
from flsys_ray.cloud.hosts import LocalHandle, ModelHost
from flsys_ray.cloud.model import DurableModel
from flsys_ray.cloud.service import Cloud
from flsys_ray.errors import FlsysError, TryLater
from flsys_ray.storage.base import ObjectStore

T = TypeVar("T")
OpenStore = Callable[[], ObjectStore]
IDLE_S = 90.0
LONGEST_WAIT_S = 5.0
AFTER_ERROR_S = 1.0
RESTART_S = 2.0


class Passivated(Exception):
    """The actor is leaving: nothing was done."""


class Actor:
    """A model's actor: the real host behind the real gate, and a clock."""

    def __init__(self, room: MachineRoom, open_store: OpenStore, model: str, number: int) -> None:
        self.process = Process(room, f"actor-{model}-{number}")
        self._host = ModelHost(ProcessStore(open_store(), self.process), model, self.process.clock)
        self._handle = LocalHandle(self._host)
        self._gate = Gate(IDLE_S, room.loop.time)
        room.loop.blocking(self._watch_the_clock)

    async def call(self, use: Callable[[LocalHandle], Awaitable[T]]) -> T:
        """Let one call in."""
        if not self._gate.enter():
            raise Passivated
        try:
            return await use(self._handle)
        finally:
            self._gate.leave()

    def _watch_the_clock(self) -> None:
        loop = self.process.room.loop
        while True:
            self.process.check()
            wait_s, at_rest = self._tick()
            if at_rest and self._gate.close_if_idle():
                self.process.die()
                return
            loop.pause(wait_s)

    def _tick(self) -> tuple[float, bool]:
        def tick(model: DurableModel) -> tuple[float, bool]:
            model.tick()
            deadline = model.next_deadline()
            left = LONGEST_WAIT_S if deadline is None else max(0.1, deadline - self.process.clock())
            return min(LONGEST_WAIT_S, left), model.at_rest

        try:
            found = self._host.tick(tick)
            return (LONGEST_WAIT_S, True) if found is None else found
        except FlsysError:
            return AFTER_ERROR_S, False


class SimHosts:
    """Finds model actors for one replica, which keeps a handle until a call over it fails."""

    def __init__(self, cluster: "Cluster") -> None:
        self._cluster = cluster
        self._known: dict[str, Actor] = {}

    def model(self, name: str) -> Any:
        """Return a handle."""
        return SimHandle(self, name)

    async def call(self, name: str, use: Callable[[LocalHandle], Awaitable[T]]) -> T:
        """Call a model's actor, as `actors.hosts.RayHandle` does: a crash becomes "try later"."""
        for _ in range(7):
            actor = self._known.setdefault(name, self._cluster.actor(name))
            try:
                return await actor.process.serve(lambda actor=actor: actor.call(use))
            except Passivated:
                self._known.pop(name, None)
                await asyncio.sleep(0.05)
            except Lost:
                break
            except FlsysError as error:
                if error.status == 503:  # a zombie's handle: another call may find the new actor
                    self._forget_some_day(name)
                raise
        self._known.pop(name, None)
        raise TryLater(f"model {name!r} is being restarted: try again", RESTART_S)

    def _forget_some_day(self, name: str) -> None:
        if self._cluster.room.rng.random() < 0.5:
            self._known.pop(name, None)


class SimHandle:
    """A `ModelHandle` over the network: each of its calls is one of a `LocalHandle` at the actor."""

    def __init__(self, hosts: SimHosts, name: str) -> None:
        self._hosts = hosts
        self._name = name

    def __getattr__(self, method: str) -> Callable[..., Awaitable[Any]]:
        async def call(*args: Any) -> Any:
            return await self._hosts.call(self._name, lambda handle: getattr(handle, method)(*args))

        return call


@dataclass(eq=False)
class Replica:
    """One API replica: a `Cloud` of its own, whose caches and estimates die with it."""

    process: Process
    cloud: Cloud | None = None


@dataclass(eq=False)
class Cluster:
    """All processes on one store, which each opens for itself: what it remembers of the store dies with it."""

    room: MachineRoom
    open_store: OpenStore
    replicas: list[Replica] = field(default_factory=list)
    actors: dict[str, Actor] = field(default_factory=dict)
    zombies: list[Actor] = field(default_factory=list)
    _made: int = 0

    def actor(self, model: str) -> Actor:
        """Return the actor that the registry knows for a model; one that is dead is made again."""
        present = self.actors.get(model)
        if present is None or not present.process.alive:
            present = self.actors[model] = Actor(self.room, self.open_store, model, self._number())
        return present

    async def start_replica(self, place: int) -> None:
        """Start a replica anew. It may die while it does."""
        while True:
            process = Process(self.room, f"replica-{self._number()}")
            replica = Replica(process)
            self.replicas[place : place + 1] = [replica]
            loop = self.room.loop
            store = ProcessStore(self.open_store(), process)
            ready = loop.blocking(lambda process=process, store=store: Cloud(store, SimHosts(self), process.clock))
            process.waiting[ready] = None
            try:
                replica.cloud = await ready
                return
            except (Lost, FlsysError, Died):
                process.die()
                await asyncio.sleep(1.0)

    async def ask(self, use: Callable[[Cloud], Awaitable[T]]) -> T:
        """Send a request to any replica. Raises `Lost`, or what the cloud raises."""
        replica = self.room.rng.choice(self.replicas)
        cloud = replica.cloud
        if cloud is None or not replica.process.alive:
            await asyncio.sleep(1.0)
            raise Lost
        return await replica.process.serve(lambda: use(cloud))

    def forget_actor(self, model: str) -> None:
        """Believe that an actor is dead. It is not: from now on there are two."""
        if model in self.actors:
            self.zombies.append(self.actors.pop(model))

    def everybody(self) -> list[Process]:
        """Return all processes."""
        actors = [*self.actors.values(), *self.zombies]
        return [replica.process for replica in self.replicas] + [actor.process for actor in actors]

    def _number(self) -> int:
        self._made += 1
        return self._made
