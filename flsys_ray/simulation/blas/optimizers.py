"""The local optimizers of `programs.lowering.optimizers`, on the flat vectors of n devices: same formulas, in place."""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from flsys_ray.programs.lowering.constants import ADAM_BETA_1, ADAM_BETA_2, ADAM_EPSILON, MOMENTUM

Array = NDArray[np.float32]


class Optimizer(Protocol):
    """One device row has its own state, which `begin` clears."""

    def begin(self) -> None:
        """Forget all state."""

    def step(self, weights: Array, gradient: Array, rate: Array) -> None:
        """Change weights [n, T], of the first n devices, at rate [n, 1]. The gradient may be overwritten."""


class Sgd:
    """w - rate * g."""

    def __init__(self, devices: int, size: int) -> None:
        """Keep nothing."""

    def begin(self) -> None:
        """There is no state."""

    def step(self, weights: Array, gradient: Array, rate: Array) -> None:
        """Descend."""
        np.multiply(gradient, rate, out=gradient)
        np.subtract(weights, gradient, out=weights)


class Momentum:
    """v = 0.9 v - rate * g; w + v."""

    def __init__(self, devices: int, size: int) -> None:
        self._velocity = np.zeros((devices, size), np.float32)

    def begin(self) -> None:
        """Stand still."""
        self._velocity.fill(0.0)

    def step(self, weights: Array, gradient: Array, rate: Array) -> None:
        """Descend."""
        velocity = self._velocity[: len(weights)]
        np.multiply(velocity, np.float32(MOMENTUM), out=velocity)
        np.multiply(gradient, rate, out=gradient)
        np.subtract(velocity, gradient, out=velocity)
        np.add(weights, velocity, out=weights)


class Adam:
    """Adam; all devices that still take steps have taken equally many."""

    def __init__(self, devices: int, size: int) -> None:
        self._first, self._second = np.zeros((devices, size), np.float32), np.zeros((devices, size), np.float32)
        self._taken = 0

    def begin(self) -> None:
        """Forget the moments."""
        self._first.fill(0.0)
        self._second.fill(0.0)
        self._taken = 0

    def step(self, weights: Array, gradient: Array, rate: Array) -> None:
        """Descend."""
        first, second = self._first[: len(weights)], self._second[: len(weights)]
        self._taken += 1
        first += (gradient - first) * np.float32(1.0 - ADAM_BETA_1)
        second += (gradient * gradient - second) * np.float32(1.0 - ADAM_BETA_2)
        debias = np.sqrt(_left(ADAM_BETA_2, self._taken)) / _left(ADAM_BETA_1, self._taken)
        weights -= first * (rate * np.float32(debias)) / (np.sqrt(second) + np.float32(ADAM_EPSILON))


def _left(beta: float, steps: int) -> float:
    return 1.0 - beta**steps


OPTIMIZERS: dict[str, type[Sgd] | type[Momentum] | type[Adam]] = {"sgd": Sgd, "momentum": Momentum, "adam": Adam}
