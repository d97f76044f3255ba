"""One sequence of what devices do, played through each layer of the platform.

A `Driver` is a model that trains, seen through one layer. To add a layer, write one more class, or give `HostsDriver`
other hosts, and add it to the table in `test_parity_one_sequence.py`.
"""

import asyncio
import base64
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

import httpx2
import numpy as np
from cloud_fakes import START, Clock
from cloud_world import World, bearer

from flsys_ray.cloud import places
from flsys_ray.cloud.credentials import Credentials, Device
from flsys_ray.cloud.hosts import Hosts, initial_version
from flsys_ray.cloud.service import Cloud
from flsys_ray.core.coordinator import Coordinator
from flsys_ray.core.plan import TrainingPlan
from flsys_ray.core.types import Assignment, Counted, Rejected, Update, Version
from flsys_ray.errors import Conflict, Late
from flsys_ray.programs.manifest import read_manifest
from flsys_ray.storage.base import ObjectStore
from flsys_ray.storage.memory import MemoryStore
from flsys_ray.wire.schemas import CheckInRequest, ModelCandidacy
from flsys_ray.wire.tensors import decode_vector, encode_update

APP, NAME, MODEL = "acme", "tiny", "acme/tiny"
Verb = Literal["check_in", "upload", "give_back", "wait"]
CHECK_IN = CheckInRequest(models=[ModelCandidacy(model=NAME, examples=5)])


@dataclass(frozen=True)
class Step:
    """What one device does, or that `seconds` pass."""

    verb: Verb
    device: str = ""
    seed: int = 0
    seconds: float = 0.0


def delta_of(step: Step, size: int) -> tuple[np.ndarray, int, float]:
    """Return the update of a step: its delta float32 [size], examples and loss."""
    rng = np.random.default_rng(step.seed)
    return rng.normal(0, 0.3, size).astype(np.float32), int(rng.integers(1, 400)), float(rng.uniform(0, 3))


def control_of(step: Step, size: int, plan: TrainingPlan) -> np.ndarray | None:
    """Return the change of a control that a step's update has, float32 [size], if the plan's rule asks for one."""
    if not plan.aggregation.carries_control:
        return None
    return np.random.default_rng(step.seed + 1).normal(0, 3, size).astype(np.float32)


class Driver(Protocol):
    """A model that trains, seen through one layer. `play` says what a device is told, in words that all share."""

    def play(self, step: Step) -> str:
        """Do one step."""

    def versions(self) -> list[bytes]:
        """Return the bits of every committed version's parameters, and of its control if it has one, 0 first."""


def fixed_store() -> ObjectStore:
    """Return a store whose signing key is known: the ids of devices follow from it, and must be the same everywhere."""
    store = MemoryStore()
    fix_signing_key(store)
    return store


def fix_signing_key(store: ObjectStore) -> None:
    key = base64.b64encode(bytes(range(32))).decode()
    store.put_new(places.SIGNING_KEY, json.dumps({"key": key}).encode())


def device_id(name: str) -> str:
    return Credentials(fixed_store()).device_id(APP, f"installation-{name}")


class BareDriver:
    """The coordinator alone: no store, no clock, no I/O."""

    def __init__(self, program: bytes, plan: TrainingPlan) -> None:
        base = initial_version(program, plan.seed)
        self._plan = plan
        start = Version(0, base.parameters, plan.server_optimizer.init(base.parameters.size))
        layout = read_manifest(program).to_layout()
        self._coordinator = Coordinator(MODEL, layout, plan, start, round_=0, opened_at=START)
        self._committed = [_bits(self._coordinator.version)]
        self._works: dict[str, Assignment] = {}
        self._ever_counted: set[str] = set()
        self._now = START

    def play(self, step: Step) -> str:
        self._now += step.seconds
        self._tick()
        said = self._play(step)
        self._tick()
        return said

    def versions(self) -> list[bytes]:
        return self._committed

    def _tick(self) -> None:
        while (summary := self._coordinator.tick(self._now)) is not None:
            if summary.commit is not None:
                self._committed.append(_bits(summary.commit.version))
                self._ever_counted.update(ref.assignment_id for ref in summary.commit.updates)

    def _play(self, step: Step) -> str:
        if step.verb == "wait":
            return "waited"
        if step.verb == "check_in":
            outcome = self._coordinator.check_in(device_id(step.device), self._now)
            if isinstance(outcome, Rejected):
                return outcome.reason
            self._works[step.device] = outcome
            return f"round {outcome.round} of version {outcome.version}"
        work = self._works[step.device]
        if step.verb == "give_back":
            returned = self._coordinator.give_back(work, self._now)
            return "conflict" if isinstance(returned, Rejected) and returned.reason == "already-contributed" else "back"
        size = self._coordinator.layout.size
        update = Update(work, *delta_of(step, size), control=control_of(step, size, self._plan))
        counted = self._coordinator.submit(update, self._now)
        if isinstance(counted, Counted):
            return "duplicate" if counted.duplicate else "counted"
        return "duplicate" if work.assignment_id in self._ever_counted else "late"


@dataclass
class HostsDriver:
    """Durable models behind `Hosts`: in this process, or (given `RayHosts`) in actors. `advance` lets time pass."""

    store: ObjectStore
    hosts: Hosts
    clock: Callable[[], float]
    advance: Callable[[float], None]
    runner: asyncio.Runner
    works: dict[str, str] = field(default_factory=dict)

    def open(self, program: bytes, plan: TrainingPlan) -> "HostsDriver":
        """Have the model train."""
        self.cloud, self.plan = Cloud(self.store, self.hosts, self.clock), plan
        self.size = read_manifest(program).parameters
        self.runner.run(self.cloud.put_model(APP, NAME, plan))
        self.runner.run(self.cloud.put_program(APP, NAME, program))
        self.runner.run(self.cloud.act(APP, NAME, "start"))
        return self

    def play(self, step: Step) -> str:
        if step.verb == "wait":
            self.advance(step.seconds)
            self.runner.run(self.cloud.info(APP, NAME))
            return "waited"
        return self.runner.run(self._play(step))

    def versions(self) -> list[bytes]:
        numbers = self.cloud.versions(APP, NAME).versions
        infos = [self.runner.run(self.cloud.version(APP, NAME, number)) for number in numbers]
        bodies = [self.store.get(places.weights(MODEL, info.weights_sha256)).body for info in infos]
        hashes = [info.control_sha256 for info in infos]
        controls = [self.store.get(places.control(MODEL, found)).body if found else None for found in hashes]
        return _decoded(bodies, controls, self.size)

    async def _play(self, step: Step) -> str:
        device = Device(device_id(step.device), APP)
        if step.verb == "check_in":
            reply = await self.cloud.check_in(device, CHECK_IN)
            if reply.rejections:
                return reply.rejections[0].reason
            work = reply.assignments[0]
            self.works[step.device] = work.token
            return f"round {work.round} of version {work.version}"
        token = self.works[step.device]
        aid = json.loads(base64.urlsafe_b64decode(token.split(".")[1] + "=="))["aid"]
        ticket = self.cloud.credentials.check_assignment(token, device, aid)
        try:
            if step.verb == "give_back":
                await self.cloud.give_back(ticket)
                return "back"
            control = control_of(step, self.size, self.plan)
            reply = await self.cloud.updates.take_in(ticket, encode_update(*delta_of(step, self.size), control=control))
            return "duplicate" if reply.duplicate else "counted"
        except Late:
            return "late"
        except Conflict:
            return "conflict"


@dataclass
class HttpDriver:
    """The HTTP surface, as a phone sees it."""

    world: World
    works: dict[str, dict] = field(default_factory=dict)

    def open(self, plan: TrainingPlan) -> "HttpDriver":
        """Have the model train."""
        self.key, self.plan = self.world.app(APP), plan
        self.world.training(self.key, NAME, plan.model_dump(mode="json"))
        return self

    def play(self, step: Step) -> str:
        if step.verb == "wait":
            assert isinstance(self.world.clock, Clock)
            self.world.clock.advance(step.seconds)
            self.world.info(self.key)
            return "waited"
        token = self.world.device(self.key, step.device)
        if step.verb == "check_in":
            reply = self.world.check_in(token, NAME)
            if reply["rejections"]:
                return str(reply["rejections"][0]["reason"])
            work = self.works[step.device] = reply["assignments"][0]
            return f"round {work['round']} of version {work['version']}"
        work = self.works[step.device]
        if step.verb == "give_back":
            return _said(self.world.give_back(token, work))
        size = self.world.size
        body = encode_update(*delta_of(step, size), control=control_of(step, size, self.plan))
        return _said(self.world.upload(token, work, body))

    def versions(self) -> list[bytes]:
        base = f"/v1/models/{NAME}/versions"
        numbers = self.world.http.get(base, headers=bearer(self.key)).json()["versions"]
        bodies = [self.world.http.get(f"{base}/{number}", headers=bearer(self.key)).content for number in numbers]
        hashes = [self.world.manifest(self.key, number, NAME)["control_sha256"] for number in numbers]
        paths = [f"/v1/models/{NAME}/control/{found}" if found else None for found in hashes]
        controls = [self.world.http.get(path, headers=bearer(self.key)).content if path else None for path in paths]
        return _decoded(bodies, controls, self.world.size)


def _bits(version: Version) -> bytes:
    return version.parameters.tobytes() + (b"" if version.control is None else version.control.tobytes())


def _decoded(bodies: list[bytes], controls: list[bytes | None], size: int) -> list[bytes]:
    parameters = [decode_vector(body, "parameters", size).tobytes() for body in bodies]
    rest = [b"" if body is None else decode_vector(body, "control", size).tobytes() for body in controls]
    return [one + other for one, other in zip(parameters, rest, strict=True)]


def _said(reply: httpx2.Response) -> str:
    if reply.status_code == 200:
        return "duplicate" if reply.json()["duplicate"] else "counted"
    return {204: "back", 409: "conflict", 410: "late"}[reply.status_code]
