"""One run: phones, a developer and bad luck, until the luck turns; then what must be true is looked at.

A run is a function of its seed alone: `python tests/faults/soak.py --seed N` plays it again.
"""

import asyncio
import hashlib
import random
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeVar
from unittest.mock import patch

import numpy as np
from cloud_fakes import SIZE, fake_initial, fake_program
from machine_room import Faults, Lost, MachineRoom
from power_cuts import PowerCuts, folder_in_memory, noted_syncs
from sim_cloud import Cluster
from virtual_time import Deadlock, Died, Lock, VirtualLoop

from flsys_ray.cloud import hosts as hosts_module
from flsys_ray.cloud import places
from flsys_ray.cloud.credentials import Device, Ticket
from flsys_ray.cloud.hosts import Action
from flsys_ray.cloud.journal import Journal
from flsys_ray.cloud.service import Cloud
from flsys_ray.cloud.versions import sha256
from flsys_ray.core.plan import TrainingPlan, parse_plan
from flsys_ray.errors import Conflict, FlsysError, Late
from flsys_ray.storage.base import ObjectStore, put_same
from flsys_ray.storage.local import LocalStore
from flsys_ray.storage.memory import MemoryStore
from flsys_ray.wire.developer_schemas import VersionInfo
from flsys_ray.wire.schemas import AssignmentMessage, CheckInRequest, EvaluationRequest, ModelCandidacy
from flsys_ray.wire.tensors import encode_update

T = TypeVar("T")
MODEL = "har"
APP = "acme"
TROUBLE_S = 90.0
CALM_S = 300.0  # at most: until there is a new version
STRAGGLERS_S = 40.0  # a message that was sent before, to pause the model say, has come by then
SIGNING = b'{"key": "c2ltdWxhdGVkLWRpc2FzdGVycy1zaWduaW5nLWtleS0wMDE="}'
PATIENCE = 400


CHECK_IN = CheckInRequest(models=[ModelCandidacy(model=MODEL, examples=5)])
METRICS = EvaluationRequest(loss_sum=1.5, correct=1, count=2)


@dataclass
class Told:
    """What phones were told, by assignment; `in_the_end`: what the cloud says when counted updates come once more."""

    tickets: dict[str, Ticket] = field(default_factory=dict)
    counted: set[str] = field(default_factory=set)
    given_back: set[str] = field(default_factory=set)
    late: set[str] = field(default_factory=set)
    in_the_end: dict[str, str] = field(default_factory=dict)


def draw_plan(rng: random.Random, local_epochs: int = 1) -> TrainingPlan:
    """Draw how a model trains."""
    pacing: dict[str, Any]
    weight = rng.choice(["constant", "polynomial", "hinge"])
    if rng.random() < 0.5:
        cohort = rng.randint(1, 4)
        pacing = {"name": "rounds", "cohort": cohort, "quorum": rng.randint(1, cohort)}
        pacing |= {"over_selection": rng.choice([1, 1.5, 3]), "deadline_s": rng.choice([20, 60])}
        if rng.random() < 0.3:
            pacing["late"] = {"weight": weight, "max_staleness": rng.randint(1, 3)}
    else:
        pacing = {"name": "buffered", "buffer": rng.randint(1, 4), "concurrency": rng.randint(4, 8)}
        pacing |= {"weight": weight, "max_staleness": rng.randint(0, 4), "deadline_s": rng.choice([20, 60])}
    return parse_plan(
        {
            "pacing": pacing,
            "selection": rng.choice(["first_come", "uniform"]),
            "server_optimizer": rng.choice([{"name": "sgd"}, {"name": "adam", "learning_rate": 0.1}]),
            "aggregation": rng.choice(["weighted_mean", "weighted_mean", "coordinate_median"]),
            "local": {"epochs": local_epochs},
        }
    )


def update_of(assignment_id: str) -> bytes:
    """Return the one update that an assignment leads to: a phone that trains again gets the same bits."""
    seed = int.from_bytes(hashlib.sha256(assignment_id.encode()).digest()[:8], "big")
    rng = np.random.default_rng(seed)
    return encode_update(rng.normal(0, 0.1, SIZE).astype(np.float32), int(rng.integers(1, 9)), 0.5)


class Story:
    """The parts that people and phones play."""

    def __init__(self, seed: int, folder: Path | None = None) -> None:
        self.seed = seed
        self.rng = random.Random(seed)
        self.loop = VirtualLoop()
        self.faults = Faults.drawn(self.rng)
        self.cuts: PowerCuts | None = None
        if folder is not None:
            self.cuts = PowerCuts(folder, self.loop, self.rng)
            self.faults.blackout_per_h = 120.0
        self.room = MachineRoom(self.loop, self.rng, self.faults)
        self.store: ObjectStore = MemoryStore()
        self.told = Told()
        self.calm = False
        self.plan = draw_plan(self.rng)

    def play(self) -> None:
        """Play it to its end."""
        cuts = self.cuts
        open_store = (lambda: self.store) if cuts is None else (lambda: LocalStore(cuts.folder))
        self.store = open_store()
        self.store.put_new(places.SIGNING_KEY, SIGNING)
        self.cluster = Cluster(self.room, open_store)
        asyncio.set_event_loop(self.loop)
        self.loop.set_exception_handler(_only_what_matters)
        try:
            self.loop.run_until_complete(self._play())
        finally:
            self._clear_up()

    async def _play(self) -> None:
        for place in range(self.rng.randint(1, 3)):
            await self.cluster.start_replica(place)
        keeper = asyncio.ensure_future(self._keep_replicas())
        await self._create()
        trouble = [asyncio.ensure_future(part) for part in (*self._bad_luck(), self._developer())]
        phones = [asyncio.ensure_future(self._phone(number)) for number in range(self.rng.randint(5, 7))]
        await asyncio.sleep(TROUBLE_S)
        await self._stop(trouble)
        self._heal()
        await asyncio.sleep(STRAGGLERS_S)
        await self._act("start")
        self.version_when_healed = self._version()
        await self._until_there_is_a_new_version()
        await self._stop([*phones, keeper])
        for assignment_id in await self._worth_a_question():
            self.told.in_the_end[assignment_id] = await self._upload_again(assignment_id)

    async def _until_there_is_a_new_version(self) -> None:
        until = self.loop.time() + CALM_S
        self.last_version = self.version_when_healed
        while self.last_version == self.version_when_healed and self.loop.time() < until:
            await asyncio.sleep(5.0)
            self.last_version = self._version()

    async def _worth_a_question(self) -> list[str]:
        """Return the counted assignments that no version lists, and a few that one does."""
        keys = self.store.list(places.versions(self.model_id))
        infos = [VersionInfo.model_validate_json(self.store.get(key).body) for key in keys]
        listed = {line.assignment_id for info in infos for line in info.updates} & self.told.counted
        return sorted(self.told.counted - listed) + self.rng.sample(sorted(listed), min(5, len(listed)))

    async def _stop(self, tasks: list["asyncio.Task[None]"]) -> None:
        for task in tasks:
            task.cancel()
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(result, Exception):
                raise result

    # The developer -------------------------------------------------------------------------------------------------

    async def _create(self) -> None:
        program = fake_program()
        await self.sure(lambda cloud: cloud.put_model(APP, MODEL, self.plan))
        self.model_id = await self.sure(_threaded(lambda cloud: cloud.find(APP, MODEL)))
        put_same(self.store, places.program(self.model_id, sha256(program)), program)
        await self.sure(lambda cloud: cloud.hosts.model(self.model_id).put_program(sha256(program)))
        await self._act("start")

    async def _developer(self) -> None:
        for number in range(1, 100):
            await asyncio.sleep(self.rng.uniform(10, 400))
            if self.rng.random() < 0.5:
                changed = self.plan.model_copy(update={"local": draw_plan(self.rng, number).local})
                await self.sure(lambda cloud, plan=changed: cloud.put_model(APP, MODEL, plan))
            else:
                await self._act("pause")
                await asyncio.sleep(self.rng.uniform(1, 40))
                await self._act("resume")

    async def _act(self, action: Action) -> None:
        await self.sure(lambda cloud: cloud.act(APP, MODEL, action))

    def _version(self) -> int:
        """Return the newest version, as the log tells: an owner that has lost the model may not know of it."""
        version = Journal(self.store, self.model_id).read_tail().head.version
        assert version is not None
        return version.number

    async def sure(self, use: Callable[[Cloud], Awaitable[T]]) -> T:
        """Ask until there is an answer."""
        for _ in range(PATIENCE):
            try:
                return await self.cluster.ask(use)
            except Lost:
                pass
            except FlsysError as error:
                if error.status not in (503, 507):
                    raise
            await asyncio.sleep(self.rng.uniform(0.1, 2.0))
        raise AssertionError(f"{PATIENCE} calls in a row were not answered")

    # Phones --------------------------------------------------------------------------------------------------------

    async def _phone(self, number: int) -> None:
        device = Device(f"d-{number}", APP)
        await asyncio.sleep(self.rng.uniform(0, 20))
        while True:
            reply = await self._asked_once(lambda cloud: cloud.check_in(device, CHECK_IN))
            if reply is None:
                await asyncio.sleep(self.rng.uniform(1, 10))
                continue
            for message in reply.assignments:
                await self._work(device, message)
            await asyncio.sleep(max(7.0, min(reply.retry_after_s, 30.0)) * self.rng.uniform(0.5, 1.5))

    async def _work(self, device: Device, message: AssignmentMessage) -> None:
        aid = message.assignment_id
        ticket = await self.sure(
            _threaded(lambda cloud: cloud.credentials.check_assignment(message.token, device, aid))
        )
        self.told.tickets[aid] = ticket
        await asyncio.sleep(self.rng.choice([0.5, 3, 10, 40]) * self.rng.random())
        fate = 0.5 if self.calm else self.rng.random()
        if fate < 0.08:
            return  # never heard of again
        if fate < 0.3:
            await self._asked_once(lambda cloud: cloud.evaluate(ticket, METRICS))
        if fate < 0.16:
            await self._give_back(ticket)
        uploads = [self._upload(ticket) for _ in range(2 if fate > 0.9 else 1)]
        await asyncio.gather(*uploads)
        if fate > 0.8:
            await asyncio.sleep(self.rng.uniform(0, 100))
            await self._upload(ticket)

    async def _upload(self, ticket: Ticket) -> None:
        aid = ticket.assignment.assignment_id
        for _ in range(self.rng.choice([1, 3, PATIENCE])):
            try:
                await self.cluster.ask(lambda cloud: cloud.updates.take_in(ticket, update_of(aid)))
                self.told.counted.add(aid)
                return
            except Lost:
                pass
            except Late:
                self.told.late.add(aid)
                return
            except FlsysError as error:
                if error.status not in (503, 507):
                    raise
            await asyncio.sleep(self.rng.uniform(0.1, 5.0))

    async def _give_back(self, ticket: Ticket) -> None:
        try:
            if await self._asked_once(_true(lambda cloud: cloud.give_back(ticket))):
                self.told.given_back.add(ticket.assignment.assignment_id)
        except Conflict:
            pass  # its update was counted before

    async def _asked_once(self, use: Callable[[Cloud], Awaitable[T]]) -> T | None:
        try:
            return await self.cluster.ask(use)
        except (Lost, Late):
            return None
        except FlsysError as error:
            if error.status not in (503, 507):
                raise
            return None

    async def _upload_again(self, assignment_id: str) -> str:
        """Return what the cloud says of an update in the end."""
        ticket = self.told.tickets[assignment_id]
        try:
            reply = await self.sure(lambda cloud: cloud.updates.take_in(ticket, update_of(assignment_id)))
        except Late:
            return "late"
        return "duplicate" if reply.duplicate else "new"

    # Bad luck ------------------------------------------------------------------------------------------------------

    def _bad_luck(self) -> list[Awaitable[None]]:
        """Return what strikes by the hour, each at its own times."""
        return [
            self._now_and_then("crash_actor_per_h", self._crash_actor),
            self._now_and_then("crash_replica_per_h", lambda: self.rng.choice(self.cluster.replicas).process.die()),
            self._now_and_then("zombie_per_h", lambda: self.cluster.forget_actor(self.model_id)),
            self._now_and_then("clock_jump_per_h", self._jump),
            self._now_and_then("disk_full_per_h", self._fill_the_disk),
            self._now_and_then("blackout_per_h", self._blackout),
        ]

    async def _now_and_then(self, kind: str, strike: Callable[[], None]) -> None:
        rate = getattr(self.faults, kind)
        while rate:
            await asyncio.sleep(self.rng.expovariate(rate / 3600))
            self.room.struck[kind] += 1
            strike()

    async def _keep_replicas(self) -> None:
        while True:
            await self._revive_replicas()
            await asyncio.sleep(self.rng.uniform(0.5, 5.0))

    async def _revive_replicas(self) -> None:
        for place, replica in enumerate(self.cluster.replicas):
            if not replica.process.alive:
                await self.cluster.start_replica(place)

    def _crash_actor(self) -> None:
        actors = [*self.cluster.actors.values(), *self.cluster.zombies]
        if actors:
            self.rng.choice(actors).process.die()

    def _jump(self) -> None:
        self.rng.choice(self.cluster.everybody()).skew_s = self.rng.uniform(-100, 100)

    def _fill_the_disk(self) -> None:
        self.room.full_until = self.loop.time() + self.rng.uniform(1, 60)

    def _blackout(self) -> None:
        for process in self.cluster.everybody():
            process.die()
        self.cluster.zombies.clear()
        if self.cuts is not None:
            self.room.struck["power_cut"] += 1
            self.cuts.cut()

    def _heal(self) -> None:
        """Nothing fails any more. What is wrong by now stays: zombies, calls under way, work given out."""
        self.calm = True
        self.faults.none()
        self.room.full_until = -1.0
        for process in self.cluster.everybody():
            process.skew_s = 0.0

    def _clear_up(self) -> None:
        """Have what is left of every process end, so that nothing of this run reaches the next."""
        for process in self.cluster.everybody():
            process.die()
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        with suppress(Deadlock):
            self.loop.run_until_complete(asyncio.sleep(100.0))
        self.loop.close()
        asyncio.set_event_loop(None)


@contextmanager
def played(seed: int) -> Iterator[Story]:
    """Play one run, every fourth of them in a folder whose power is cut, and yield what is left of it."""
    with ExitStack() as stack:
        story = Story(seed, stack.enter_context(folder_in_memory()) if seed % 4 == 3 else None)
        threads = SimpleNamespace(Lock=lambda: Lock(story.loop))
        stack.enter_context(patch.object(hosts_module, "threading", threads))
        stack.enter_context(patch.object(hosts_module, "initial_version", fake_initial))
        if story.cuts is not None:
            stack.enter_context(noted_syncs(story.cuts))
        story.play()
        yield story


def _threaded(use: Callable[[Cloud], T]) -> Callable[[Cloud], Awaitable[T]]:
    return lambda cloud: asyncio.to_thread(use, cloud)


def _true(use: Callable[[Cloud], Awaitable[None]]) -> Callable[[Cloud], Awaitable[bool]]:
    async def call(cloud: Cloud) -> bool:
        await use(cloud)
        return True

    return call


def _only_what_matters(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Say nothing of what dead processes leave behind."""
    if not isinstance(context.get("exception"), (Died, Lost, FlsysError, type(None))):
        loop.default_exception_handler(context)
