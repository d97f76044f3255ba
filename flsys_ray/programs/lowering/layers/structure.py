"""Layers and operations that combine, cut or rearrange tensors."""

import math
from functools import reduce
from typing import Any

import keras
import tensorflow as tf

from flsys_ray.programs.lowering.gradients import with_gradient
from flsys_ray.programs.lowering.registry import lowers, lowers_operation
from flsys_ray.programs.lowering.replay import Call

Tensor = Any


@lowers(keras.layers.Identity)
def identity(x: Tensor, call: Call) -> Tensor:
    """`Identity`."""
    return x


@lowers(keras.layers.Add)
def add(x: list[Tensor], call: Call) -> Tensor:
    """`Add`."""
    return reduce(lambda a, b: a + b, x)


@lowers(keras.layers.Subtract)
def subtract(x: list[Tensor], call: Call) -> Tensor:
    """`Subtract`."""
    return x[0] - x[1]


@lowers(keras.layers.Multiply)
def multiply(x: list[Tensor], call: Call) -> Tensor:
    """`Multiply`."""
    return reduce(lambda a, b: a * b, x)


@lowers(keras.layers.Average)
def average(x: list[Tensor], call: Call) -> Tensor:
    """`Average`."""
    return reduce(lambda a, b: a + b, x) * (1.0 / len(x))


@lowers(keras.layers.Maximum)
def maximum(x: list[Tensor], call: Call) -> Tensor:
    """`Maximum`; of equal elements the first gets the gradient."""
    return reduce(lambda a, b: tf.where(a >= b, a, b), x)


@lowers(keras.layers.Minimum)
def minimum(x: list[Tensor], call: Call) -> Tensor:
    """`Minimum`; of equal elements the first gets the gradient."""
    return reduce(lambda a, b: tf.where(a <= b, a, b), x)


@lowers(keras.layers.Concatenate)
def concatenate(x: list[Tensor], call: Call) -> Tensor:
    """`Concatenate`, not over the batch."""
    if call.layer.axis % len(x[0].shape) == 0:
        raise call.refuse("it mixes examples of a batch")
    return tf.concat(x, call.layer.axis)


@lowers(keras.layers.Flatten)
def flatten(x: Tensor, call: Call) -> Tensor:
    """`Flatten`."""
    return tf.reshape(x, [x.shape[0], math.prod(x.shape[1:])])


@lowers(keras.layers.Reshape)
def reshape(x: Tensor, call: Call) -> Tensor:
    """`Reshape`."""
    return tf.reshape(x, [x.shape[0], *call.layer.target_shape])


@lowers(keras.layers.Permute)
def permute(x: Tensor, call: Call) -> Tensor:
    """`Permute`."""
    return tf.transpose(x, [0, *call.layer.dims])


@lowers(keras.layers.RepeatVector)
def repeat_vector(x: Tensor, call: Call) -> Tensor:
    """`RepeatVector`."""
    return tf.expand_dims(x, 1) * tf.ones([1, call.layer.n, 1])


@lowers(keras.layers.UpSampling1D)
def up_sampling(x: Tensor, call: Call) -> Tensor:
    """`UpSampling1D`."""
    batch, length, channels = x.shape
    repeated = tf.expand_dims(x, 2) * tf.ones([1, 1, call.layer.size, 1])
    return tf.reshape(repeated, [batch, length * call.layer.size, channels])


@lowers(keras.layers.ZeroPadding1D)
def zero_padding(x: Tensor, call: Call) -> Tensor:
    """`ZeroPadding1D`."""
    return tf.pad(x, [[0, 0], list(call.layer.padding), [0, 0]])


@lowers(keras.layers.Cropping1D)
def cropping(x: Tensor, call: Call) -> Tensor:
    """`Cropping1D`."""
    before, after = call.layer.cropping
    return tf.slice(x, [0, before, 0], [x.shape[0], x.shape[1] - before - after, x.shape[2]])


@lowers_operation("Add")
def add_operation(operation: Any, a: Tensor, b: Tensor) -> Tensor:
    """`a + b`."""
    return a + b


@lowers_operation("Subtract")
def subtract_operation(operation: Any, a: Tensor, b: Tensor) -> Tensor:
    """`a - b`."""
    return a - b


@lowers_operation("Multiply")
def multiply_operation(operation: Any, a: Tensor, b: Tensor) -> Tensor:
    """`a * b`."""
    return a * b


@lowers_operation("TrueDivide", "Divide")
def divide_operation(operation: Any, a: Tensor, b: Tensor) -> Tensor:
    """`a / b`."""
    return a / b


@lowers_operation("Negative")
def negative_operation(operation: Any, x: Tensor) -> Tensor:
    """`-x`."""
    return -x


@lowers_operation("Square")
def square_operation(operation: Any, x: Tensor) -> Tensor:
    """`keras.ops.square`."""
    return x * x


@lowers_operation("Sqrt")
def sqrt_operation(operation: Any, x: Tensor) -> Tensor:
    """`keras.ops.sqrt`."""

    @with_gradient
    def function(x: Tensor) -> tuple[Tensor, Any]:
        y = tf.sqrt(x)
        return y, lambda g: g * 0.5 / y

    return function(x)


@lowers_operation("NotEqual")
def not_equal_operation(operation: Any, a: Tensor, b: Tensor) -> Tensor:
    """`a != b`: the mask of an Embedding with `mask_zero`."""
    return tf.not_equal(a, b)


@lowers_operation("Cast")
def cast_operation(operation: Any, x: Tensor) -> Tensor:
    """`keras.ops.cast`."""
    return tf.cast(x, operation.dtype)


def _axes(operation: Any, x: Tensor) -> list[int]:
    axis = operation.axis
    axes = [a % len(x.shape) for a in ([axis] if isinstance(axis, int) else axis or range(len(x.shape)))]
    if 0 in axes:
        raise NotImplementedError("it reduces over the batch, which mixes examples")
    return axes


@lowers_operation("Sum")
def sum_operation(operation: Any, x: Tensor) -> Tensor:
    """`keras.ops.sum`."""
    return tf.reduce_sum(x, _axes(operation, x), keepdims=operation.keepdims)


@lowers_operation("Mean")
def mean_operation(operation: Any, x: Tensor) -> Tensor:
    """`keras.ops.mean`."""
    return tf.reduce_mean(x, _axes(operation, x), keepdims=operation.keepdims)


@lowers_operation("Max")
def max_operation(operation: Any, x: Tensor, initial: None = None) -> Tensor:
    """`keras.ops.max`."""
    return tf.reduce_max(x, _axes(operation, x), keepdims=operation.keepdims)


@lowers_operation("Concatenate")
def concatenate_operation(operation: Any, xs: list[Tensor]) -> Tensor:
    """`keras.ops.concatenate`."""
    if operation.axis % len(xs[0].shape) == 0:
        raise NotImplementedError("it mixes examples of a batch")
    return tf.concat(list(xs), operation.axis)


@lowers_operation("ExpandDims")
def expand_dims_operation(operation: Any, x: Tensor) -> Tensor:
    """`keras.ops.expand_dims`."""
    axis = operation.axis if isinstance(operation.axis, int) else operation.axis[0]
    return tf.expand_dims(x, axis)


@lowers_operation("GetItem")
def get_item_operation(operation: Any, x: Tensor, key: Any) -> Tensor:
    """`x[:, a:b, ...]` with steps of 1, the batch whole."""
    keys = key if isinstance(key, tuple) else (key,)
    starts, sizes = [0] * len(x.shape), list(x.shape)
    dropped = set()
    for axis, part in enumerate(keys):
        if isinstance(part, int):
            starts[axis], sizes[axis] = part % x.shape[axis], 1
            dropped.add(axis)
        elif isinstance(part, slice) and part.step in (None, 1):
            start, stop, _ = part.indices(x.shape[axis])
            starts[axis], sizes[axis] = start, stop - start
        else:
            raise NotImplementedError(f"index {part!r} has no lowering")
    if sizes[0] != x.shape[0] or 0 in dropped:
        raise NotImplementedError("it picks examples out of the batch")
    taken = tf.slice(x, starts, sizes)
    return tf.reshape(taken, [n for axis, n in enumerate(sizes) if axis not in dropped])
