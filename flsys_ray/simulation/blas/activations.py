"""Activations whose derivative follows from their value, so that the value may be overwritten."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Activation:
    """An activation. Outputs may be the inputs.

    Attributes:
        forward: `(x, out)` sets out to f(x).
        backward: `(y, g, out)` sets out to the gradient of x, for a gradient g of y = f(x).
        keeps_ties: whether values above f's least one are equal only if those of x are: a maximum may come first.
    """

    forward: Callable[[Array, Array], None]
    backward: Callable[[Array, Array, Array], None]
    keeps_ties: bool


def _relu(x: Array, out: Array) -> None:
    np.maximum(x, 0.0, out=out)


def _relu_backward(y: Array, g: Array, out: Array) -> None:
    np.multiply(g, y > 0.0, out=out)


def _same(x: Array, out: Array) -> None:
    if x is not out:
        np.copyto(out, x)


def _same_backward(y: Array, g: Array, out: Array) -> None:
    _same(g, out)


def _tanh(x: Array, out: Array) -> None:
    np.tanh(x, out=out)


def _tanh_backward(y: Array, g: Array, out: Array) -> None:
    np.multiply(g, 1.0 - y * y, out=out)


ACTIVATIONS = {
    "linear": Activation(_same, _same_backward, keeps_ties=True),
    "relu": Activation(_relu, _relu_backward, keeps_ties=True),
    "tanh": Activation(_tanh, _tanh_backward, keeps_ties=False),
}
