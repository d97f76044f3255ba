"""Layers that act in training only: they draw from the program's noise."""

from typing import Any

import keras
import tensorflow as tf

from flsys_ray.programs.lowering.registry import lowers
from flsys_ray.programs.lowering.replay import Call

Tensor = Any


def _drop(x: Tensor, call: Call, shape: tuple[int, ...]) -> Tensor:
    """Inverted dropout: keep with probability 1 - rate, and divide by it (Srivastava et al. 2014, JMLR 15)."""
    rate = float(call.layer.rate)
    if not call.training or rate == 0.0:
        return x
    if rate >= 1.0:
        return x * 0.0
    kept = tf.cast(call.uniform(shape) >= rate, tf.float32)
    return x * tf.stop_gradient(kept * (1.0 / (1.0 - rate)))


@lowers(keras.layers.Dropout)
def dropout(x: Tensor, call: Call) -> Tensor:
    """`Dropout`, with `noise_shape`."""
    shape = call.layer.noise_shape or x.shape
    return _drop(x, call, tuple(x.shape[i] if n is None else n for i, n in enumerate(shape)))


@lowers(keras.layers.SpatialDropout1D)
def spatial_dropout(x: Tensor, call: Call) -> Tensor:
    """`SpatialDropout1D`: drops whole channels of an example."""
    return _drop(x, call, (x.shape[0], 1, x.shape[2]))


@lowers(keras.layers.GaussianNoise)
def gaussian_noise(x: Tensor, call: Call) -> Tensor:
    """`GaussianNoise`."""
    if not call.training:
        return x
    return x + tf.stop_gradient(call.normal(tuple(x.shape))) * float(call.layer.stddev)
