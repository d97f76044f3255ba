"""Who computes: workers that train groups and evaluate versions. Results never depend on how many there are."""

import threading
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Protocol

from flsys_ray.core.layout import Vector
from flsys_ray.simulation.training import Answers, Deltas, Group, Trainer, TrainerSpec, make_trainer


class Executor(Protocol):
    """Takes work, and gives futures of the results."""

    def train(self, group: Group) -> "Future[Deltas]":
        """Train a group."""

    def evaluate(self, model: str, parameters: Vector) -> "Future[Answers]":
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
    """Threads of this process: one copy of TensorFlow, of the graphs and of the examples. No Ray.

    Trainers compute outside Python's lock, each call on the one thread that makes it.
    """

    def __init__(self, specs: Mapping[str, TrainerSpec], workers: int) -> None:
        self._trainers = Trainers(specs)
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="simulation")

    def train(self, group: Group) -> "Future[Deltas]":
        """Train a group."""
        return self._threads.submit(lambda: self._trainers.of(group.model).train(group))

    def evaluate(self, model: str, parameters: Vector) -> "Future[Answers]":
        """Evaluate a version."""
        return self._threads.submit(lambda: self._trainers.of(model).evaluate(parameters))

    def close(self) -> None:
        """End the threads; what is not begun is dropped."""
        self._threads.shutdown(cancel_futures=True)
