"""A real device program, small enough to compile in a few seconds: 4 numbers in, 3 classes, 67 parameters."""

import os
from functools import lru_cache

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from flsys_ray.programs.compile import CompiledProgram

PARAMETERS = 67
CLASSES = ("a", "b", "c")
LEAVES = ("hidden/kernel", "hidden/bias", "scores/kernel", "scores/bias")


@lru_cache(maxsize=1)
def tiny_program() -> CompiledProgram:
    """Return the program, compiled once a process."""
    import keras

    import flsys_ray

    model = keras.Sequential(
        [
            keras.Input((4,)),
            keras.layers.Dense(8, activation="relu", name="hidden"),
            keras.layers.Dense(3, activation="softmax", name="scores"),
        ],
        name="tiny",
    )
    return flsys_ray.compile(model, classes=list(CLASSES), batch_size=8)
