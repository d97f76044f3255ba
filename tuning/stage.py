"""What all trials of a sweep share: data, users, program, fleet. Makes the simulations of a configuration.

Users are in three parts. Test users are drawn with the sweep's seed: the same ones that `flsys simulate` holds out with
that seed. Of the others, each seed of the sweep draws its own validation users, on which configurations are compared.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

from flsys_ray.data.dataset import Dataset, dataset_at, open_dataset
from flsys_ray.data.schema import is_dataset
from flsys_ray.data.splits import split_users
from flsys_ray.errors import DataInvalid
from flsys_ray.programs.manifest import read_manifest, read_tokenizer
from flsys_ray.simulation.engine import Simulation, Terms
from flsys_ray.simulation.executors import InlineExecutor
from flsys_ray.simulation.experiment import Experiment, Network, build_builtin, builtin, fleet_for, prepare
from flsys_ray.simulation.population import HELD_OUT_USERS
from flsys_ray.simulation.traces import Traces, read_traces
from tuning.configurations import plan_of
from tuning.heat import Heat
from tuning.space import Configuration, Value
from tuning.sweep import Sweep

LEAST_USERS = 3
PROGRAM = "program.tflite"


@dataclass(frozen=True, slots=True)
class Users:
    """Who trains, who compares configurations, and who tests the best one."""

    training: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]


def users_of(users: Sequence[str], sweep_seed: int, seed: int) -> Users:
    """Split users for one seed of a sweep. Raises `DataInvalid` if there are fewer than three."""
    if len(users) < LEAST_USERS:
        raise DataInvalid(f"sweep: {len(users)} users: training, validation and test need one each at least")
    rest, test = split_users(users, HELD_OUT_USERS, sweep_seed)
    training, validation = split_users(rest, HELD_OUT_USERS, seed)
    return Users(training, validation, test)


@dataclass(frozen=True, slots=True, eq=False)
class Stage:
    """What all trials share. It travels to where they run; data sets are read there.

    Attributes:
        sweep: with the model named.
        network: what is trained.
        users: of the data set, with the network's classes.
        traces: of the devices, if the sweep names a file.
        configurations: what to try, by number; None if the search makes them as it goes.
    """

    sweep: Sweep
    network: Network
    users: tuple[str, ...]
    traces: Traces | None
    configurations: Sequence[Configuration] | None

    def split(self, seed: int) -> Users:
        """Return the users' parts for one seed."""
        return users_of(self.users, self.sweep.seed, seed)

    @contextmanager
    def heat(self, configuration: Mapping[str, Value], *, test: bool = False) -> Iterator[Heat]:
        """Yield a configuration's simulations, one a seed: on validation users, or on test users for the final figure.

        For the test, validation users are among those that train.
        """
        executors, simulations = [], {}
        try:
            for seed in self.sweep.seeds:
                users = self.split(seed)
                held_out = users.test if test else users.validation
                training = (*users.training, *users.validation) if test else users.training
                simulation, executor = self._simulation(configuration, seed, tuple(sorted(training)), held_out)
                executors.append(executor)
                simulations[seed] = simulation
            yield Heat(simulations, self.sweep.metric, self.sweep.target)
        finally:
            for executor in executors:
                executor.close()

    def _simulation(
        self, configuration: Mapping[str, Value], seed: int, training: Sequence[str], held_out: Sequence[str]
    ) -> tuple[Simulation, InlineExecutor]:
        sweep = self.sweep
        experiment = Experiment(
            self.network,
            plan_of(sweep, configuration, seed),
            _dataset(sweep.data),
            held_out=held_out,
            training=training,
            devices=sweep.devices,
            examples_per_device=sweep.examples,
            classes_per_device=sweep.classes_per_device,
            shared=None if sweep.shared is None else _shared(sweep.shared),
            shared_part=sweep.shared_part,
            trainer=sweep.trainer,
        )
        models, specs = prepare([experiment])
        traces = self.traces or fleet_for(models, seed, ideal=sweep.ideal)
        terms = Terms(
            seed=seed,
            check_in_every_s=sweep.check_in_every_s,
            evaluate_every=sweep.evaluate_every,
            drop_out=sweep.drop_out,
        )
        executor = InlineExecutor(specs, 1)
        return Simulation(models, traces, executor, terms), executor


def stage_of(sweep: Sweep, dataset: Dataset, configurations: Sequence[Configuration] | None, folder: Path) -> Stage:
    """Read what trials share. The model that the sweep names is compiled once, and kept in the sweep's folder."""
    network = _network(str(sweep.builtin), folder / PROGRAM)
    fitted = dataset.fit(read_manifest(network.program).classes, read_tokenizer(network.program))
    traces = None if sweep.traces is None else read_traces(sweep.traces)
    return Stage(sweep, network, fitted.users, traces, configurations)


def _network(name: str, kept: Path) -> Network:
    if kept.is_file():
        program = kept.read_bytes()
        return Network(name, program, partial(build_builtin, name, read_manifest(program).classes))
    network = builtin(name)
    part = kept.with_name(f"{kept.name}.part")
    part.write_bytes(network.program)
    os.replace(part, kept)
    return network


@cache
def _dataset(name: str) -> Dataset:
    return open_dataset(name)


@cache
def _shared(name: str) -> Dataset:
    """Return a shared set, by its name or its folder."""
    folder = Path(name)
    return dataset_at(folder) if is_dataset(folder) else open_dataset(name)
