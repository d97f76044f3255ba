"""Keras initialisers, drawn inside the program's `init` from its own random numbers.

A seed inside a Keras initialiser is ignored: `init` has its own.
"""

import math
from typing import Any

import keras
import tensorflow as tf

from flsys_ray.programs.lowering.leaves import Variable
from flsys_ray.programs.lowering.random import Noise
from flsys_ray.programs.lowering.replay import refusal

Tensor = Any
_TRUNCATION = 0.87962566103423978  # standard deviation of a standard normal cut at two standard deviations


def draw(variable: Variable, noise: Noise) -> Tensor:
    """Return a start value of the variable, flat.

    Raises:
        NotLowerable: the initialiser is none of zeros, ones, constant, uniform, normal, truncated normal or
            variance scaling (Glorot, He, LeCun).
    """
    size = math.prod(variable.shape)
    initializer = variable.initializer
    match initializer:
        case keras.initializers.Zeros():
            return tf.zeros([size])
        case keras.initializers.Ones():
            return tf.ones([size])
        case keras.initializers.Constant():
            return tf.reshape(tf.broadcast_to(tf.constant(initializer.value, tf.float32), variable.shape), [size])
        case keras.initializers.RandomUniform():
            return _between(initializer.minval, initializer.maxval, noise.uniform((size,)))
        case keras.initializers.RandomNormal():
            return noise.normal((size,)) * initializer.stddev + initializer.mean
        case keras.initializers.TruncatedNormal():
            return noise.truncated_normal((size,)) * initializer.stddev + initializer.mean
        case keras.initializers.VarianceScaling():
            return _variance_scaling(initializer, variable.shape, noise)
    name = getattr(initializer, "__name__", type(initializer).__name__)
    raise refusal(variable.layer, f"initialiser {name!r} of {variable.name!r} has no lowering", name)


def _between(low: float, high: float, unit: Tensor) -> Tensor:
    return unit * (high - low) + low


def _variance_scaling(initializer: Any, shape: tuple[int, ...], noise: Noise) -> Tensor:
    fan_in, fan_out = fans(shape)
    fan = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[initializer.mode]
    variance = initializer.scale / max(1.0, fan)
    size = (math.prod(shape),)
    if initializer.distribution == "truncated_normal":
        return noise.truncated_normal(size) * (math.sqrt(variance) / _TRUNCATION)
    if initializer.distribution == "untruncated_normal":
        return noise.normal(size) * math.sqrt(variance)
    limit = math.sqrt(3.0 * variance)
    return _between(-limit, limit, noise.uniform(size))


def fans(shape: tuple[int, ...]) -> tuple[float, float]:
    """Return (inputs, outputs) of one unit of a kernel: the last two axes times the receptive field before them."""
    if len(shape) < 2:
        size = float(math.prod(shape))
        return size, size
    field = math.prod(shape[:-2])
    return float(shape[-2] * field), float(shape[-1] * field)
