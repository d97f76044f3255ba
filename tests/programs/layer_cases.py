"""Small Keras models that together use every layer, option and activation that can be lowered.

Each layer stands in a branch with weights of its own below it, so that a wrong gradient shows in a leaf that names it.
"""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers as L
from keras import ops

WIDE = keras.initializers.RandomUniform(-2.0, 2.0)
SMALL = keras.initializers.RandomNormal(0.1, 0.3)
ACTIVATIONS = (
    "relu", "relu6", "leaky_relu", "elu", "selu", "gelu", "silu", "swish", "sigmoid", "tanh", "softplus", "softsign",
    "softmax", "log_softmax", "hard_sigmoid", "hard_silu", "hard_swish", "mish", "exponential", "linear",
)  # fmt: skip


def _end(branches: list[Any], source: Any, activation: str | None = "softmax") -> Any:
    """Bring branches to one width, sum them, classify."""
    flat = [b if len(b.shape) == 2 else L.Flatten()(b) for b in branches]
    heads = [L.Dense(3, kernel_initializer=SMALL, name=f"head{i}")(b) for i, b in enumerate(flat)]
    total = L.Add()(heads) if len(heads) > 1 else heads[0]
    return keras.Model(source, L.Activation(activation)(total) if activation else total)


def activations() -> Any:
    x = keras.Input((4,))
    branches = []
    for name in ACTIVATIONS:
        scale = keras.initializers.RandomUniform(-0.3, 0.3) if name == "exponential" else WIDE
        # Without bias: the converter loses some activations right after a bare matrix product.
        branches.append(L.Dense(5, name, use_bias=False, kernel_initializer=scale, name=f"to_{name}")(x))
    instances = [L.ReLU(), L.ReLU(6), L.ReLU(negative_slope=0.1), L.LeakyReLU(0.3), L.ELU(0.7), L.Softmax()]
    instances += [L.PReLU(alpha_initializer=SMALL, name="prelu"), L.Activation("gelu")]
    for i, layer in enumerate(instances):
        below = L.Dense(5, use_bias=False, kernel_initializer=WIDE, name=f"below{i}_{type(layer).__name__}")(x)
        branches.append(layer(below))
    functions = [ops.relu, ops.silu, ops.sigmoid, ops.tanh, ops.elu, lambda v: ops.gelu(v, approximate=True)]
    functions += [lambda v: ops.gelu(v, approximate=False), lambda v: ops.leaky_relu(v, 0.4), ops.softmax, ops.relu6]
    for i, function in enumerate(functions):
        branches.append(function(L.Dense(5, use_bias=False, kernel_initializer=WIDE, name=f"function{i}")(x)))
    return _end(branches, x, None)


def convolutions() -> Any:
    x = keras.Input((11, 3))
    options: list[dict[str, Any]] = [
        {"filters": 4, "kernel_size": 3},
        {"filters": 4, "kernel_size": 3, "padding": "same", "use_bias": False, "activation": "relu"},
        {"filters": 4, "kernel_size": 4, "padding": "same"},
        {"filters": 4, "kernel_size": 5, "padding": "same", "strides": 2},
        {"filters": 4, "kernel_size": 4, "strides": 3},
        {"filters": 4, "kernel_size": 2, "strides": 3, "padding": "same"},
        {"filters": 4, "kernel_size": 3, "padding": "causal", "dilation_rate": 2},
        {"filters": 4, "kernel_size": 3, "padding": "causal", "strides": 2},
        {"filters": 4, "kernel_size": 3, "dilation_rate": 3, "padding": "same"},
        {"filters": 6, "kernel_size": 3, "groups": 3, "padding": "same", "activation": "tanh"},
        {"filters": 4, "kernel_size": 1},
        {"filters": 4, "kernel_size": 1, "strides": 2},
        {"filters": 4, "kernel_size": 11},
    ]
    below = L.Conv1D(3, 3, padding="same", activation="tanh", name="below")(x)
    return _end([L.Conv1D(**o, name=f"conv{i}")(below) for i, o in enumerate(options)], x)


def depthwise_convolutions() -> Any:
    x = keras.Input((10, 3))
    below = L.Conv1D(3, 3, padding="same", activation="tanh", name="below")(x)
    branches = [
        L.DepthwiseConv1D(3, name="plain")(below),
        L.DepthwiseConv1D(4, padding="same", depth_multiplier=2, activation="relu", name="double")(below),
        L.DepthwiseConv1D(3, strides=2, padding="same", use_bias=False, name="strided")(below),
        L.DepthwiseConv1D(3, dilation_rate=2, name="dilated")(below),
        L.SeparableConv1D(5, 3, padding="same", activation="elu", name="separable")(below),
        L.SeparableConv1D(5, 5, strides=2, padding="same", depth_multiplier=2, name="separable_strided")(below),
        L.SeparableConv1D(5, 3, dilation_rate=2, use_bias=False, name="separable_dilated")(below),
    ]
    return _end(branches, x)


def poolings() -> Any:
    x = keras.Input((11, 3))
    kinds = [
        L.MaxPooling1D(2), L.MaxPooling1D(3, strides=1), L.MaxPooling1D(3, strides=2, padding="same"),
        L.MaxPooling1D(4),
        L.AveragePooling1D(2), L.AveragePooling1D(3, strides=2, padding="same"), L.AveragePooling1D(4, strides=1),
        L.GlobalMaxPooling1D(), L.GlobalMaxPooling1D(keepdims=True), L.GlobalAveragePooling1D(),
        L.GlobalAveragePooling1D(keepdims=True),
    ]  # fmt: skip
    branches = []
    for i, layer in enumerate(kinds):
        # A ReLU below makes ties: whose gradient counts is part of the contract with TensorFlow.
        below = L.Conv1D(3, 3, padding="same", activation="relu6", name=f"below{i}_{type(layer).__name__}")(x)
        branches.append(layer(below))
    return _end(branches, x)


def normalizations() -> Any:
    x = keras.Input((6, 3))
    kinds = [
        L.BatchNormalization(name="bn"),
        L.BatchNormalization(momentum=0.8, epsilon=1e-2, name="bn_other"),
        L.BatchNormalization(scale=False, name="bn_no_scale"),
        L.BatchNormalization(center=False, gamma_initializer="random_uniform", name="bn_no_center"),
        L.BatchNormalization(trainable=False, moving_mean_initializer=SMALL, name="bn_frozen"),
        L.LayerNormalization(name="ln"),
        L.LayerNormalization(scale=False, center=False, epsilon=1e-2, name="ln_bare"),
    ]
    branches = []
    for i, layer in enumerate(kinds):
        branches.append(L.Activation("tanh")(layer(L.Conv1D(4, 3, name=f"below{i}_{layer.name}")(x))))
    flat = L.Dense(5, name="below_flat")(L.Flatten()(x))
    branches.append(L.BatchNormalization(name="bn_flat")(flat))
    constants = L.Normalization(mean=[0.1, 0.2, 0.3], variance=[1.0, 2.0, 3.0])(x)
    branches.append(L.Dense(3, name="above_constants")(L.Rescaling(0.5, 0.1)(constants)))
    return _end(branches, x)


def embeddings() -> Any:
    x = keras.Input((8,), dtype="int32")
    words = L.Embedding(12, 5, mask_zero=True, name="words")(x)
    masked = L.GlobalAveragePooling1D()(words)
    plain = L.Embedding(12, 4, embeddings_initializer="glorot_uniform", name="plain")(x)
    return _end([masked, L.Conv1D(4, 3, activation="relu")(plain), L.GlobalMaxPooling1D()(plain)], x)


def structures() -> Any:
    x = keras.Input((6, 4))
    a, b = (L.Dense(4, "tanh", name=name)(x) for name in ("a", "b"))
    branches = [
        L.Add()([a, b]), L.Subtract()([a, b]), L.Multiply()([a, b]), L.Average()([a, b]), L.Maximum()([a, b]),
        L.Minimum()([a, b]), L.Concatenate()([a, b]), L.Concatenate(axis=1)([a, b]), L.Flatten()(a),
        L.Reshape((8, 3))(a), L.Reshape((-1, 2))(a), L.Permute((2, 1))(a), L.ZeroPadding1D((1, 2))(a),
        L.Cropping1D((1, 2))(b), L.UpSampling1D(2)(b), L.RepeatVector(3)(L.Flatten()(b)), L.Identity()(b),
        L.Dropout(0.0)(a), L.Dropout(0.0)(a, training=False), L.SpatialDropout1D(0.0)(a), L.GaussianNoise(0.0)(b),
    ]  # fmt: skip
    branches = [L.Activation("tanh")(branch) for branch in branches]
    operations = [
        a + b * 2.0, a - b / 3.0, -a, ops.sqrt(ops.square(a) + 0.1), ops.sum(a, axis=-1), ops.mean(a, axis=1),
        ops.max(a, axis=[1], keepdims=True), ops.concatenate([a, b], axis=-1), ops.expand_dims(a, 2), a[:, 1:-1],
        b[:, 2], a[:, :, 1:3],
    ]  # fmt: skip
    return _end(branches + operations, x)


def nested() -> Any:
    inner_in = keras.Input((8, 3))
    hidden = L.BatchNormalization(name="bn")(L.Conv1D(4, 3, padding="same", name="conv")(inner_in))
    inner = keras.Model(inner_in, L.Activation("relu")(hidden), name="inner")
    tail = keras.Sequential([keras.Input((8, 4)), L.Conv1D(4, 3, name="conv"), L.Flatten()], name="tail")
    shared = L.Dense(3, "tanh", name="shared")
    x = keras.Input((8, 3))
    return _end([tail(inner(shared(x))), shared(shared(x))], x)


def sequential() -> Any:
    return keras.Sequential(
        [
            keras.Input((12, 3)),
            L.Conv1D(6, 3, activation="relu", kernel_initializer="he_normal", name="conv"),
            L.MaxPooling1D(2),
            L.Flatten(),
            L.Dense(3, activation="softmax", name="scores"),
        ]
    )


def regularized() -> Any:
    x = keras.Input((5,))
    both = keras.regularizers.L1L2(0.02, 0.03)
    h = L.Dense(6, "tanh", kernel_regularizer=both, bias_regularizer="l2", bias_initializer=SMALL, name="both")(x)
    h = L.Dense(6, "tanh", kernel_regularizer=keras.regularizers.L1(0.05), name="l1")(h)
    frozen = L.Dense(6, kernel_regularizer="l2", name="frozen", trainable=False)(x)
    return keras.Model(x, L.Dense(3, kernel_regularizer="l2", name="logits")(L.Add()([h, frozen])))


CASES: dict[str, Callable[[], Any]] = {
    f.__name__: f
    for f in (
        activations, convolutions, depthwise_convolutions, poolings, normalizations, embeddings, structures, nested,
        sequential, regularized,
    )
}  # fmt: skip


def batches(model: Any, count: int, size: int, seed: int) -> list[tuple[Any, Any, int]]:
    """Fresh random inputs; the last batch holds fewer real rows than it has rows, the rest of it is garbage."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(count):
        shape = (size, *model.input_shape[1:])
        if model.inputs[0].dtype == "int32":
            x = rng.integers(0, 12, shape).astype(np.int32)
            x[:, 0] = 1  # a text has a word at least
        else:
            x = rng.normal(0.0, 1.5, shape).astype(np.float32)
        real = size if i < count - 1 else size // 2 + 1
        made.append((x, rng.integers(0, model.output_shape[-1], size).astype(np.int32), real))
    return made
