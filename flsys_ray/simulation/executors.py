"""Who computes: workers that train groups and evaluate versions. Results never depend on how many there are."""

import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

import numpy as np

from flsys_ray.core.layout import Vector
from flsys_ray.simulation.crew import Crew
from flsys_ray.simulation.training import Answers, Deltas, Group, Trainer, TrainerSpec, make_trainer, parts_of

T = TypeVar("T", covariant=True)


class Promise(Protocol[T]):
    """A result that will be there: `concurrent.futures.Future` is one."""

    def done(self) -> bool:
        """Return whether the result is there."""

    def result(self) -> T:
        """Wait for the result. Raises what its computation raised."""


class Executor(Protocol):
    """Takes work, and promises the results."""

    def train(self, group: Group) -> Promise[Deltas]:
        """Train a group."""

    def evaluate(self, model: str, parameters: Vector) -> Promise[Answers]:
        """Evaluate a version."""

    def close(self) -> None:
        """Let go of the workers."""


class Trainers:
    """The trainers of some models, each made when it is first needed. For many threads."""

    def __init__(self, specs: Mapping[str, TrainerSpec]) -> None:
        self._specs = dict(specs)
        self._made: dict[str, Trainer] = {}
        self._lock = threading.Lock()

    def of(self, model: str) -> Trainer:
        """Return a model's trainer."""
        with self._lock:
            if model not in self._made:
                self._made[model] = make_trainer(self._specs[model])
            return self._made[model]


class InlineExecutor:
    """This machine, without Ray: one copy of TensorFlow, of the graphs and of the examples.

    Chains of layers are trained by processes of numpy alone (`crew`), if there are several workers; all else is
    computed by threads, outside Python's lock, each call on the one thread that makes it. Groups are cut into parts
    where that changes no bit, so that no worker waits long for another.
    """

    def __init__(self, specs: Mapping[str, TrainerSpec], workers: int) -> None:
        self._trainers, self._specs, self._workers = Trainers(specs), dict(specs), workers
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="simulation")
        self._crews: dict[str, Crew] = {}

    def train(self, group: Group) -> Promise[Deltas]:
        """Train a group."""
        trainer = self._trainers.of(group.model)
        crew = self._crew(group.model, trainer)
        train = (lambda part: self._threads.submit(trainer.train, part)) if crew is None else crew.train
        parts = [train(part) for part in parts_of(group, trainer.at_once)]
        return parts[0] if len(parts) == 1 else Joined(parts)

    def evaluate(self, model: str, parameters: Vector) -> Promise[Answers]:
        """Evaluate a version."""
        return self._threads.submit(lambda: self._trainers.of(model).evaluate(parameters))

    def close(self) -> None:
        """End threads and processes; what is not begun is dropped."""
        self._threads.shutdown(cancel_futures=True)
        for crew in self._crews.values():
            crew.close()

    def _crew(self, model: str, trainer: Trainer) -> Crew | None:
        """Return the processes that train a model, None if threads do."""
        if self._workers == 1 or not hasattr(os, "memfd_create"):
            return None
        if model not in self._crews and (recipe := trainer.recipe()) is not None:
            self._crews[model] = Crew(recipe, self._specs[model].group_size, self._workers)
        return self._crews.get(model)


class Joined:
    """The result of parts of a group."""

    def __init__(self, parts: Sequence[Promise[Deltas]]) -> None:
        self._parts = parts
        self._joined: Deltas | None = None

    def done(self) -> bool:
        """Return whether the result is there."""
        return all(part.done() for part in self._parts)

    def result(self) -> Deltas:
        """Wait for the result."""
        if self._joined is None:
            found = [part.result() for part in self._parts]
            self._joined = Deltas(
                np.concatenate([one.delta for one in found]),
                np.concatenate([one.loss for one in found]),
                np.concatenate([one.steps for one in found]),
            )
        return self._joined
