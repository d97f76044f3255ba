"""Who holds the durable models: something that answers for a model by its id.

`ModelHandle` is what the rest of the cloud sees of one; calls may cross a process. `ModelHost` holds one in this
process, lets one call in at a time, and activates it anew from the store after it broke. `LocalHosts` holds any number
here; `actors.hosts.RayHosts` has an actor for each.
"""

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Literal, Protocol, TypeVar

from flsys_ray.cloud.batches import Batch, BatchAnswer
from flsys_ray.cloud.meter import NO_METER, Meter
from flsys_ray.cloud.model import DurableModel
from flsys_ray.cloud.offers import CheckInAnswer
from flsys_ray.core.ids import model_name
from flsys_ray.core.plan import TrainingPlan
from flsys_ray.core.types import Assignment, Counted, GivenBack, OptimizerState, Rejected, Version
from flsys_ray.errors import OwnershipLost, TryLater
from flsys_ray.storage.base import ObjectStore
from flsys_ray.wire.developer_schemas import ModelInfo, RoundInfo
from flsys_ray.wire.schemas import EvaluationRequest

T = TypeVar("T")
BUSY_S = 2.0
CHECK_IN_WAIT_S = 1.0  # a phone that asks for work has better things to do than to wait for a commit
Action = Literal["start", "resume", "pause", "stop", "archive"]


class ModelHandle(Protocol):
    """One model, wherever it is held. Every call may be repeated. All raise `NotFound` for a model never created."""

    async def check_in(self, device_id: str) -> CheckInAnswer:
        """A device asks for work."""

    async def check_in_many(self, device_ids: Sequence[str]) -> list[CheckInAnswer]:
        """Devices ask for work, one after the other."""

    async def submit_many(self, batch: Batch) -> BatchAnswer:
        """Count updates that are in the store already, as if they came one after the other."""

    async def give_back(self, assignment: Assignment) -> GivenBack | Rejected:
        """Take an assignment back."""

    async def evaluate(self, assignment: Assignment, metrics: EvaluationRequest) -> Counted | Rejected:
        """Take a federated evaluation."""

    async def put_plan(self, plan: TrainingPlan) -> None:
        """Train by this plan from the next round on."""

    async def put_program(self, program_sha256: str) -> None:
        """Train with this program, which is in the store already."""

    async def put_shared(self, shared_sha256: str, program_sha256: str) -> None:
        """Have devices mix in this shared set, which is in the store already and fits the program."""

    async def act(self, action: Action) -> None:
        """Start, pause, resume, stop or archive."""

    async def promote(self, number: int | None) -> None:
        """Use a version for inference; None: always the newest."""

    async def rollback(self, number: int) -> None:
        """Go on from an older version."""

    async def info(self) -> ModelInfo:
        """Return the model as it is now."""

    async def rounds(self, since: int) -> list[RoundInfo]:
        """Return the rounds that are over, from number `since` on, oldest first."""


class Hosts(Protocol):
    """All models, by id."""

    def model(self, name: str) -> ModelHandle:
        """Return a handle; this alone activates nothing."""


class ModelHost:
    """Holds one durable model, activated when it is first called. Thread-safe; calls are synchronous."""

    def __init__(self, store: ObjectStore, name: str, clock: Callable[[], float], meter: Meter = NO_METER) -> None:
        self._store = store
        self._name = name
        self._clock = clock
        self._meter = meter
        self._lock = threading.Lock()
        self._model: DurableModel | None = None
        self._ousted = False

    def call(self, use: Callable[[DurableModel], T], wait_s: float = -1.0) -> T:
        """Let one call in. A model that is broken afterwards is dropped: the next call activates it anew.

        Raises `TryLater` if others are inside for `wait_s`, while a version is committed, say; -1 waits without limit.
        """
        with self._entered(wait_s):
            return self._use(use)

    def tick(self, use: Callable[[DurableModel], T]) -> T | None:
        """Let the clock in. Returns None if another owner took the model: it is taken back only when somebody calls.

        A new owner begins the open round's time anew. Owners that took a model from each other by their clocks, each
        when the round was due, would never let it end.
        """
        with self._entered(-1.0):
            return None if self._ousted else self._use(use)

    def _use(self, use: Callable[[DurableModel], T]) -> T:
        self._ousted = False
        try:
            if self._model is None:
                self._model = DurableModel(self._store, self._name, self._clock, self._meter)
            return use(self._model)
        except OwnershipLost:
            self._ousted = True
            raise
        finally:
            if self._model is not None and self._model.broken:
                self._model = None

    @contextmanager
    def _entered(self, wait_s: float) -> Iterator[None]:
        if not self._lock.acquire(timeout=wait_s):
            raise TryLater(f"model {model_name(self._name)!r} is busy: try again", BUSY_S)
        try:
            yield
        finally:
            self._lock.release()

    def act(self, action: Action) -> None:
        """Start, pause, resume, stop or archive."""
        if action == "pause":
            self.call(DurableModel.pause)
        elif action == "stop":
            self.call(DurableModel.stop)
        elif action == "archive":
            self.call(DurableModel.archive)
        else:
            self.call(lambda model: model.start(initial_version))


class LocalHandle:
    """A `ModelHandle` on a host in this process. Calls run in threads: a slow store does not stop the event loop."""

    def __init__(self, host: ModelHost) -> None:
        self._host = host

    async def check_in(self, device_id: str) -> CheckInAnswer:
        """A device asks for work."""
        return (await self.check_in_many([device_id]))[0]

    async def check_in_many(self, device_ids: Sequence[str]) -> list[CheckInAnswer]:
        """Devices ask for work."""
        return await asyncio.to_thread(self._host.call, lambda model: model.check_in_many(device_ids), CHECK_IN_WAIT_S)

    async def submit_many(self, batch: Batch) -> BatchAnswer:
        """Count updates."""
        return await self._call(lambda model: model.submit_many(batch))

    async def give_back(self, assignment: Assignment) -> GivenBack | Rejected:
        """Take an assignment back."""
        return await self._call(lambda model: model.give_back(assignment))

    async def evaluate(self, assignment: Assignment, metrics: EvaluationRequest) -> Counted | Rejected:
        """Take a federated evaluation."""
        return await self._call(lambda model: model.evaluate(assignment, metrics))

    async def put_plan(self, plan: TrainingPlan) -> None:
        """Train by this plan from the next round on."""
        await self._call(lambda model: model.put_plan(plan))

    async def put_program(self, program_sha256: str) -> None:
        """Train with this program."""
        await self._call(lambda model: model.put_program(program_sha256))

    async def put_shared(self, shared_sha256: str, program_sha256: str) -> None:
        """Have devices mix in this shared set."""
        await self._call(lambda model: model.put_shared(shared_sha256, program_sha256))

    async def act(self, action: Action) -> None:
        """Start, pause, resume, stop or archive."""
        await asyncio.to_thread(self._host.act, action)

    async def promote(self, number: int | None) -> None:
        """Use a version for inference; None: always the newest."""
        await self._call(lambda model: model.promote(number))

    async def rollback(self, number: int) -> None:
        """Go on from an older version."""
        await self._call(lambda model: model.rollback(number))

    async def info(self) -> ModelInfo:
        """Return the model as it is now."""
        return await self._call(DurableModel.info)

    async def rounds(self, since: int) -> list[RoundInfo]:
        """Return the rounds that are over."""
        return await self._call(lambda model: model.rounds(since))

    async def _call(self, use: Callable[[DurableModel], T]) -> T:
        return await asyncio.to_thread(self._host.call, use)


class LocalHosts:
    """Any number of models in this process: for tests, simulations, and a cloud without Ray."""

    def __init__(self, store: ObjectStore, clock: Callable[[], float], meter: Meter = NO_METER) -> None:
        self._store = store
        self._clock = clock
        self._meter = meter
        self._lock = threading.Lock()
        self._hosts: dict[str, ModelHost] = {}

    def host(self, name: str) -> ModelHost:
        """Return the one host of a model."""
        with self._lock:
            if name not in self._hosts:
                self._hosts[name] = ModelHost(self._store, name, self._clock, self._meter)
            return self._hosts[name]

    def model(self, name: str) -> LocalHandle:
        """Return a handle."""
        return LocalHandle(self.host(name))


def initial_version(program: bytes, seed: int) -> Version:
    """Run a program's `init`: version 0's parameters. LiteRT is loaded when this is first called."""
    from flsys_ray.programs.runner import Program

    return Version(0, Program.load(program).init(seed), OptimizerState())
