"""A federated trial: one simulation of `flsys_ray.simulation`, judged on the users of a fold that train nothing."""

from collections.abc import Mapping
from typing import Any

from tasks import Task, everything, fold_users

from flsys_ray.data.uniform import uniform_examples
from flsys_ray.simulation.engine import SimulatedModel, Simulation, Terms
from flsys_ray.simulation.executors import InlineExecutor
from flsys_ray.simulation.experiment import builtin, spec_of
from flsys_ray.simulation.population import Pool, Population, Split, pool_of
from flsys_ray.simulation.traces import always_there, synthetic_traces
from flsys_ray.simulation.training import Examples as Rows

CURVE = 6  # points of it


def simulate(task: Task, fold: int, seed: int, plan: Mapping[str, Any], options: Mapping[str, Any]) -> Simulation:
    """Train by a plan, and return the simulation when it has ended.

    Options:
        versions: how many, instead of the task's.
        traces: devices come and go by made-up traces, instead of being equal and always there.
        drop_out: how likely a training is lost.
        classes_per_device: how many of its user's classes a device keeps.
        shared_percent: the size of a class-uniform set, of training users' examples, which every device trains on too,
            in per cent of all training examples.
    """
    training, held_out = fold_users(task, fold)
    shared = _shared(task, training, seed, options.get("shared_percent", 0))
    pool = pool_of(task.dataset(), Split(training, held_out), 0.0, seed, shared)
    return ended(task, pool, seed, plan, options)


def _shared(task: Task, users: tuple[str, ...], seed: int, percent: float) -> Rows | None:
    per_class = round(percent / 100 * len(everything(task).of(users).y) / len(task.classes))
    return Rows(*uniform_examples(task.dataset(), users, per_class, seed)) if per_class else None


def ended(task: Task, pool: Pool, seed: int, plan: Mapping[str, Any], options: Mapping[str, Any]) -> Simulation:
    """Train on a pool, one device a user, and return the simulation when it has ended."""
    made = task.plan_with(plan, seed, options.get("versions"))
    if pool.shared:
        made = made.model_copy(update={"augmentation": made.augmentation.model_copy(update={"share": 1.0})})
    devices, network = len(pool.users), builtin(task.builtin, task.classes)
    population = Population(pool, devices, seed, None, options.get("classes_per_device"))
    model = SimulatedModel(network.name, made, network.program, population)
    traces = synthetic_traces(devices, seed) if options.get("traces") else always_there(devices)
    terms = Terms(
        seed=seed,
        evaluate_every=max(1, int(made.stopping.versions or 1) // CURVE),
        drop_out=options.get("drop_out", 0.0),
    )
    executor = InlineExecutor({model.name: spec_of(model, "fast", network.build)}, 1)
    try:
        simulation = Simulation([model], traces, executor, terms)
        simulation.run()
    finally:
        executor.close()
    return simulation


def line_of(simulation: Simulation) -> dict[str, Any]:
    """Return what a trial's line says of its simulation."""
    rows, (trainee,) = simulation.state.rows, simulation.trainees.values()
    judged = [row for row in rows if row.accuracy is not None]
    last = judged[-1]
    return {
        "accuracy": last.accuracy,
        "macro_f1": last.macro_f1,
        "versions": last.version,
        "upload_bytes": sum(row.upload_bytes for row in rows),
        "download_bytes": sum(row.download_bytes for row in rows),
        "virtual_s": last.closed_s,
        "device_s": sum(row.device_s for row in rows),
        "trainings": simulation.state.trained,
        "curve": [
            [row.version, round(row.closed_s), round(float(row.accuracy or 0), 4), round(float(row.macro_f1 or 0), 4)]
            for row in judged
        ],
        "digest": trainee.digest(),
    }
