"""Save a simulation, and go on from there: to the bit as if it had never stopped.

A checkpoint is taken between two events, and holds all of the state but results of training: these are computed again,
in the same groups. It is replaced whole or not at all. The file is a pickle, made and read by this program alone, and
it names what it is of: other plans, seeds, traces or examples are refused.
"""

import hashlib
import os
import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from flsys_ray.errors import Conflict, NotFound
from flsys_ray.simulation.engine import Simulation

FILE = "checkpoint.pickle"


@dataclass(slots=True)
class Checkpoints:
    """Checkpoints of one simulation in a folder, one in `every_s` seconds of real time.

    `trainer` is the name of what trains: the simulation does not know it, and the bits follow from it.
    """

    folder: Path
    every_s: float
    trainer: str = ""
    clock: Callable[[], float] = time.monotonic
    _last: float | None = field(default=None)

    def after(self, simulation: Simulation) -> None:
        """Save the simulation if it is time."""
        now = self.clock()
        if self._last is None:
            self._last = now
        if now - self._last >= self.every_s:
            self.save(simulation)
            self._last = self.clock()

    def save(self, simulation: Simulation) -> None:
        """Save the simulation now."""
        simulation.settle()
        trainees = {name: trainee.state() for name, trainee in simulation.trainees.items()}
        path = self.folder / FILE
        part = path.with_name(f"{FILE}.{os.getpid()}")
        with part.open("wb") as file:
            made_of = fingerprint(simulation, self.trainer)
            pickle.dump((made_of, simulation.state, trainees), file, pickle.HIGHEST_PROTOCOL)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)

    def restore(self, simulation: Simulation) -> None:
        """Have a simulation that has not begun go on from the checkpoint.

        Raises:
            NotFound: there is none.
            Conflict: it is of another simulation.
        """
        path = self.folder / FILE
        if not path.is_file():
            raise NotFound(f"no checkpoint in {self.folder}: run without --resume")
        made_of, state, trainees = pickle.loads(path.read_bytes())
        if made_of != fingerprint(simulation, self.trainer):
            raise Conflict(f"the checkpoint in {self.folder} is of another plan, seed, data set, trainer or fleet")
        simulation.state = state
        for name, saved in trainees.items():
            simulation.trainees[name].restore(saved)


def fingerprint(simulation: Simulation, trainer: str) -> str:
    """Return the hash of all that the results follow from. The executor and the number of workers are not in it."""
    digest = hashlib.sha256(repr((simulation.terms, trainer)).encode())
    for array in vars(simulation.traces).values():
        digest.update(np.asarray(array).tobytes())
    for model in simulation.models.values():
        population = model.population
        settings = (model.name, model.app, model.step_s, population.devices, population.seed)
        digest.update(repr((settings, population.examples_per_device, population.classes_per_device)).encode())
        digest.update(model.plan.model_dump_json().encode() + hashlib.sha256(model.program).digest())
        for array in _arrays(population.pool):
            digest.update(hashlib.sha256(array.tobytes()).digest())
    return digest.hexdigest()


def _arrays(pool: Any) -> list[Any]:
    return [pool.training.x, pool.training.y, pool.held_out.x, pool.held_out.y, pool.offsets]
