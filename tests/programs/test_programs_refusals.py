"""What cannot be lowered is refused by name: the operator, the layer, and what to do."""

from collections.abc import Callable
from typing import Any

import keras
import pytest
import tensorflow as tf
from keras import layers as L

import flsys_ray
from flsys_ray.errors import NotLowerable, ProgramInvalid
from flsys_ray.programs.lowering.registry import _LAYERS, lowers

CLASSES = ("a", "b", "c")


class Scale(L.Layer):
    """A layer of a third party."""

    def build(self, shape: Any) -> None:
        self.scale_initializer = keras.initializers.Ones()
        self.scale = self.add_weight(name="scale", shape=(shape[-1],), initializer=self.scale_initializer)

    def call(self, x: Any) -> Any:
        return x * self.scale


class OwnDense(L.Dense):
    """A subclass may compute anything: its parent's lowering does not count."""


class Subclassed(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.dense = L.Dense(3)

    def call(self, x: Any) -> Any:
        return self.dense(x)


def _model(*middle: Any, shape: tuple[int, ...] = (6, 3), end: Any = None) -> Any:
    x = h = keras.Input(shape)
    for layer in middle:
        h = layer(h)
    return keras.Model(x, (end or L.Dense(3, name="end"))(h))


def _subclassed() -> Any:
    model = Subclassed()
    model(tf.zeros((1, 4)))
    return model


def _mixed() -> Any:
    return _model(L.Flatten(), L.Dense(4, dtype="mixed_bfloat16", name="mixed"))


FLAT = L.Flatten
NOT_LOWERABLE: dict[str, tuple[Callable[[], Any], str, str]] = {
    # model, operator, layer
    "lstm": (lambda: _model(L.LSTM(4, name="memory")), "LSTM", "memory"),
    "gru": (lambda: _model(L.GRU(4, name="memory")), "GRU", "memory"),
    "unit normalization": (lambda: _model(L.UnitNormalization(name="unit"), FLAT()), "UnitNormalization", "unit"),
    "lambda": (lambda: _model(L.Lambda(lambda x: x * 2, name="mine"), FLAT()), "Lambda", "mine"),
    "custom layer": (lambda: _model(Scale(name="mine"), FLAT()), "Scale", "mine"),
    "subclass of a known layer": (lambda: _model(FLAT(), OwnDense(4, name="own")), "OwnDense", "own"),
    "inside a nested model": (
        lambda: _model(keras.Sequential([keras.Input((6, 3)), L.LSTM(4, name="deep")], name="inner")),
        "LSTM",
        "deep",
    ),
    "keras.ops": (lambda: _model(lambda x: keras.ops.cumsum(x, axis=1), FLAT()), "Cumsum", ""),
    "reduction over the batch": (lambda: _model(FLAT(), lambda x: x - keras.ops.mean(x, axis=0)), "Mean", ""),
    "activation function": (lambda: _model(FLAT(), L.Dense(4, lambda x: x**2, name="odd")), "<lambda>", "odd"),
    "initialiser": (lambda: _model(FLAT(), L.Dense(4, kernel_initializer="orthogonal", name="d")), "Orthogonal", "d"),
    "constraint": (lambda: _model(FLAT(), L.Dense(4, kernel_constraint="max_norm", name="d")), "constraint", "d"),
    "regulariser": (
        lambda: _model(FLAT(), L.Dense(4, kernel_regularizer="orthogonal_regularizer", name="d")),
        "OrthogonalRegularizer",
        "d",
    ),
    "activity regulariser": (
        lambda: _model(FLAT(), L.Dense(4, activity_regularizer="l2", name="d")),
        "activity_regularizer",
        "d",
    ),
    "mixed precision": (_mixed, "Dense", "mixed"),
    "batch norm over another axis": (lambda: _model(L.BatchNormalization(axis=1, name="bn"), FLAT()), "", "bn"),
    "channels first": (lambda: _model(L.MaxPooling1D(2, data_format="channels_first", name="p"), FLAT()), "", "p"),
    "threshold": (lambda: _model(L.ReLU(threshold=1.0, name="r"), FLAT()), "ReLU", "r"),
    "last activation": (lambda: _model(FLAT(), end=L.Dense(3, "sigmoid", name="end")), "sigmoid", "end"),
    "subclassed model": (_subclassed, "Subclassed", ""),
    "no parameters": (lambda: _model(FLAT(), shape=(3,), end=L.Activation("softmax")), "", ""),
}


@pytest.mark.parametrize("case", NOT_LOWERABLE)
def test_not_lowerable_names_operator_and_layer(case: str) -> None:
    build, operator, layer = NOT_LOWERABLE[case]
    model = build()
    with pytest.raises(NotLowerable) as caught:
        flsys_ray.compile(model, classes=CLASSES)
    error = caught.value
    if operator:
        assert error.operator == operator
    if layer:
        assert error.layer == layer
        assert repr(layer) in error.message
    assert len(error.message) < 300


def _two_inputs() -> Any:
    a, b = keras.Input((4,)), keras.Input((4,))
    return keras.Model([a, b], L.Dense(3)(L.Add()([a, b])))


def _two_outputs() -> Any:
    x = keras.Input((4,))
    return keras.Model(x, [L.Dense(3)(x), L.Dense(3)(x)])


INVALID: dict[str, tuple[Callable[[], Any], dict[str, Any], str]] = {
    "two inputs": (_two_inputs, {}, "2 inputs"),
    "two outputs": (_two_outputs, {}, "2 outputs"),
    "not a model": (lambda: L.Dense(3), {}, "keras.Model"),
    "not built": (lambda: keras.Sequential([L.Dense(3)]), {}, "keras.Input"),
    "free length": (lambda: _model(L.GlobalMaxPooling1D(), shape=(None, 3)), {}, "fixed"),  # type: ignore[arg-type]
    "output rank": (lambda: _model(L.Dense(3)), {}, "output has shape (None, 6, 3)"),
    "class count": (lambda: _model(FLAT()), {"classes": ("a", "b")}, "output has 3 classes, `classes` names 2"),
    "class names": (lambda: _model(FLAT()), {"classes": ("a", "b", "b")}, "different names"),
    "classes as text": (lambda: _model(FLAT()), {"classes": "abc"}, "different names"),
    "input dtype": (
        lambda: (lambda x: keras.Model(x, L.Dense(3)(L.Flatten()(x))))(keras.Input((4,), dtype="uint8")),
        {},
        "uint8",
    ),
    "optimizer": (lambda: _model(FLAT()), {"local_optimizer": "lion"}, "sgd, momentum, adam"),
    "batch size": (lambda: _model(FLAT()), {"batch_size": 0}, "batch_size"),
    "empty class": (lambda: _model(FLAT()), {"classes": ("a", "b", "")}, "none empty"),
    "name": (lambda: _model(FLAT()), {"name": "n" * 101}, "1 to 100 characters"),
    "asset": (lambda: _model(FLAT()), {"assets": {"manifest.json": b""}}, "manifest.json"),
}


@pytest.mark.parametrize("case", INVALID)
def test_what_does_not_fit_the_contract_is_refused(case: str) -> None:
    build, options, says = INVALID[case]
    with pytest.raises(ProgramInvalid, match=says.replace("(", r"\(").replace(")", r"\)")):
        flsys_ray.compile(build(), **{"classes": CLASSES, **options})


def test_a_third_party_lowers_its_own_layer() -> None:
    try:
        lowers(Scale)(lambda x, call: x * call.weight("scale"))
        program = flsys_ray.compile(_model(Scale(name="mine"), FLAT()), classes=CLASSES, batch_size=2)
    finally:
        _LAYERS.pop(Scale)
    assert program.manifest.layout[0].name == "mine/scale"


def test_the_converter_names_operator_and_layer() -> None:
    """A lowering function that uses an operator without built-in form is the last way to fail."""
    try:
        lowers(Scale)(lambda x, call: tf.math.erf(x) * call.weight("scale"))
        with pytest.raises(NotLowerable) as caught:
            flsys_ray.compile(_model(Scale(name="erf_layer"), FLAT()), classes=CLASSES, batch_size=2)
    finally:
        _LAYERS.pop(Scale)
    assert caught.value.operator == "Erf"
    assert caught.value.layer == "erf_layer"
