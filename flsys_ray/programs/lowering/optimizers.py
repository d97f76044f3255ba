"""The local optimizers: what one step of a program does to the trained part of its vector.

`slots` is a flat vector that the device carries from step to step; it starts as zeros for each assignment and never
leaves the phone.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from flsys_ray.programs.lowering.constants import ADAM_BETA_1, ADAM_BETA_2, ADAM_EPSILON, MOMENTUM

Tensor = Any


@dataclass(frozen=True)
class LocalOptimizer:
    """A local optimizer.

    Attributes:
        slots_of: T, the number of trained parameters, to S, the length of `slots`.
        step: `(weights [T], gradient [T], learning_rate [], slots [S] or None) -> (weights, slots or None)`.
    """

    slots_of: Callable[[int], int]
    step: Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor | None]]


def _sgd(w: Tensor, g: Tensor, rate: Tensor, slots: Tensor) -> tuple[Tensor, None]:
    """w - rate * g."""
    return w - rate * g, None


def _momentum(w: Tensor, g: Tensor, rate: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
    """v = 0.9 v - rate * g; w + v (Sutskever et al. 2013, equations 1 and 2; `keras.optimizers.SGD(momentum=0.9)`)."""
    velocity = MOMENTUM * slots - rate * g
    return w + velocity, velocity


def _adam(w: Tensor, g: Tensor, rate: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
    """Adam (Kingma and Ba 2015, arXiv 1412.6980, end of section 2), epsilon as in `keras.optimizers.Adam`.

    `slots` is [steps taken, first moments [T], second moments [T]].
    """
    size = int(w.shape[0])
    taken, first, second = tf.split(slots, [1, size, size])
    taken = taken + 1.0
    first = first + (g - first) * (1.0 - ADAM_BETA_1)
    second = second + (g * g - second) * (1.0 - ADAM_BETA_2)
    debias = tf.sqrt(_one_minus_power(ADAM_BETA_2, taken)) / _one_minus_power(ADAM_BETA_1, taken)
    w = w - first * (rate * debias) / (tf.sqrt(second) + ADAM_EPSILON)
    return w, tf.concat([taken, first, second], 0)


def _one_minus_power(base: float, exponent: Tensor) -> Tensor:
    return 1.0 - tf.exp(exponent * math.log(base))


LOCAL_OPTIMIZERS: dict[str, LocalOptimizer] = {
    "sgd": LocalOptimizer(lambda trained: 0, _sgd),
    "momentum": LocalOptimizer(lambda trained: trained, _momentum),
    "adam": LocalOptimizer(lambda trained: 1 + 2 * trained, _adam),
}
