"""Dense layers and embeddings."""

import math
from typing import Any

import keras
import tensorflow as tf

from flsys_ray.programs.lowering.gradients import with_gradient
from flsys_ray.programs.lowering.registry import lowers
from flsys_ray.programs.lowering.replay import Call

Tensor = Any


def product(x: Tensor, kernel: Tensor) -> Tensor:
    """Return the matrix product over the last axis of x [..., I] with kernel [I, O]: [..., O].

    As a batch of one: so the gradients stay BATCH_MATMUL, which LiteRT's XNNPACK computes, while the converter turns
    a plain product with a transposed matrix into FULLY_CONNECTED, for which XNNPACK wants constant weights (1.0 ms
    against 0.38 ms for 1600 x 160 x 48 on one core, `benchmarks/program_step.py`).
    """
    rows, (inner, outer) = math.prod(x.shape[:-1]), kernel.shape
    y = tf.matmul(tf.reshape(x, [1, rows, inner]), tf.reshape(kernel, [1, inner, outer]))
    return tf.reshape(y, [*x.shape[:-1], outer])


@lowers(keras.layers.Dense)
def dense(x: Tensor, call: Call) -> Tensor:
    """`Dense` over the last axis."""
    return call.activate(dense_logits(x, call), call.layer.activation)


def dense_logits(x: Tensor, call: Call) -> Tensor:
    """`Dense` before its activation."""
    y = product(x, call.weight("kernel"))
    bias = call.weight("bias")
    return y if bias is None else y + bias


@lowers(keras.layers.Embedding)
def embedding(x: Tensor, call: Call) -> Tensor:
    """`Embedding`: rows of a table. An id outside the table reads as the nearest row inside."""
    table = call.weight("embeddings")
    rows, width = table.shape
    ids = tf.clip_by_value(tf.cast(x, tf.int32), 0, rows - 1)
    flat = tf.reshape(ids, [-1])

    @with_gradient
    def lookup(table: Tensor) -> tuple[Tensor, Any]:
        def gradient(g: Tensor) -> Tensor:
            return tf.math.unsorted_segment_sum(tf.reshape(g, [flat.shape[0], width]), flat, rows)

        return tf.gather(table, flat), gradient

    return tf.reshape(lookup(table), [*x.shape, width])
