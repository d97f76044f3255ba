"""Layers of a network that several devices train side by side, each with its own weights.

Arrays begin with [n, B]: device, example. A layer is made with all of its arrays, and then only computes: `forward`
sets its output's value; `backward` reads the output's gradient (which it may overwrite), and sets the gradients of its
weights and of its input.

Each device's products are calls of BLAS of their own, and all else is computed element by element or along one
example: a device has the same bits whoever is computed beside it.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from flsys_ray.simulation.blas.activations import Activation

Array = NDArray[np.float32]


class Layer(Protocol):
    """One layer, for a fixed number of devices."""

    def forward(self) -> None:
        """Compute the output's value from the input's."""

    def backward(self) -> None:
        """Compute the gradients of weights and input from the output's."""


@dataclass(frozen=True, slots=True, eq=False)
class Signal:
    """What flows between layers: value and gradient, [n, B, T, C] or [n, B, C]. No gradient: nobody asks for it."""

    value: Array
    gradient: Array | None

    def flat(self) -> "Signal":
        """Return the same as [n, B, T * C], without a copy."""
        value = self.value.reshape(*self.value.shape[:2], -1)
        gradient = None if self.gradient is None else self.gradient.reshape(value.shape)
        return Signal(value, gradient)


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """A layer's matrix [n, rows, columns] and its gradient. With `bias` the last row is the bias."""

    value: Array
    gradient: Array
    bias: bool

    @property
    def kernel(self) -> Array:
        """The matrix without the bias."""
        return self.value[:, : self.value.shape[1] - self.bias]


class Dense:
    """activation(x W + b), x [n, B, I]."""

    def __init__(self, source: Signal, weights: Weights, target: Signal, activation: Activation) -> None:
        self.source, self.target, self.weights, self.activation = source, target, weights, activation
        rows = weights.kernel.shape[1]
        self._kernel_gradient, self._bias = weights.gradient[:, :rows], weights.value[:, rows:]

    def forward(self) -> None:
        """Multiply, add the bias, activate."""
        y = self.target.value
        np.matmul(self.source.value, self.weights.kernel, out=y)
        if self.weights.bias:
            np.add(y, self._bias, out=y)
        self.activation.forward(y, y)

    def backward(self) -> None:
        """Two products; the bias has the sum over the examples."""
        dy = self.target.gradient
        assert dy is not None
        self.activation.backward(self.target.value, dy, dy)
        np.matmul(self.source.value.swapaxes(1, 2), dy, out=self._kernel_gradient)
        if self.weights.bias:
            np.add.reduce(dy, axis=1, out=self.weights.gradient[:, -1])
        if self.source.gradient is not None:
            np.matmul(dy, self.weights.kernel.swapaxes(1, 2), out=self.source.gradient)


class MeanOverTime:
    """The mean of x [n, B, T, C] over T."""

    def __init__(self, source: Signal, target: Signal) -> None:
        self.source, self.target = source, target
        self._share = np.float32(1.0 / source.value.shape[2])

    def forward(self) -> None:
        """Add, and divide."""
        np.add.reduce(self.source.value, axis=2, out=self.target.value)
        np.multiply(self.target.value, self._share, out=self.target.value)

    def backward(self) -> None:
        """Give each its share."""
        if self.source.gradient is not None:
            np.multiply(self.target.gradient[:, :, None], self._share, out=self.source.gradient)  # type: ignore[index]
