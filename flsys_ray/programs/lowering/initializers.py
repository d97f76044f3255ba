"""Keras initialisers, drawn inside the program's `init` from its own random numbers.

A seed inside a Keras initialiser is ignored: `init` has its own.
"""

import math
from dataclasses import dataclass
from typing import Any, Literal

import keras
import numpy as np
import tensorflow as tf

from flsys_ray.programs.lowering.leaves import Variable
from flsys_ray.programs.lowering.random import Noise
from flsys_ray.programs.lowering.replay import refusal

Tensor = Any
_TRUNCATION = 0.87962566103423978  # standard deviation of a standard normal cut at two standard deviations


@dataclass(frozen=True)
class Start:
    """How a leaf starts: `shift + scale * z` with z of a standard distribution, or constants."""

    distribution: Literal["constant", "uniform", "normal", "truncated_normal"]
    scale: float = 1.0
    shift: Any = 0.0


def start_vector(variables: tuple[Variable, ...], noise: Noise) -> Tensor:
    """Return fresh values of all variables in one flat vector.

    All numbers of one distribution are drawn at once: that is a few operators in the program and not a few a leaf.

    Raises:
        NotLowerable: an initialiser is none of zeros, ones, constant, uniform, normal, truncated normal or variance
            scaling (Glorot, He, LeCun).
    """
    starts = [_start(variable) for variable in variables]
    sizes = [math.prod(variable.shape) for variable in variables]
    parts = [tf.fill([size], 1.0) * start.shift for start, size in zip(starts, sizes, strict=True)]
    for name, draw in (
        ("uniform", noise.uniform),
        ("normal", noise.normal),
        ("truncated_normal", noise.truncated_normal),
    ):
        chosen = [i for i, start in enumerate(starts) if start.distribution == name]
        if chosen:
            drawn = draw((sum(sizes[i] for i in chosen),))
            pieces = tf.split(drawn, [sizes[i] for i in chosen]) if len(chosen) > 1 else [drawn]
            for i, piece in zip(chosen, pieces, strict=True):
                parts[i] = piece * starts[i].scale + starts[i].shift
    return tf.concat(parts, 0) if len(parts) > 1 else parts[0]


def _start(variable: Variable) -> Start:
    initializer = variable.initializer
    match initializer:
        case keras.initializers.Zeros():
            return Start("constant")
        case keras.initializers.Ones():
            return Start("constant", shift=1.0)
        case keras.initializers.Constant():
            value = np.broadcast_to(np.asarray(initializer.value, np.float32), variable.shape)
            return Start("constant", shift=value.reshape(-1))
        case keras.initializers.RandomUniform():
            return Start("uniform", initializer.maxval - initializer.minval, initializer.minval)
        case keras.initializers.RandomNormal():
            return Start("normal", initializer.stddev, initializer.mean)
        case keras.initializers.TruncatedNormal():
            return Start("truncated_normal", initializer.stddev, initializer.mean)
        case keras.initializers.VarianceScaling():
            return _variance_scaling(initializer, variable.shape)
    name = getattr(initializer, "__name__", type(initializer).__name__)
    raise refusal(variable.layer, f"initialiser {name!r} of {variable.name!r} has no lowering", name)


def _variance_scaling(initializer: Any, shape: tuple[int, ...]) -> Start:
    fan_in, fan_out = fans(shape)
    fan = {"fan_in": fan_in, "fan_out": fan_out, "fan_avg": (fan_in + fan_out) / 2}[initializer.mode]
    deviation = math.sqrt(initializer.scale / max(1.0, fan))
    if initializer.distribution == "truncated_normal":
        return Start("truncated_normal", deviation / _TRUNCATION)
    if initializer.distribution == "untruncated_normal":
        return Start("normal", deviation)
    limit = math.sqrt(3.0) * deviation
    return Start("uniform", 2.0 * limit, -limit)


def fans(shape: tuple[int, ...]) -> tuple[float, float]:
    """Return (inputs, outputs) of one unit of a kernel: the last two axes times the receptive field before them."""
    if len(shape) < 2:
        size = float(math.prod(shape))
        return size, size
    field = math.prod(shape[:-2])
    return float(shape[-2] * field), float(shape[-1] * field)
