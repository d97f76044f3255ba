"""Programs compiled once for all tests of this folder."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import pytest

from flsys_ray.programs.compile import CompiledProgram
from flsys_ray.programs.runner import Program

SMALL_CLASSES = ("a", "b", "c")


@pytest.fixture(scope="session")
def small() -> CompiledProgram:
    """A program with batch statistics and Adam: 12 x 3 in, three classes, batches of 8."""
    import keras

    import flsys_ray

    model = keras.Sequential(
        [
            keras.Input((12, 3)),
            keras.layers.Conv1D(6, 3, activation="relu", name="conv"),
            keras.layers.BatchNormalization(name="bn"),
            keras.layers.GlobalAveragePooling1D(name="pool"),
            keras.layers.Dense(3, activation="softmax", name="scores"),
        ],
        name="small",
    )
    return flsys_ray.compile(model, classes=SMALL_CLASSES, batch_size=8, local_optimizer="adam")


@pytest.fixture(scope="session")
def small_program(small: CompiledProgram) -> Program:
    return Program.load(small.data)


@pytest.fixture(scope="session")
def small_sgd() -> Program:
    """A program without layers that have state, and with plain SGD: 12 x 3 in, three classes, batches of 8."""
    import keras

    import flsys_ray

    layers = [keras.Input((12, 3)), keras.layers.Flatten(), keras.layers.Dense(3, activation="softmax", name="scores")]
    return Program.load(flsys_ray.compile(keras.Sequential(layers), classes=SMALL_CLASSES, batch_size=8).data)
