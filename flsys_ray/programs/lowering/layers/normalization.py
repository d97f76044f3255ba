"""Normalisation layers."""

import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from flsys_ray.programs.lowering.registry import lowers
from flsys_ray.programs.lowering.replay import Call

Tensor = Any


@lowers(keras.layers.BatchNormalization)
def batch_normalization(x: Tensor, call: Call) -> Tensor:
    """`BatchNormalization` (Ioffe and Szegedy 2015, arXiv 1502.03167), statistics over the real examples only.

    In training the mean and the variance of a batch are weighted with the mask of the batch: a padded batch of n real
    examples gives what the n examples alone would give. A frozen layer uses its stored statistics.
    """
    layer = call.layer
    if layer.axis not in (-1, len(x.shape) - 1):
        raise call.refuse(f"axis {layer.axis} has no lowering; the last axis has")
    if getattr(layer, "renorm", False) or getattr(layer, "synchronized", False):
        raise call.refuse("`renorm` and `synchronized` have no lowering")
    flat = tf.reshape(x, [math.prod(x.shape[:-1]), x.shape[-1]])
    if call.training and layer.trainable:
        y = _normalize_batch(flat, call)
    else:
        y = _affine(flat - call.weight("moving_mean"), call.weight("moving_variance"), call)
    return tf.reshape(y, x.shape)


def _normalize_batch(flat: Tensor, call: Call) -> Tensor:
    """Normalise [N, C] with its own weighted statistics and update the stored ones."""
    share, filled = _shares(flat.shape[0], call)
    ones = tf.ones([flat.shape[-1]])
    gamma, beta = call.weight("gamma"), call.weight("beta")
    normalized = _normalized_with(share, call.layer.epsilon)
    y, mean, variance = normalized(flat, ones if gamma is None else gamma, ones * 0.0 if beta is None else beta)
    rate = (1.0 - call.layer.momentum) * filled
    for name, now in (("moving_mean", mean), ("moving_variance", variance)):
        old = call.weight(name)
        call.update(name, tf.stop_gradient(old + rate * (now - old)))
    return y


def _normalized_with(share: Tensor, epsilon: float) -> Any:
    """Return `(x [N, C], gamma [C], beta [C]) -> (y [N, C], mean [C], variance [C])`, row i weighing `share` [1, N].

    The gradient of x is that of Ioffe and Szegedy's section 3, with share in the place of 1/m:
    `gamma inv (g - share (sum g + xhat sum g xhat))`. None flows through the statistics that are returned.
    """

    def function(x: Tensor, gamma: Tensor, beta: Tensor) -> tuple[Any, Any]:
        mean = _weighted(share, x)
        centred = x - mean
        variance = _weighted(share, centred * centred)
        inverse = tf.math.rsqrt(variance + epsilon)
        scale = inverse * gamma

        def gradient(g: Tensor, *unused: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            sum_g = tf.reduce_sum(g, 0)
            sum_gx = tf.reduce_sum(g * centred, 0) * inverse
            through = tf.reshape(share, [-1, 1]) * (centred * (scale * inverse * sum_gx) + scale * sum_g)
            return g * scale - through, sum_gx, sum_g

        return (centred * scale + beta, mean, variance), gradient

    return tf.custom_gradient(function)


def _weighted(share: Tensor, x: Tensor) -> Tensor:
    return tf.reshape(tf.matmul(share, x), [x.shape[-1]])


def _shares(rows: int, call: Call) -> tuple[Tensor, Tensor]:
    """Return each row's share of the batch, [1, N], and 1.0 if there is a real example at all, or else 0.0."""
    rows_mask: Any = call.replay.rows
    per_example = rows // rows_mask.shape[0]
    weights = tf.reshape(rows_mask, [-1, 1]) * tf.ones([1, per_example])
    if call.mask is not None:
        weights *= tf.reshape(tf.cast(call.mask, tf.float32), [-1, per_example])
    weights = tf.reshape(weights, [1, rows])
    total = tf.reduce_sum(weights)
    return weights / tf.maximum(total, 1.0), tf.minimum(total, 1.0)


def _affine(centred: Tensor, variance: Tensor, call: Call) -> Tensor:
    gamma, beta = call.weight("gamma"), call.weight("beta")
    scale = tf.math.rsqrt(variance + call.layer.epsilon)
    y = centred * (scale if gamma is None else scale * gamma)
    return y if beta is None else y + beta


@lowers(keras.layers.LayerNormalization)
def layer_normalization(x: Tensor, call: Call) -> Tensor:
    """`LayerNormalization` (Ba et al. 2016, arXiv 1607.06450) over the last axis."""
    axes = call.layer.axis if isinstance(call.layer.axis, (list, tuple)) else [call.layer.axis]
    if [a % len(x.shape) for a in axes] != [len(x.shape) - 1]:
        raise call.refuse(f"axis {call.layer.axis} has no lowering; the last axis has")
    centred = x - tf.reduce_mean(x, -1, keepdims=True)
    variance = tf.reduce_mean(centred * centred, -1, keepdims=True)
    return _affine(centred, variance, call)


@lowers(keras.layers.Normalization)
def fixed_normalization(x: Tensor, call: Call) -> Tensor:
    """`Normalization` with adapted or given constants, which become constants of the program."""
    layer = call.layer
    if not layer.built or getattr(layer, "mean", None) is None or layer.invert:
        raise call.refuse("adapt it, or give mean and variance; `invert` has no lowering")
    mean, variance = np.asarray(layer.mean, np.float32), np.asarray(layer.variance, np.float32)
    return (x - mean) / np.maximum(np.sqrt(variance), 1e-7)


@lowers(keras.layers.Rescaling)
def rescaling(x: Tensor, call: Call) -> Tensor:
    """`Rescaling`."""
    return tf.cast(x, tf.float32) * np.float32(call.layer.scale) + np.float32(call.layer.offset)
