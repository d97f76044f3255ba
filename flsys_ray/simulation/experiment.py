"""A simulation from Python: which model is trained how, on whose data, and who judges it.

    from flsys_ray.core.plan import parse_plan
    from flsys_ray.data.dataset import open_dataset
    from flsys_ray.simulation.experiment import Experiment, builtin, run

    plan = parse_plan({"pacing": {"cohort": 8}, "stopping": {"versions": 3}})
    outcome = run([Experiment(builtin("har-wild"), plan, open_dataset("synthetic-har"))])
    outcome.rows[-1].accuracy

`flsys simulate` runs the same: same plan, seed, data and options, same bits.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from flsys_ray.builtin import compile_builtin
from flsys_ray.core.plan import TrainingPlan
from flsys_ray.data.dataset import Dataset
from flsys_ray.data.leaks import check_no_leak
from flsys_ray.data.uniform import uniform_examples
from flsys_ray.errors import DataInvalid, InvalidInput, NotFound
from flsys_ray.models import get
from flsys_ray.programs.manifest import read_manifest, read_tokenizer
from flsys_ray.simulation.engine import SimulatedModel, Simulation, Terms
from flsys_ray.simulation.executors import Executor, InlineExecutor
from flsys_ray.simulation.population import HELD_OUT_PART, Population, Split, pool_of
from flsys_ray.simulation.results import Outcome, Row
from flsys_ray.simulation.traces import Traces, always_there, synthetic_traces
from flsys_ray.simulation.training import Examples, TrainerName, TrainerSpec, group_size_of

BUILTIN_OF_FORM = {"windows": "har-wild", "texts": "sentiment"}


@dataclass(frozen=True, slots=True)
class Network:
    """What is trained: the device program, and what makes its Keras model, which the fast trainer needs."""

    name: str
    program: bytes
    build: Callable[[], Any] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Experiment:
    """One model that trains in a simulation.

    Attributes:
        network: what is trained. The data set is read with its classes.
        plan: how. Its seed chooses the users that are held out, if none are named, and what each device holds out.
        dataset: whose users the devices belong to.
        held_out: users whose examples versions are judged on; default: a fifth, drawn.
        training: users that devices belong to; default: all that are not held out.
        held_out_part: the part of its examples that each device does not train on; 0: none.
        devices: how many; default: one for each training user.
        examples_per_device: the most that a device has; default: all of its user's.
        classes_per_device: how many of its user's classes a device has examples of; default: all.
        shared: the shared set, of which devices mix in what the plan says: all examples of a data set.
        shared_part: in its place, a set as large as this part of the training users' examples (beta of Zhao et al.
            2018, arXiv 1806.00582, section 4), even over the classes, drawn from them; nobody loses one.
        trainer: a fast graph, or the phone's program.
        name: the model's; default: the network's.
    """

    network: Network
    plan: TrainingPlan
    dataset: Dataset
    held_out: Sequence[str] | None = None
    training: Sequence[str] | None = None
    held_out_part: float = HELD_OUT_PART
    devices: int | None = None
    examples_per_device: int | None = None
    classes_per_device: int | None = None
    shared: Dataset | None = None
    shared_part: float | None = None
    trainer: TrainerName = "fast"
    name: str | None = None

    def model(self) -> SimulatedModel:
        """Read the data, and return the model with its devices.

        Raises:
            DataInvalid: classes that the data set does not have, unknown users, or one in both parts; a shared set
                that is not even over the classes, or cannot be drawn.
            DataLeak: examples of both parts, or of the shared set and those that judge, overlap.
        """
        program, plan = self.network.program, self.plan
        dataset = self._fitted(self.dataset)
        split = Split.of(dataset.users, plan.seed, held_out=self.held_out, training=self.training)
        pool = pool_of(dataset, split, self.held_out_part, plan.seed, self._shared(dataset, split))
        devices = self.devices or len(pool.users)
        population = Population(pool, devices, plan.seed, self.examples_per_device, self.classes_per_device)
        return SimulatedModel(self.name or self.network.name, plan, program, population)

    def _fitted(self, dataset: Dataset) -> Dataset:
        return dataset.fit(read_manifest(self.network.program).classes, read_tokenizer(self.network.program))

    def _shared(self, dataset: Dataset, split: Split) -> Examples | None:
        """Return the shared set, None if there is none."""
        if self.shared is not None and self.shared_part is not None:
            raise InvalidInput("simulation: a shared set, or a part of the examples to draw it from, not both")
        if self.shared_part is not None:
            if not 0 < self.shared_part <= 1:
                raise InvalidInput(f"simulation: shared_part must lie in (0, 1], not {self.shared_part}")
            total = sum(dataset.count(user) for user in split.training)
            each = max(1, round(self.shared_part * total / len(dataset.classes)))
            return Examples(*uniform_examples(dataset, split.training, each, self.plan.seed))
        return None if self.shared is None else _whole(self._fitted(self.shared), dataset, split)


def _whole(shared: Dataset, dataset: Dataset, split: Split) -> Examples:
    """Return all of a shared set, if it is even over the classes and holds nothing that judges."""
    parts = [shared.examples(user) for user in shared.users]
    y = np.concatenate([part.y for part in parts])
    counts = np.bincount(y, minlength=len(shared.classes))
    if counts.min() != counts.max():
        told = ", ".join(f"{count} {name}" for name, count in zip(shared.classes, counts, strict=True))
        raise DataInvalid(f"{shared.name}: a shared set has as many examples of each class, not {told}")
    check_no_leak({"the shared set": parts, "held out": [dataset.examples(user) for user in split.held_out]})
    return Examples(np.concatenate([part.x for part in parts]), y)


def builtin(name: str, classes: Sequence[str] | None = None) -> Network:
    """Compile a built-in model, for other classes than its own if they are given. A process compiles each once.

    Raises:
        NotFound: there is no such model.
        ProgramInvalid: it cannot be compiled.
    """
    chosen = None if classes is None else tuple(classes)
    program = compile_builtin(name, chosen)
    return Network(name, program, functools.partial(build_builtin, name, read_manifest(program).classes))


def build_builtin(name: str, classes: tuple[str, ...]) -> Any:
    """Return the Keras model of a built-in one. It travels to workers by name."""
    return get(name).build(classes)


def builtin_for(dataset: Dataset) -> str:
    """Return the name of the built-in model that takes this form of data. Raises `NotFound` if there is none."""
    form = dataset.info.form
    if form not in BUILTIN_OF_FORM:
        raise NotFound(f"{dataset.name}: no built-in model takes {form}: name one")
    return BUILTIN_OF_FORM[form]


def ended(plan: TrainingPlan, versions: int | None, seed: int | None) -> TrainingPlan:
    """Return a plan that ends after so many versions, and has this seed; None: as it says itself."""
    changes: dict[str, Any] = {} if seed is None else {"seed": seed}
    if versions is not None:
        changes["stopping"] = plan.stopping.model_copy(update={"versions": versions})
    return plan.model_copy(update=changes)


def prepare(experiments: Sequence[Experiment]) -> tuple[list[SimulatedModel], dict[str, TrainerSpec]]:
    """Return the models of a simulation, and how workers train each.

    Raises:
        InvalidInput: two of one name.
        DataInvalid, DataLeak: see `Experiment.model`.
    """
    names = [experiment.name or experiment.network.name for experiment in experiments]
    if len(set(names)) != len(names):
        raise InvalidInput(f"simulation: each name once, not {', '.join(names)}")
    models = [experiment.model() for experiment in experiments]
    pairs = zip(models, experiments, strict=True)
    return models, {model.name: spec_of(model, given.trainer, given.network.build) for model, given in pairs}


def spec_of(model: SimulatedModel, trainer: TrainerName, build: Callable[[], Any] | None = None) -> TrainerSpec:
    """Return how workers train a model; `build` makes its Keras model."""
    pool, plan = model.population.pool, model.plan
    examples, transforms = (pool.training, pool.held_out), plan.augmentation.transforms
    return TrainerSpec(trainer, model.program, build, plan.local, group_size_of(plan), *examples, transforms)


def fleet_for(models: Sequence[SimulatedModel], seed: int, *, ideal: bool = False) -> Traces:
    """Return made-up traces for the devices of some models, or equal devices that are always there."""
    count = max(model.population.devices for model in models)
    return always_there(count) if ideal else synthetic_traces(count, seed)


def run(
    experiments: Sequence[Experiment],
    *,
    traces: Traces | None = None,
    terms: Terms | None = None,
    workers: int = 1,
    make_executor: Callable[[Mapping[str, TrainerSpec], int], Executor] = InlineExecutor,
    on_round: Callable[[Row], None] = lambda row: None,
) -> Outcome:
    """Train, in virtual time. Traces and terms default to those of `flsys simulate`, with the first plan's seed.

    Raises:
        InvalidInput: a plan without end, two models of one name, or more devices than the traces have.
        DataInvalid, DataLeak: see `Experiment.model`.
    """
    models, specs = prepare(experiments)
    terms = terms or Terms(seed=models[0].plan.seed)
    traces = traces or fleet_for(models, terms.seed)
    executor = make_executor(specs, workers)
    try:
        return Simulation(models, traces, executor, terms).run(on_round)
    finally:
        executor.close()
