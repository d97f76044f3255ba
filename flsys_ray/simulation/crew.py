"""Processes that train chains of layers side by side: numpy, and neither TensorFlow nor Ray.

A training calls numpy some hundred times, and threads would wait for Python's lock at each. A process loads little:
examples and parameters lie in memory that all share. A group's bases are laid into a slot of it, one row a work; the
worker puts each delta in its base's place.

    parent -> worker   the trainer, once; then (slot, works), whose `base` is the row
    worker -> parent   (slot, losses, steps), or the exception

For Linux (`memfd_create`). Asked by one thread.
"""

import mmap
import os
import pickle
import subprocess
import sys
from collections import deque
from dataclasses import dataclass, replace
from multiprocessing.connection import Pipe, wait
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flsys_ray.errors import FlsysError
from flsys_ray.programs.manifest import Manifest
from flsys_ray.simulation.blas.parts import Chain
from flsys_ray.simulation.training import Deltas, Examples, Group, TrainerSpec, Work

AHEAD = 3  # groups that a worker has before it asks for more


class WorkerLost(FlsysError):
    """A worker process ended before its work was done."""


class SharedArrays:
    """Memory of several processes, by the file `fd`: slots of equal size, each float32 [2, works, P].

    The first half of a slot holds bases and then deltas, the second corrections. What is never written takes no memory.
    """

    def __init__(self, fd: int, works: int, parameters: int) -> None:
        self.fd, self._shape = fd, (2, works, parameters)
        page = mmap.ALLOCATIONGRANULARITY
        self._bytes = -(-8 * works * parameters // page) * page
        self._slots: dict[int, NDArray[np.float32]] = {}

    def slot(self, number: int) -> NDArray[np.float32]:
        """Return a slot; the file grows when it must."""
        if number not in self._slots:
            end = (number + 1) * self._bytes
            if os.fstat(self.fd).st_size < end:
                os.ftruncate(self.fd, end)
            memory = mmap.mmap(self.fd, self._bytes, offset=number * self._bytes)
            self._slots[number] = np.frombuffer(memory, np.float32, int(np.prod(self._shape))).reshape(self._shape)
        return self._slots[number]


@dataclass(frozen=True, slots=True)
class SharedExamples:
    """Examples in the file `fd`: x, and y behind it."""

    fd: int
    shape: tuple[int, ...]
    dtype: str

    @classmethod
    def of(cls, examples: Examples) -> "SharedExamples":
        """Write examples into a new file of memory."""
        shared = cls(os.memfd_create("flsys-examples"), examples.x.shape, examples.x.dtype.str)
        with open(shared.fd, "wb", closefd=False) as file:
            file.write(np.ascontiguousarray(examples.x).data)
            file.write(np.ascontiguousarray(examples.y).data)
        return shared

    def examples(self) -> Examples:
        """Return them, without a copy."""
        memory = mmap.mmap(self.fd, 0, prot=mmap.PROT_READ)
        count = int(np.prod(self.shape))
        x = np.frombuffer(memory, self.dtype, count).reshape(self.shape)
        return Examples(x, np.frombuffer(memory, np.int32, self.shape[0], offset=x.nbytes))


@dataclass(frozen=True, slots=True, eq=False)
class Recipe:
    """What a worker makes its trainer of. `spec` has no examples and no Keras model."""

    spec: TrainerSpec
    chain: Chain
    manifest: Manifest
    examples: SharedExamples

    @classmethod
    def of(cls, spec: TrainerSpec, chain: Chain, manifest: Manifest) -> "Recipe":
        """Share a spec's examples."""
        none = Examples(spec.training.x[:0], spec.training.y[:0])
        bare = replace(spec, program=b"", build=None, training=none, held_out=none)
        return cls(bare, chain, manifest, SharedExamples.of(spec.training))


class Pending:
    """A group's result, once it is there."""

    def __init__(self, crew: "Crew", group: Group) -> None:
        self._crew, self.group = crew, group
        self.found: Deltas | Exception | None = None

    def done(self) -> bool:
        """Return whether the result is there."""
        return self.found is not None

    def result(self) -> Deltas:
        """Wait for the result. Raises what the worker raised, or `WorkerLost`."""
        while self.found is None:
            self._crew.collect()
        if isinstance(self.found, Exception):
            raise self.found
        return self.found


class Crew:
    """`workers` processes that train one model, in groups of at most `works`."""

    def __init__(self, recipe: Recipe, works: int, workers: int) -> None:
        self._recipe = recipe
        self._arrays = SharedArrays(os.memfd_create("flsys-deltas"), works, recipe.manifest.parameters)
        self._waiting: deque[Pending] = deque()
        self._free: list[int] = []
        self._slots = 0
        self._open: dict[int, Pending] = {}
        self._workers = [_Worker(recipe, self._arrays.fd, works) for _ in range(workers)]

    def train(self, group: Group) -> Pending:
        """Have a group trained."""
        pending = Pending(self, group)
        self._waiting.append(pending)
        self._receive(0)
        self._feed()
        return pending

    def collect(self) -> None:
        """Wait until some group is done."""
        self._receive(None)
        self._feed()

    def close(self) -> None:
        """End the workers; what is not done is dropped."""
        for worker in self._workers:
            worker.close()
        os.close(self._arrays.fd)
        os.close(self._recipe.examples.fd)

    def _feed(self) -> None:
        """Give groups to workers that have few."""
        while self._waiting:
            worker = min(self._workers, key=lambda one: one.open)
            if worker.open >= AHEAD:
                return
            pending = self._waiting.popleft()
            number = self._take_slot()
            self._open[number] = pending
            worker.send((number, self._laid(number, pending.group)))

    def _take_slot(self) -> int:
        if not self._free:
            self._free.append(self._slots)
            self._slots += 1
        return self._free.pop()

    def _laid(self, number: int, group: Group) -> tuple[tuple[Work, bool], ...]:
        """Lay a group's bases and corrections into a slot; return its works without them, and who has a correction."""
        bases, corrections = self._arrays.slot(number)
        works = []
        for i, work in enumerate(group.works):
            bases[i] = group.bases[work.base]
            if work.correction is not None:
                corrections[i] = work.correction
            works.append((replace(work, base=i, correction=None), work.correction is not None))
        return tuple(works)

    def _receive(self, timeout: float | None) -> None:
        """Take in what workers have done."""
        busy = [worker for worker in self._workers if worker.open]
        ready = wait([worker.connection for worker in busy], timeout)
        for worker in busy:
            if worker.connection not in ready:
                continue
            number, loss, steps = worker.receive()
            pending = self._open.pop(number)
            count = len(pending.group.works)
            delta = self._arrays.slot(number)[0, :count].copy()
            pending.found = loss if isinstance(loss, Exception) else Deltas(delta, loss, steps)
            self._free.append(number)


class _Worker:
    """The parent's end of one process. `open`: how many groups it has."""

    def __init__(self, recipe: Recipe, fd: int, works: int) -> None:
        self.connection, theirs = Pipe()
        self.open = 0
        path = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(path)}
        command = [sys.executable, "-m", "flsys_ray.simulation.crew_worker", str(theirs.fileno()), str(fd), str(works)]
        fds = (theirs.fileno(), fd, recipe.examples.fd)
        self._process = subprocess.Popen(command, pass_fds=fds, env=environment, stdin=subprocess.DEVNULL)
        theirs.close()
        self.connection.send(recipe)

    def send(self, message: Any) -> None:
        """Send works. Raises `WorkerLost`."""
        self.open += 1
        try:
            self.connection.send_bytes(pickle.dumps(message, pickle.HIGHEST_PROTOCOL))
        except OSError as error:
            raise self._lost() from error

    def receive(self) -> tuple[int, Any, Any]:
        """Return the next answer, waiting for it. Raises `WorkerLost`."""
        try:
            answer: tuple[int, Any, Any] = self.connection.recv()
        except (EOFError, OSError) as error:
            raise self._lost() from error
        self.open -= 1
        return answer

    def _lost(self) -> WorkerLost:
        return WorkerLost(f"simulation: a worker process ended with {self._process.wait()}")

    def close(self) -> None:
        """End the process."""
        self.connection.close()
        self._process.terminate()
        self._process.wait()
