"""Forms of convolution that are fast on a server's cores: the mathematics of `programs.lowering`, other operators.

A phone's program has convolutions as im2col and one product, which suits LiteRT. On a server's core:

- one device at a time, oneDNN's convolution is the fastest (it needs no copies of the input);
- with many devices beside each other, each with its own kernel, products are: oneDNN's grouped convolutions are slow.
  Narrow layers make narrow products, which reach little of a core's speed. So `neighbours` outputs are computed
  at once, with a kernel that holds the filter once for each, shifted: more arithmetic, wider products, fewer copies.
"""

from typing import Any

import keras
import tensorflow as tf

from flsys_ray.programs.lowering import registry
from flsys_ray.programs.lowering.layers import convolution
from flsys_ray.programs.lowering.replay import Call
from flsys_ray.programs.lowering.windows import Windows

Tensor = Any
WIDE = 64  # columns that a product should have at least


def native_conv1d(x: Tensor, call: Call) -> Tensor:
    """`Conv1D` by TensorFlow's own operator."""
    layer = call.layer
    if layer.groups != 1 or layer.data_format != "channels_last":
        return convolution.conv1d(x, call)
    padding = layer.padding.upper()
    if padding == "CAUSAL":
        reach = (layer.kernel_size[0] - 1) * layer.dilation_rate[0]
        x, padding = tf.pad(x, [[0, 0], [reach, 0], [0, 0]]), "VALID"
    y = tf.nn.conv1d(x, call.weight("kernel"), layer.strides[0], padding, dilations=layer.dilation_rate[0])
    bias = call.weight("bias")
    return call.activate(y if bias is None else tf.nn.bias_add(y, bias), layer.activation)


def blocked_conv1d(x: Tensor, call: Call) -> Tensor:
    """`Conv1D` with some neighbouring outputs at once, where that makes a wider product."""
    layer = call.layer
    size, filters = layer.kernel_size[0], layer.filters
    neighbours = min(WIDE // filters, 4) if filters else 1
    plain = layer.groups == 1 and layer.data_format == "channels_last"
    if not plain or neighbours < 2 or size < 2 or layer.strides[0] > 1 or layer.dilation_rate[0] > 1:
        return convolution.conv1d(x, call)
    windows = Windows.over(x.shape[1], size, 1, 1, layer.padding)
    y = _convolve_blocked(x, call.weight("kernel"), windows, neighbours)
    bias = call.weight("bias")
    return call.activate(y if bias is None else y + bias, layer.activation)


def _convolve_blocked(x: Tensor, kernel: Tensor, windows: Windows, neighbours: int) -> Tensor:
    """Return the convolution of x [B, T, C] with kernel [K, C, F], `neighbours` outputs at a time: [B, count, F]."""
    size, channels, filters = kernel.shape
    blocks, reach = -(-windows.count // neighbours), -(-(size - 1) // neighbours)
    length = (blocks + reach) * neighbours
    right = length - windows.left - x.shape[1]
    x = tf.pad(x, [[0, 0], [windows.left, right], [0, 0]])
    x = tf.reshape(x, [x.shape[0], blocks + reach, neighbours * channels])
    spare = (1 + reach) * neighbours - size
    shifted = [tf.pad(kernel, [[k, spare - k], [0, 0], [0, 0]]) for k in range(neighbours)]
    wide = tf.reshape(tf.stack(shifted, 2), [1 + reach, neighbours * channels, neighbours * filters])
    y = convolution.convolve(x, wide, Windows(1 + reach, 1, 1, blocks, 0))
    y = tf.reshape(y, [x.shape[0], blocks * neighbours, filters])
    return y if blocks * neighbours == windows.count else tf.slice(y, [0, 0, 0], [-1, windows.count, -1])


NATIVE: dict[type, registry.Lowering] = {keras.layers.Conv1D: native_conv1d}
BLOCKED: dict[type, registry.Lowering] = {keras.layers.Conv1D: blocked_conv1d}
