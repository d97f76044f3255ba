"""Pooling over time."""

from functools import reduce
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from flsys_ray.programs.lowering.registry import lowers
from flsys_ray.programs.lowering.replay import Call
from flsys_ray.programs.lowering.windows import Windows

Tensor = Any
_LOWEST = -3.0e38


def _windows(x: Tensor, call: Call) -> Windows:
    layer = call.layer
    if layer.data_format != "channels_last":
        raise call.refuse("data_format 'channels_first' has no lowering")
    return Windows.over(x.shape[1], layer.pool_size[0], layer.strides[0], 1, layer.padding)


@lowers(keras.layers.MaxPooling1D)
def max_pooling(x: Tensor, call: Call) -> Tensor:
    """`MaxPooling1D`. Of equal elements the first gets the gradient, as in TensorFlow."""
    return reduce(lambda best, tap: tf.where(best >= tap, best, tap), _windows(x, call).taps(x, _LOWEST))


@lowers(keras.layers.AveragePooling1D)
def average_pooling(x: Tensor, call: Call) -> Tensor:
    """`AveragePooling1D`: the mean of what lies in the window, padding not counted."""
    windows = _windows(x, call)
    starts = np.arange(windows.count) * windows.stride - windows.left
    inside = np.minimum(starts + windows.size, x.shape[1]) - np.maximum(starts, 0)
    total = tf.add_n(windows.taps(x)) if windows.size > 1 else windows.taps(x)[0]
    return total * tf.constant((1.0 / inside)[None, :, None], tf.float32)


def _over_time(call: Call) -> bool:
    if call.layer.data_format != "channels_last":
        raise call.refuse("data_format 'channels_first' has no lowering")
    return bool(call.layer.keepdims)


@lowers(keras.layers.GlobalAveragePooling1D)
def global_average_pooling(x: Tensor, call: Call) -> Tensor:
    """`GlobalAveragePooling1D`; with a Keras mask, the mean over the steps that it keeps: 0 if none (NaN in Keras)."""
    keepdims = _over_time(call)
    if call.mask is None:
        return tf.reduce_mean(x, 1, keepdims=keepdims)
    weights = tf.cast(call.mask, tf.float32)[:, :, None]
    kept = tf.maximum(tf.reduce_sum(weights, 1, keepdims=keepdims), 1.0)
    return tf.reduce_sum(x * weights, 1, keepdims=keepdims) / kept


@lowers(keras.layers.GlobalMaxPooling1D)
def global_max_pooling(x: Tensor, call: Call) -> Tensor:
    """`GlobalMaxPooling1D`."""
    return tf.reduce_max(x, 1, keepdims=_over_time(call))
