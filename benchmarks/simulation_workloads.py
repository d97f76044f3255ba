"""The two workloads of `simulation.py`: models, plans and random examples. What peers import too, so Keras only."""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

CLASSES = 6
WINDOW = (100, 3)
RATE = 0.05


@dataclass(frozen=True)
class Workload:
    """A model and a fleet. A device has `examples` windows, and takes `epochs` passes in batches of `batch`.

    `layers` are (filters, kernel, pooling) of convolutions; `flops` of one local training: 6 for each multiplication
    of the forward pass and example, without the gradient of the input.
    """

    name: str
    layers: tuple[tuple[int, int, int], ...]
    head: Literal["flat", "mean"]
    hidden: int
    parameters: int
    devices: int
    cohort: int
    examples: int
    batch: int
    epochs: int
    rounds: int

    @property
    def steps(self) -> int:
        return self.examples // self.batch * self.epochs

    @property
    def flops(self) -> float:
        length, channels, total, first = WINDOW[0], WINDOW[1], 0, 0
        for filters, kernel, pooling in self.layers:
            products = length * kernel * channels * filters
            first = first or products
            total, length, channels = total + products, length // pooling, filters
        flat = channels if self.head == "mean" else length * channels
        total += flat * self.hidden + self.hidden * CLASSES
        return 2.0 * (3 * total - first) * self.examples * self.epochs


WORKLOADS = {
    "har": Workload("har", ((32, 9, 2), (96, 9, 2), (96, 3, 1)), "flat", 64, 210_438, 100, 20, 100, 20, 5, 6),
    "small": Workload("small", ((8, 5, 2), (16, 9, 4), (96, 7, 1)), "mean", 128, 25_334, 1000, 200, 20, 10, 1, 20),
}


def build(name: str) -> Any:
    """Return the Keras model."""
    import keras

    workload = WORKLOADS[name]
    window = x = keras.Input(WINDOW)
    for filters, kernel, pooling in workload.layers:
        x = keras.layers.Conv1D(filters, kernel, padding="same", activation="relu")(x)
        x = keras.layers.MaxPooling1D(pooling)(x) if pooling > 1 else x
    x = keras.layers.GlobalAveragePooling1D()(x) if workload.head == "mean" else keras.layers.Flatten()(x)
    x = keras.layers.Dense(workload.hidden, activation="relu")(x)
    return keras.Model(window, keras.layers.Dense(CLASSES)(x))


def examples_of(workload: Workload) -> tuple[np.ndarray, np.ndarray]:
    """Return all devices' windows, float32 [devices, examples, 100, 3], and labels int32 [devices, examples]."""
    rng = np.random.default_rng(0)
    shape = (workload.devices, workload.examples)
    y = rng.integers(0, CLASSES, shape).astype(np.int32)
    x = rng.normal(0, 1, (*shape, *WINDOW)).astype(np.float32) + y[..., None, None].astype(np.float32) / 3
    return x, y
