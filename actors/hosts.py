"""All models as Ray actors, activated when they are first called.

Ray's calls happen at most once and may have happened when they fail. Every call of a model may be repeated, so a failed
one becomes "try later": the phone, or the developer's client, repeats it.
"""

from typing import Any, cast

import ray
from ray.actor import ActorHandle
from ray.exceptions import RayActorError

from actors.model_actor import ModelActor
from flsys_ray.cloud.hosts import Action, ModelHandle
from flsys_ray.cloud.model import CheckInAnswer
from flsys_ray.core.plan import TrainingPlan
from flsys_ray.core.types import Assignment, Counted, GivenBack, Rejected, Update
from flsys_ray.errors import TryLater
from flsys_ray.wire.schemas import EvaluationRequest, ModelInfo, RoundInfo

NAMESPACE = "flsys"
CALLS_AT_ONCE = 32
RESTART_S = 2.0


def actor_name(model: str) -> str:
    """Return the name of a model's actor in the namespace."""
    return f"model:{model}"


class RayHosts:
    """Handles of model actors. Activation is `get_if_exists`: of many replicas one makes the actor."""

    def __init__(self, store_uri: str) -> None:
        self._store_uri = store_uri
        self._actors: dict[str, ActorHandle[Any]] = {}

    def model(self, name: str) -> ModelHandle:
        """Return a handle; this alone activates nothing."""
        return RayHandle(self, name)

    def actor(self, name: str) -> "ActorHandle[Any]":
        """Return the actor of a model, made if there is none."""
        if name not in self._actors:
            remote = ray.remote(ModelActor).options(
                name=actor_name(name),
                namespace=NAMESPACE,
                get_if_exists=True,
                lifetime="detached",
                max_restarts=-1,
                max_concurrency=CALLS_AT_ONCE,
                num_cpus=0,
            )
            self._actors[name] = remote.remote(self._store_uri, name)
        return self._actors[name]

    def forget(self, name: str) -> None:
        """Look the actor up again at the next call: a handle goes stale with its actor."""
        self._actors.pop(name, None)


class RayHandle:
    """A `ModelHandle` on an actor."""

    def __init__(self, hosts: RayHosts, name: str) -> None:
        self._hosts = hosts
        self._name = name

    async def check_in(self, device_id: str) -> CheckInAnswer:
        """A device asks for work."""
        return cast(CheckInAnswer, await self._call("check_in", device_id))

    async def submit(self, update: Update) -> Counted | Rejected:
        """Count an update."""
        return cast(Counted | Rejected, await self._call("submit", update))

    async def give_back(self, assignment: Assignment) -> GivenBack | Rejected:
        """Take an assignment back."""
        return cast(GivenBack | Rejected, await self._call("give_back", assignment))

    async def evaluate(self, assignment: Assignment, metrics: EvaluationRequest) -> Counted | Rejected:
        """Take a federated evaluation."""
        return cast(Counted | Rejected, await self._call("evaluate", assignment, metrics))

    async def put_plan(self, plan: TrainingPlan) -> None:
        """Train by this plan from the next round on."""
        await self._call("put_plan", plan)

    async def put_program(self, program_sha256: str) -> None:
        """Train with this program."""
        await self._call("put_program", program_sha256)

    async def act(self, action: Action) -> None:
        """Start, pause, resume or stop."""
        await self._remote("act", action)

    async def info(self) -> ModelInfo:
        """Return the model as it is now."""
        return cast(ModelInfo, await self._call("info"))

    async def rounds(self, since: int) -> list[RoundInfo]:
        """Return the rounds that are over."""
        return cast(list[RoundInfo], await self._call("rounds", since))

    async def _call(self, name: str, *args: Any) -> Any:
        return await self._remote("call", name, *args)

    async def _remote(self, method: str, *args: Any) -> Any:
        try:
            result = await getattr(self._hosts.actor(self._name), method).remote(*args)
        except RayActorError:
            self._hosts.forget(self._name)
            raise TryLater(f"model {self._name!r} is being restarted: try again", RESTART_S) from None
        if isinstance(result, Exception):
            raise result
        return result
