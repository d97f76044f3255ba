"""A simulation on Ray workers has the bits of one in this process, with either trainer."""

from functools import partial

import pytest
from ray_cloud import Up
from simulated import BUFFERED, ROUNDS, models_of, plan_of, specs_of
from tiny_program import CLASSES

from actors.simulation_workers import RayExecutor
from flsys_ray.simulation.engine import Simulation, Terms
from flsys_ray.simulation.executors import Executor, InlineExecutor
from flsys_ray.simulation.results import Outcome
from flsys_ray.simulation.traces import synthetic_traces


def tiny_model(classes: tuple[str, ...]) -> object:
    import keras

    layers = [keras.Input((4,)), keras.layers.Dense(8, activation="relu"), keras.layers.Dense(len(classes))]
    return keras.Sequential(layers)


def run(executor: Executor, models: list) -> Outcome:
    try:
        return Simulation(models, synthetic_traces(40, 7), executor, Terms(seed=3)).run()
    finally:
        executor.close()


@pytest.mark.parametrize("trainer", ["program", "fast"])
def test_the_same_bits_on_ray(up: Up, trainer: str) -> None:
    from dataclasses import replace

    models = models_of(plan_of(ROUNDS), plan_of(BUFFERED))
    build = partial(tiny_model, CLASSES)
    specs = {name: replace(spec, name=trainer, build=build) for name, spec in specs_of(models).items()}
    inline, on_ray = run(InlineExecutor(specs, 1), models), run(RayExecutor(specs, 2), models)
    assert on_ray.digests == inline.digests
    assert on_ray.rows == inline.rows
