"""The variables of a model: names, places in the flat vector, how they start and how they are regularised."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from flsys_ray.core.layout import Layout
from flsys_ray.errors import NotLowerable
from flsys_ray.programs.lowering import registry
from flsys_ray.programs.lowering.replay import graph_of, refusal

Tensor = Any


@dataclass(frozen=True)
class Variable:
    """One Keras variable that becomes a leaf."""

    name: str
    shape: tuple[int, ...]
    trainable: bool
    layer: Any
    source: Any
    initializer: Any


@dataclass(frozen=True)
class Leaves:
    """All leaves of a model: those that are trained first, in the order of the layers, then the other state.

    With the trained part in front, a local optimizer works on one slice of the vector.
    """

    variables: tuple[Variable, ...]

    @property
    def layout(self) -> Layout:
        """The layout that goes into the manifest."""
        return Layout.of((v.name, v.shape, v.trainable) for v in self.variables)

    @property
    def trained(self) -> int:
        """T, the number of trained elements: the vector's first T."""
        return sum(leaf.size for leaf in self.layout.leaves if leaf.trainable)

    def unpack(self, vector: Tensor) -> dict[int, Tensor]:
        """Return each variable's value, by `id` of the Keras variable, out of the flat vector [P]."""
        sizes = [leaf.size for leaf in self.layout.leaves]
        parts = tf.split(vector, sizes) if len(sizes) > 1 else [vector]
        return {id(v.source): tf.reshape(part, v.shape) for v, part in zip(self.variables, parts, strict=True)}

    def pack(self, values: list[Tensor]) -> Tensor:
        """Return one flat vector of these tensors."""
        flat = [tf.reshape(value, [-1]) for value in values]
        return tf.concat(flat, 0) if len(flat) > 1 else flat[0]

    def regularization(self, values: dict[int, Tensor]) -> Tensor | None:
        """Return the sum of the model's weight penalties, or None if it has none."""
        penalties = [
            _penalty(v, values[id(v.source)])
            for v in self.variables
            if v.trainable and v.source.regularizer is not None
        ]
        return tf.add_n(penalties) if penalties else None


def collect(graph: Any) -> Leaves:
    """Return the leaves of a functional graph.

    Raises:
        NotLowerable: a layer without lowering, or with a constraint, an activity regulariser or a dtype that has none.
    """
    found: dict[int, Variable] = {}
    for path, layer in _walk(graph, ""):
        _check_layer(layer)
        for variable in _own_variables(layer):
            if id(variable) not in found:
                found[id(variable)] = _variable(path, layer, variable)
    ordered = sorted(found.values(), key=lambda v: not v.trainable)
    if not any(v.trainable for v in ordered):
        raise NotLowerable("the model has no trainable parameter", "", graph.name)
    return Leaves(tuple(ordered))


def _walk(graph: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    for layer in graph.layers:
        if isinstance(layer, keras.layers.InputLayer):
            continue
        nested = graph_of(layer)
        if nested is not None:
            yield from _walk(nested, f"{prefix}{layer.name}/")
        else:
            yield f"{prefix}{layer.name}", layer


def _check_layer(layer: Any) -> None:
    if isinstance(layer, keras.Model):
        raise refusal(layer, "a subclassed model has no graph; build it with keras.Model(inputs, outputs)")
    if registry.layer_lowering(layer) is None:
        raise refusal(layer, "there is no lowering for this layer type to built-in LiteRT operators")
    if getattr(layer, "activity_regularizer", None) is not None:
        raise refusal(layer, "an activity regulariser has no lowering; regularise the weights", "activity_regularizer")
    if getattr(layer, "lora_enabled", False):
        raise refusal(layer, "LoRA weights have no lowering; merge them first", "lora")
    if getattr(layer, "quantization_mode", None):
        raise refusal(layer, "a quantised layer cannot be trained", "quantization")


def _own_variables(layer: Any) -> list[Any]:
    """Variables of a layer, seeds of random generators and baked constants left out."""
    if isinstance(layer, keras.layers.Normalization):
        return []
    return [v for v in layer.variables if v.dtype == "float32"]


def _variable(path: str, layer: Any, variable: Any) -> Variable:
    if variable.constraint is not None:
        raise refusal(layer, f"the constraint of {variable.name!r} has no lowering", "constraint")
    owner = _owner(layer, variable)
    initializer = _initializer(owner, variable.name)
    if initializer is None:
        raise refusal(layer, f"it does not say how {variable.name!r} starts")
    trainable = bool(variable.trainable) and bool(layer.trainable)
    name = path if owner is layer else f"{path}/{owner.name}"
    return Variable(f"{name}/{variable.name}", tuple(variable.shape), trainable, layer, variable, initializer)


def _initializer(owner: Any, name: str) -> Any:
    """Where a layer says how a variable starts: `kernel_initializer`; depthwise layers say `depthwise_initializer`."""
    for attribute in (name, name.removesuffix("_kernel"), "depthwise"):
        if getattr(owner, f"{attribute}_initializer", None) is not None:
            return getattr(owner, f"{attribute}_initializer")
    return None


def _owner(layer: Any, variable: Any) -> Any:
    """The layer itself, or the layer inside it (an activation with weights) that made the variable."""
    activation = getattr(layer, "activation", None)
    if isinstance(activation, keras.layers.Layer) and any(variable is v for v in activation.variables):
        return activation
    return layer


def _penalty(variable: Variable, value: Tensor) -> Tensor:
    """Weight penalties of Keras: L1 `l1 sum|w|`, L2 `l2 sum w^2`, and both."""
    regularizer = variable.source.regularizer
    if type(regularizer).__name__ not in ("L1", "L2", "L1L2"):
        kind = type(regularizer).__name__
        raise refusal(variable.layer, f"regulariser {kind!r} of {variable.name!r} has no lowering", kind)
    total: Tensor = tf.zeros([])
    if getattr(regularizer, "l1", 0.0):
        total += float(regularizer.l1) * tf.reduce_sum(tf.abs(value))
    if getattr(regularizer, "l2", 0.0):
        total += float(regularizer.l2) * tf.reduce_sum(value * value)
    return total
