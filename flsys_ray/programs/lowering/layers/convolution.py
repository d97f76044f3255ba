"""One-dimensional convolutions as matrix products (im2col).

CONV_2D with a kernel that changes is repacked by the runtime each time: 1.06 ms against 0.39 ms for a batch of 32, 50
steps, 32 channels to 48, kernel 5, on one core (`benchmarks/program_step.py`); in browsers it is worse still.
"""

from typing import Any

import keras
import tensorflow as tf

from flsys_ray.programs.lowering.layers.dense import product
from flsys_ray.programs.lowering.registry import lowers
from flsys_ray.programs.lowering.replay import Call
from flsys_ray.programs.lowering.windows import Windows

Tensor = Any


def convolve(x: Tensor, kernel: Tensor, windows: Windows) -> Tensor:
    """Return the convolution of x [B, T, C] with kernel [K, C, F]: [B, count, F].

    With a stride, `stride` neighbours are read as one element of `stride * C` channels, and the kernel gets zeros up
    to a whole number of these: the rest is a convolution of stride 1.
    """
    x = windows.pad(x)
    size, channels, filters = kernel.shape
    if windows.stride > 1:
        s, size = windows.stride, -(-size // windows.stride)
        x = tf.reshape(x, [x.shape[0], x.shape[1] // s, s * channels])
        kernel = tf.pad(kernel, [[0, size * s - kernel.shape[0]], [0, 0], [0, 0]])
        kernel = tf.reshape(kernel, [size, s * channels, filters])
    return _correlate(x, kernel, windows.dilation)


def _correlate(x: Tensor, kernel: Tensor, dilation: int) -> Tensor:
    """Return the sum over k of x[:, t + k * dilation] @ kernel[k], for all t that fit.

    The gradient for x is the same again, of the padded gradient with the kernel reversed and transposed.
    """
    size = kernel.shape[0]
    reach = (size - 1) * dilation

    def with_kernel(x: Tensor, kernel: Tensor) -> tuple[Tensor, Any]:
        columns = _columns(x, size, dilation)

        def gradient(g: Tensor) -> tuple[Tensor, Tensor]:
            padded = tf.pad(g, [[0, 0], [reach, reach], [0, 0]]) if reach else g
            flipped = tf.concat(tf.split(tf.transpose(kernel, [0, 2, 1]), size)[::-1], 0)
            return _times(_columns(padded, size, dilation), flipped), _outer(columns, g, kernel.shape)

        return _times(columns, kernel), gradient

    result: Tensor = tf.custom_gradient(with_kernel)(x, kernel)
    return result


def _columns(x: Tensor, size: int, dilation: int) -> Tensor:
    """im2col: the elements of each window side by side, [B, count, size * C]."""
    if size == 1:
        return x
    batch, length, channels = x.shape
    count = length - (size - 1) * dilation
    return tf.concat([tf.slice(x, [0, k * dilation, 0], [batch, count, channels]) for k in range(size)], -1)


def _times(columns: Tensor, kernel: Tensor) -> Tensor:
    size, channels, filters = kernel.shape
    return product(columns, tf.reshape(kernel, [size * channels, filters]))


def _outer(columns: Tensor, g: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The gradient of the kernel: the sum over all windows of window times gradient."""
    rows = columns.shape[0] * columns.shape[1]
    columns = tf.reshape(columns, [1, rows, columns.shape[2]])
    return tf.reshape(tf.matmul(columns, tf.reshape(g, [1, rows, g.shape[2]]), transpose_a=True), shape)


def _windows(x: Tensor, call: Call) -> Windows:
    layer = call.layer
    if layer.data_format != "channels_last":
        raise call.refuse("data_format 'channels_first' has no lowering")
    if layer.padding not in ("valid", "same", "causal"):
        raise call.refuse(f"padding {layer.padding!r} has no lowering; add a ZeroPadding1D layer")
    size, stride, dilation = layer.kernel_size[0], layer.strides[0], layer.dilation_rate[0]
    return Windows.over(x.shape[1], size, stride, dilation, layer.padding)


def _finish(y: Tensor, call: Call) -> Tensor:
    bias = call.weight("bias")
    return call.activate(y if bias is None else y + bias, call.layer.activation)


@lowers(keras.layers.Conv1D)
def conv1d(x: Tensor, call: Call) -> Tensor:
    """`Conv1D`, groups included."""
    windows, groups = _windows(x, call), call.layer.groups
    kernel = call.weight("kernel")
    if groups == 1:
        return _finish(convolve(x, kernel, windows), call)
    parts = zip(tf.split(x, groups, -1), tf.split(kernel, groups, -1), strict=True)
    return _finish(tf.concat([convolve(a, k, windows) for a, k in parts], -1), call)


def depthwise(x: Tensor, kernel: Tensor, windows: Windows) -> Tensor:
    """Return each channel of x [B, T, C] convolved with its own M kernels [K, C, M]: [B, count, C * M]."""
    size, channels, multiplier = kernel.shape
    taps = windows.taps(x)
    if multiplier == 1:
        weights = tf.unstack(tf.reshape(kernel, [size, channels]))
        return tf.add_n([tap * w for tap, w in zip(taps, weights, strict=True)])
    weights = tf.unstack(kernel)
    total = tf.add_n([tf.expand_dims(tap, -1) * w for tap, w in zip(taps, weights, strict=True)])
    return tf.reshape(total, [x.shape[0], windows.count, channels * multiplier])


@lowers(keras.layers.DepthwiseConv1D)
def depthwise_conv1d(x: Tensor, call: Call) -> Tensor:
    """`DepthwiseConv1D`."""
    return _finish(depthwise(x, call.weight("kernel"), _windows(x, call)), call)


@lowers(keras.layers.SeparableConv1D)
def separable_conv1d(x: Tensor, call: Call) -> Tensor:
    """`SeparableConv1D`: depthwise, then a product over the channels."""
    spread = depthwise(x, call.weight("depthwise_kernel"), _windows(x, call))
    pointwise = call.weight("pointwise_kernel")
    return _finish(product(spread, tf.reshape(pointwise, pointwise.shape[1:])), call)
