"""Functions that bring their own gradient."""

from collections.abc import Callable
from typing import Any

import tensorflow as tf

Tensor = Any


def with_gradient(
    function: Callable[[Tensor], tuple[Tensor, Callable[[Tensor], Tensor]]],
) -> Callable[[Tensor], Tensor]:
    """Make a differentiable function out of one that returns its value and its vector-Jacobian product."""
    made: Callable[[Tensor], Tensor] = tf.custom_gradient(function)
    return made
