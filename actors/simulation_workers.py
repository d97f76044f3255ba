"""Ray workers of a simulation: one a core, each with the trainers of all models, and so with many devices.

Examples lie in the object store once a machine, and workers read them there without a copy. Versions too: one object a
version, however many groups begin with it. What is under way is bounded by the loop, which asks for one round at most.
"""

import os
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import ray

from flsys_ray.core.layout import Vector
from flsys_ray.errors import InvalidInput
from flsys_ray.simulation.executors import Trainers
from flsys_ray.simulation.training import Answers, Deltas, Examples, Group, TrainerSpec, Work

VERSIONS_KEPT = 64


def connect() -> bool:
    """Use the Ray of this process, else the cluster in `RAY_ADDRESS`, else start one here, at normal niceness.

    Returns whether it was this call that connected: who did ends it, with `ray.shutdown`.
    """
    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_worker_niceness", "0")
    address = os.environ.get("RAY_ADDRESS", "local")
    ray.init(address, log_to_driver=False, include_dashboard=False, configure_logging=False)
    return True


class SimulationWorker:
    """Trains groups and evaluates versions. Examples come as references, and are read in place."""

    def __init__(self, specs: Mapping[str, TrainerSpec], examples: Mapping[str, tuple[Any, ...]]) -> None:
        made = {}
        for name, spec in specs.items():
            x, y, held_x, held_y = ray.get(list(examples[name]))
            made[name] = replace(spec, training=Examples(x, y), held_out=Examples(held_x, held_y))
        self._trainers = Trainers(made)

    def train(self, model: str, works: tuple[Work, ...], numbers: tuple[int, ...], *bases: Vector) -> Deltas:
        """Train a group; `bases` are the parameters of the versions `numbers`."""
        group = Group(model, works, dict(zip(numbers, bases, strict=True)))
        return self._trainers.of(model).train(group)

    def evaluate(self, model: str, parameters: Vector) -> Answers:
        """Evaluate a version."""
        return self._trainers.of(model).evaluate(parameters)


class RayExecutor:
    """`workers` Ray workers, each with a core (or `cores` of them) of its own.

    Of the Ray that `connect` finds or starts.

    Raises:
        InvalidInput: Ray has not so many cores to spare.
    """

    def __init__(self, specs: Mapping[str, TrainerSpec], workers: int, cores: float = 1.0) -> None:
        self._started = connect()
        free = ray.available_resources().get("CPU", 0.0)
        if free < workers * cores:
            if self._started:
                ray.shutdown()
            raise InvalidInput(f"simulation: {workers} workers need a core each, and Ray has {free:g} to spare")
        gpus = ray.cluster_resources().get("GPU", 0.0)
        options = {"num_cpus": cores, **({"num_gpus": min(1.0, gpus / workers)} if gpus else {})}
        examples, bare = {}, {}
        for name, spec in specs.items():
            arrays = (spec.training.x, spec.training.y, spec.held_out.x, spec.held_out.y)
            examples[name] = tuple(ray.put(array) for array in arrays)
            bare[name] = replace(spec, training=_none(spec.training), held_out=_none(spec.held_out))
        remote = ray.remote(SimulationWorker).options(**options)
        self._workers = [remote.remote(bare, examples) for _ in range(workers)]
        self._busy = [0] * workers
        self._versions: dict[tuple[str, int], Any] = {}

    def train(self, group: Group) -> "Future[Deltas]":
        """Train a group, on the worker with the least to do."""
        numbers = tuple(sorted(group.bases))
        bases = [self._version(group.model, number, group.bases[number]) for number in numbers]
        return self._send(
            lambda worker: worker.train.remote(group.model, group.works, numbers, *bases), len(group.works)
        )

    def evaluate(self, model: str, parameters: Vector) -> "Future[Answers]":
        """Evaluate a version."""
        return self._send(lambda worker: worker.evaluate.remote(model, parameters), 1)

    def close(self) -> None:
        """End the workers, and Ray if it was started here."""
        for worker in self._workers:
            ray.kill(worker)
        if self._started:
            ray.shutdown()

    def _version(self, model: str, number: int, parameters: Vector) -> Any:
        key = (model, number)
        if key not in self._versions:
            self._versions[key] = ray.put(parameters)
            while len(self._versions) > VERSIONS_KEPT:
                self._versions.pop(next(iter(self._versions)))
        return self._versions[key]

    def _send(self, call: Any, cost: int) -> "Future[Any]":
        place = self._busy.index(min(self._busy))
        self._busy[place] += cost
        future: Future[Any] = call(self._workers[place]).future()

        def done(_: "Future[Any]") -> None:
            self._busy[place] -= cost

        future.add_done_callback(done)
        return future


def _none(examples: Examples) -> Examples:
    return Examples(examples.x[:0], examples.y[:0])
