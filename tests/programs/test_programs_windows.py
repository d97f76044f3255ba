"""Convolution and pooling over any geometry equal Keras', gradients included. Eager: nothing is compiled."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from flsys_ray.programs.lowering.layers import pooling
from flsys_ray.programs.lowering.layers.convolution import convolve, depthwise
from flsys_ray.programs.lowering.replay import Call, Replay
from flsys_ray.programs.lowering.windows import Windows

GEOMETRY = st.tuples(
    st.integers(1, 14), st.integers(1, 6), st.integers(1, 4), st.integers(1, 3),
    st.sampled_from(["valid", "same", "causal"]),
)  # fmt: skip


def _both(ours: Any, theirs: Any, *inputs: Any) -> None:
    """Compare values and gradients of a weighted sum."""
    results = []
    for function in (ours, theirs):
        variables = [tf.Variable(v, dtype=tf.float32) for v in inputs]
        with tf.GradientTape() as tape:
            y = function(*[v.value() for v in variables])
            weights = tf.reshape(tf.range(1.0, float(tf.size(y)) + 1.0), y.shape)
            total = tf.reduce_sum(y * weights)
        results.append((y, *tape.gradient(total, variables)))
    for found, expected in zip(*results, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@given(GEOMETRY)
@settings(max_examples=60)
def test_convolution(geometry: tuple[int, int, int, int, str]) -> None:
    length, size, stride, dilation, padding = geometry
    assume(stride == 1 or dilation == 1)
    windows = Windows.over(length, size, stride, dilation, padding)
    assume(windows.count > 0)
    layer = keras.layers.Conv1D(4, size, strides=stride, dilation_rate=dilation, padding=padding, use_bias=False)
    layer.build((2, length, 3))
    rng = np.random.default_rng(0)

    def theirs(x: Any, kernel: Any) -> Any:
        return layer.stateless_call([kernel], [], x)[0]

    x, kernel = rng.normal(size=(2, length, 3)), rng.normal(size=(size, 3, 4))
    _both(lambda x, k: convolve(x, k, windows), theirs, x, kernel)


@given(GEOMETRY, st.integers(1, 3))
@settings(max_examples=40)
def test_depthwise_convolution(geometry: tuple[int, int, int, int, str], multiplier: int) -> None:
    length, size, stride, dilation, padding = geometry
    assume((stride == 1 or dilation == 1) and padding != "causal")
    windows = Windows.over(length, size, stride, dilation, padding)
    assume(windows.count > 0)
    options = {"strides": stride, "dilation_rate": dilation, "padding": padding, "depth_multiplier": multiplier}
    layer = keras.layers.DepthwiseConv1D(size, use_bias=False, **options)
    layer.build((2, length, 3))
    rng = np.random.default_rng(0)

    def theirs(x: Any, kernel: Any) -> Any:
        return layer.stateless_call([kernel], [], x)[0]

    x, kernel = rng.normal(size=(2, length, 3)), rng.normal(size=(size, 3, multiplier))
    _both(lambda x, k: depthwise(x, k, windows), theirs, x, kernel)


@given(GEOMETRY, st.sampled_from(["Max", "Average"]), st.booleans())
@settings(max_examples=60)
def test_pooling(geometry: tuple[int, int, int, int, str], kind: str, ties: bool) -> None:
    length, size, stride, _, padding = geometry
    assume(padding != "causal" and (padding == "same" or size <= length))
    layer = getattr(keras.layers, f"{kind}Pooling1D")(size, strides=stride, padding=padding)
    ours = pooling.max_pooling if kind == "Max" else pooling.average_pooling
    rng = np.random.default_rng(0)
    x = rng.integers(0, 3, (2, length, 3)) if ties else rng.normal(size=(2, length, 3))
    _both(lambda x: ours(x, Call(layer, Replay({}, training=False))), layer, x)
