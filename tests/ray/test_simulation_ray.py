"""A simulation on Ray workers has the bits of one in this process, with either trainer."""

from dataclasses import replace
from functools import partial

import keras
import pytest
from ray_cloud import Up
from simulated import BUFFERED, ROUNDS, models_of, plan_of, specs_of
from tiny_program import CLASSES

from actors.simulation_workers import RayExecutor
from flsys_ray.simulation.engine import Simulation, Terms
from flsys_ray.simulation.executors import Executor, InlineExecutor
from flsys_ray.simulation.results import Outcome
from flsys_ray.simulation.traces import synthetic_traces


def tiny_model_maker() -> "partial[keras.Sequential]":
    """Return what makes the tiny program's model: of Keras alone, since workers do not know this module."""
    layers = [keras.Input((4,)), keras.layers.Dense(8, activation="relu"), keras.layers.Dense(len(CLASSES))]
    return partial(keras.Sequential.from_config, keras.Sequential(layers).get_config())


def run(executor: Executor, models: list) -> Outcome:
    try:
        return Simulation(models, synthetic_traces(40, 7), executor, Terms(seed=3)).run()
    finally:
        executor.close()


@pytest.mark.parametrize("trainer", ["program", "fast"])
def test_the_same_bits_on_ray(up: Up, trainer: str) -> None:
    compressed = plan_of(ROUNDS, compression="top_k", augmentation={"share": 0.3}, selection="class_balance")
    models = models_of(plan_of(ROUNDS), plan_of(BUFFERED), compressed)
    build = tiny_model_maker()
    specs = {name: replace(spec, name=trainer, build=build) for name, spec in specs_of(models).items()}
    inline, on_ray = run(InlineExecutor(specs, 1), models), run(RayExecutor(specs, 2, cores=0.0), models)
    assert on_ray.digests == inline.digests
    assert on_ray.rows == inline.rows
