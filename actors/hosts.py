"""All models as Ray actors, activated when they are first called, and gone again when they are idle.

Ray's calls happen at most once and may have happened when they fail. Every call of a model may be repeated. So a call
that meets an actor which has left is repeated here, on the next actor; one that meets a crash becomes "try later", and
the phone, or the developer's client, repeats it.

What a model without an actor and without work would answer is read from the store: it is not activated to be looked at.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorDiedError, PendingCallsLimitExceeded, RayActorError

from actors.model_actor import IDLE_S, ModelActor, Passivated
from flsys_ray.cloud.batches import Batch, BatchAnswer
from flsys_ray.cloud.hosts import Action, ModelHandle, ModelHost
from flsys_ray.cloud.journal import Journal
from flsys_ray.cloud.model import DurableModel
from flsys_ray.cloud.offers import CheckInAnswer
from flsys_ray.cloud.reports import closed_rounds
from flsys_ray.cloud.standing import Standings
from flsys_ray.core.ids import model_name
from flsys_ray.core.plan import TrainingPlan
from flsys_ray.core.types import Assignment, Counted, GivenBack, Rejected
from flsys_ray.errors import TryLater
from flsys_ray.storage.uri import open_store
from flsys_ray.wire.developer_schemas import ModelInfo, RoundInfo
from flsys_ray.wire.schemas import EvaluationRequest

NAMESPACE = "flsys"
CALLS_AT_ONCE = 32
PENDING_CALLS = 256
RESTART_S = 2.0
BUSY_S = 2.0
NEXT_ACTOR_S = (0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)  # an actor's name is free a moment after it has left


def actor_name(model: str) -> str:
    """Return the name of a model's actor in the namespace."""
    return f"model:{model}"


class RayHosts:
    """Handles of model actors. Activation is `get_if_exists`: of many replicas one makes the actor.

    An actor without calls leaves after `idle_s`. At most `pending_calls` of this process wait for one actor.
    """

    def __init__(self, store_uri: str, idle_s: float = IDLE_S, pending_calls: int = PENDING_CALLS) -> None:
        self.store = open_store(store_uri)
        self.standings = Standings(self.store, time.time)
        self._store_uri = store_uri
        self._idle_s = idle_s
        self._pending_calls = pending_calls
        self._lock = threading.Lock()
        self._actors: dict[str, ActorHandle[Any]] = {}

    def model(self, name: str) -> ModelHandle:
        """Return a handle; this alone activates nothing."""
        return RayHandle(self, name)

    def known(self, name: str) -> "ActorHandle[Any] | None":
        """Return the actor that was called last, without asking Ray. It may have left."""
        return self._actors.get(name)

    def find(self, name: str) -> "ActorHandle[Any] | None":
        """Return the actor of a model if there is one. Waits for Ray."""
        with self._lock:
            if name not in self._actors:
                try:
                    self._actors[name] = ray.get_actor(actor_name(name), namespace=NAMESPACE)
                except ValueError:
                    return None
            return self._actors[name]

    def actor(self, name: str) -> "ActorHandle[Any]":
        """Return the actor of a model, made if there is none. Waits for Ray, and not for the actor."""
        with self._lock:
            if name not in self._actors:
                remote = ray.remote(ModelActor).options(
                    name=actor_name(name),
                    namespace=NAMESPACE,
                    get_if_exists=True,
                    lifetime="detached",
                    max_restarts=-1,
                    max_concurrency=CALLS_AT_ONCE,
                    max_pending_calls=self._pending_calls,
                    num_cpus=0,
                )
                self._actors[name] = remote.remote(self._store_uri, name, self._idle_s)
            return self._actors[name]

    def forget(self, name: str) -> None:
        """Look the actor up again at the next call: a handle goes stale with its actor."""
        with self._lock:
            self._actors.pop(name, None)


class RayHandle:
    """A `ModelHandle` on an actor."""

    def __init__(self, hosts: RayHosts, name: str) -> None:
        self._hosts = hosts
        self._name = name

    async def check_in(self, device_id: str) -> CheckInAnswer:
        """A device asks for work."""
        return (await self.check_in_many([device_id]))[0]

    async def check_in_many(self, device_ids: Sequence[str]) -> list[CheckInAnswer]:
        """Devices ask for work."""
        return cast(list[CheckInAnswer], await self._call("check_in_many", device_ids))

    async def submit_many(self, batch: Batch) -> BatchAnswer:
        """Count updates."""
        return cast(BatchAnswer, await self._call("submit_many", batch))

    async def give_back(self, assignment: Assignment) -> GivenBack | Rejected:
        """Take an assignment back."""
        return cast(GivenBack | Rejected, await self._call("give_back", assignment))

    async def evaluate(self, assignment: Assignment, metrics: EvaluationRequest) -> Counted | Rejected:
        """Take a federated evaluation."""
        return cast(Counted | Rejected, await self._call("evaluate", assignment, metrics))

    async def put_plan(self, plan: TrainingPlan) -> None:
        """Train by this plan from the next round on."""
        if not await self._changed_draft(lambda model: model.put_plan(plan)):
            await self._call("put_plan", plan)

    async def put_program(self, program_sha256: str) -> None:
        """Train with this program."""
        if not await self._changed_draft(lambda model: model.put_program(program_sha256)):
            await self._call("put_program", program_sha256)

    async def put_shared(self, shared_sha256: str, program_sha256: str) -> None:
        """Have devices mix in this shared set."""
        if not await self._changed_draft(lambda model: model.put_shared(shared_sha256, program_sha256)):
            await self._call("put_shared", shared_sha256, program_sha256)

    async def act(self, action: Action) -> None:
        """Start, pause, resume, stop or archive."""
        await self._remote(self._hosts.actor, "act", action)

    async def promote(self, number: int | None) -> None:
        """Use a version for inference; None: always the newest."""
        await self._call("promote", number)

    async def rollback(self, number: int) -> None:
        """Go on from an older version."""
        await self._call("rollback", number)

    async def info(self) -> ModelInfo:
        """Return the model as it is now."""
        info = await self._remote(self._hosts.find, "call", "info")
        if info is None and await asyncio.to_thread(self._needs_owner):
            info = await self._call("info")
        return cast(ModelInfo, info) if info is not None else await asyncio.to_thread(self._standings.info, self._name)

    async def rounds(self, since: int) -> list[RoundInfo]:
        """Return the rounds that are over: the log tells them."""
        return await asyncio.to_thread(self._stored_rounds, since)

    # Inside ------------------------------------------------------------------------------------------------------

    @property
    def _standings(self) -> Standings:
        return self._hosts.standings

    def _needs_owner(self) -> bool:
        self._standings.forget(self._name)
        return self._standings.has_work(self._name)

    def _stored_rounds(self, since: int) -> list[RoundInfo]:
        journal = Journal(self._hosts.store, self._name)
        journal.read_tail()
        return closed_rounds(journal, since)

    async def _changed_draft(self, change: Callable[[DurableModel], None]) -> bool:
        """Change a draft that has no actor right here. Returns False if the model is anything else.

        A draft has no round, so it needs no owner that stays. If one comes up meanwhile, the log lets one of both win.
        """

        def changed() -> bool:
            self._standings.forget(self._name)
            if self._hosts.find(self._name) or self._standings.read(self._name).head.state != "draft":
                return False
            ModelHost(self._hosts.store, self._name, time.time).call(change)
            return True

        return await asyncio.to_thread(changed)

    async def _call(self, name: str, *args: Any) -> Any:
        return await self._remote(self._hosts.actor, "call", name, *args)

    async def _remote(self, look_up: "Callable[[str], ActorHandle[Any] | None]", method: str, *args: Any) -> Any:
        """Call the actor that `look_up` finds, or makes; the next one if that one has left. None if there is none."""
        for pause_s in NEXT_ACTOR_S:
            await asyncio.sleep(pause_s)
            try:
                actor = self._hosts.known(self._name) or await asyncio.to_thread(look_up, self._name)
                if actor is None:
                    return None
                result = await getattr(actor, method).remote(*args)
            except (ActorDiedError, ValueError):  # a ValueError: it left while its name was looked up
                self._hosts.forget(self._name)
                continue
            except PendingCallsLimitExceeded:
                raise TryLater(
                    f"model {model_name(self._name)!r} has too many calls waiting: try again", BUSY_S
                ) from None
            except RayActorError:
                break
            if isinstance(result, Passivated):
                self._hosts.forget(self._name)
                continue
            if isinstance(result, Exception):
                raise result
            return result
        self._hosts.forget(self._name)
        raise TryLater(f"model {model_name(self._name)!r} is being restarted: try again", RESTART_S)
