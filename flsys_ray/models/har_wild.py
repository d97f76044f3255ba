"""HAR-Wild: activity from a phone's accelerometer, wherever the phone is carried.

A convolutional network with skip connections (He et al. 2016, arXiv 1512.03385) and batch normalisation, over windows
of 5 s of three axes at 20 Hz. Model family and purpose are the paper's (arXiv 2111.09445). All else is our own, chosen
by held-out users of real data: `docs/har_wild.md` has the figures, and what did not help.

The program itself turns the three axes into what does not depend on how the phone lies, so that every app does it
alike. The mean of a window is taken as the direction of gravity (Mizell 2003, "Using gravity to estimate accelerometer
orientation", ISWC). In units of standard gravity, the channels are

- the motion along gravity,
- the size of the motion across it,
- the magnitude of the whole acceleration, less 1.

With raw axes, training on pooled data does better, but federated averaging fails: each user has one way to carry the
phone, local training leans on it, and the mean of such updates knows nothing.

How the phone lies tells sitting from standing. It joins after the convolutions, as the squares of the direction of
gravity: a phone that is put in face out, or head down, is the same phone. They are enlarged, since the last layer
starts small and a round has few steps.

The plan is one pass over a phone's examples a round and FedAvgM (Hsu et al. 2019, arXiv 1909.06335) on the server.
"""

from collections.abc import Sequence
from typing import Any

from flsys_ray.models.base import BuiltinModel

CLASSES = ("walking", "jogging", "stairs", "sitting", "standing")
WINDOW = 100
STANDARD_GRAVITY = 9.80665
WIDTHS = (16, 24, 32)
POSTURE = 3.0  # how much larger than 1 the direction of gravity enters the last layer
MOMENTUM = 0.9  # of batch statistics: a device takes tens of steps a round; with Keras' 0.99 they would lag behind
_TINY = 1e-6  # under each root: its derivative at 0 is infinite


def build(classes: Sequence[str] = CLASSES, *, dropout: float = 0.3, axes: bool = False) -> Any:
    """Return the Keras model: input [100, 3] in m/s^2 (Android's sign), output softmax over `classes`.

    With `axes` the network sees the three axes and the signs of the direction of gravity too: `har_wild_axes`.
    """
    import keras
    from keras import layers, ops

    window = keras.Input((WINDOW, 3), name="acceleration")
    down, x = _orientation_free(window / STANDARD_GRAVITY)
    if axes:
        x = ops.concatenate([window / STANDARD_GRAVITY, x], axis=-1)
    x = _convolution(x, WIDTHS[0], 5, 2, "stem")
    for i, width in enumerate(WIDTHS):
        x = _residual(x, width, 1 if i == 0 else 2, f"block{i + 1}")
    x = layers.GlobalAveragePooling1D(name="pool")(x)
    posture = layers.Flatten(name="posture")(ops.square(down) * POSTURE)
    signs = [layers.Flatten(name="signs")(down * POSTURE)] if axes else []
    x = ops.concatenate([x, posture, *signs], axis=-1)
    x = layers.Dropout(dropout, name="dropout")(x)
    scores = layers.Dense(len(classes), activation="softmax", name="scores")(x)
    return keras.Model(window, scores, name="har-wild")


def _orientation_free(g: Any) -> tuple[Any, Any]:
    """Return the direction of gravity [1, 3] and the channels [100, 3] of acceleration g [100, 3], in gravities."""
    from keras import ops

    gravity = ops.mean(g, axis=1, keepdims=True)
    down = gravity / _length(gravity)
    motion = g - gravity
    vertical = ops.sum(motion * down, axis=-1, keepdims=True)
    across = _length(motion - vertical * down)
    return down, ops.concatenate([vertical, across, _length(g) - 1.0], axis=-1)


def _length(vector: Any) -> Any:
    """Return the Euclidean length over the last axis, which is kept."""
    from keras import ops

    return ops.sqrt(ops.sum(ops.square(vector), axis=-1, keepdims=True) + _TINY)


def _convolution(x: Any, filters: int, size: int, stride: int, name: str) -> Any:
    """Convolution, batch normalisation, ReLU."""
    from keras import layers

    x = layers.Conv1D(filters, size, strides=stride, padding="same", use_bias=False, name=name)(x)
    return layers.ReLU(name=f"{name}_relu")(_normalization(f"{name}_bn")(x))


def _residual(x: Any, filters: int, stride: int, name: str) -> Any:
    """Two convolutions beside a skip connection, which is projected where the shape changes."""
    from keras import layers

    y = _convolution(x, filters, 5, stride, f"{name}_conv1")
    y = layers.Conv1D(filters, 3, padding="same", use_bias=False, name=f"{name}_conv2")(y)
    y = _normalization(f"{name}_conv2_bn")(y)
    if stride > 1 or x.shape[-1] != filters:
        x = layers.Conv1D(filters, 1, strides=stride, use_bias=False, name=f"{name}_skip")(x)
        x = _normalization(f"{name}_skip_bn")(x)
    return layers.ReLU(name=f"{name}_relu")(layers.Add(name=f"{name}_add")([x, y]))


def _normalization(name: str) -> Any:
    from keras import layers

    return layers.BatchNormalization(momentum=MOMENTUM, name=name)


MODEL = BuiltinModel(
    name="har-wild",
    summary="human activity from a phone's accelerometer, 5 s windows",
    classes=CLASSES,
    input_shape=(WINDOW, 3),
    input_dtype="float32",
    input_meaning="acceleration with gravity, x y z, in m/s^2, Android's sign, 20 Hz",
    build=build,
    plan={
        "pacing": {"name": "rounds", "cohort": 32, "over_selection": 1.25, "quorum": 8, "deadline_s": 60.0},
        "server_optimizer": {"name": "sgd", "learning_rate": 1.0, "momentum": 0.5},
        "local": {"epochs": 1, "learning_rate": 0.05},
        "limits": {"max_norm": 64.0},
    },
)
