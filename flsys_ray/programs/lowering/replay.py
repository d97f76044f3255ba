"""Walk a Keras graph and compute it with the lowering functions."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import keras
import tensorflow as tf

from flsys_ray.errors import NotLowerable
from flsys_ray.programs.lowering import registry
from flsys_ray.programs.lowering.random import Noise

Tensor = Any


@dataclass
class Replay:
    """One evaluation of a model: its leaves' values, and what the layers leave behind.

    Attributes:
        values: value of each variable, by `id(variable)`.
        training: whether layers behave as in training.
        rows: [B] float32, 1 for a real example and 0 for a padded one; None: all are real.
        noise: where dropout gets its random numbers; None outside training.
        instead: lowering functions, by layer type, that are taken before those of the registry: another runtime may
            have faster forms of the same mathematics.
        updates: new values of state that is not trained, by `id(variable)`.
    """

    values: dict[int, Tensor]
    training: bool
    rows: Tensor | None = None
    noise: Noise | None = None
    instead: Mapping[type, registry.Lowering] = field(default_factory=dict)
    updates: dict[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Call:
    """What a lowering function sees of one call of one layer."""

    layer: Any
    replay: Replay
    mask: Tensor | None = None

    @property
    def training(self) -> bool:
        """Whether the layer behaves as in training."""
        return self.replay.training

    def weight(self, attribute: str) -> Tensor:
        """Return the value of the layer's variable of this name; None if the layer has none."""
        variable = getattr(self.layer, attribute, None)
        return None if variable is None else self.replay.values[id(variable)]

    def update(self, attribute: str, value: Tensor) -> None:
        """Set the new value of a variable that is not trained; later calls of the layer see it."""
        variable = getattr(self.layer, attribute)
        self.replay.values[id(variable)] = value
        self.replay.updates[id(variable)] = value

    def uniform(self, shape: tuple[int, ...]) -> Tensor:
        """Return fresh random numbers in (0, 1)."""
        if self.replay.noise is None:
            raise self.refuse("it draws random numbers outside training")
        return self.replay.noise.uniform(shape)

    def normal(self, shape: tuple[int, ...]) -> Tensor:
        """Return fresh standard normal numbers."""
        if self.replay.noise is None:
            raise self.refuse("it draws random numbers outside training")
        return self.replay.noise.normal(shape)

    def activate(self, x: Tensor, activation: Any) -> Tensor:
        """Apply an activation: a function of `keras.activations`, or a layer."""
        if activation is None:
            return x
        function = registry.activation_lowering(activation)
        if function is not None:
            return function(x)
        if isinstance(activation, keras.layers.Layer):
            return lower_layer(activation, x, self.replay, {})
        name = getattr(activation, "__name__", type(activation).__name__)
        raise self.refuse(f"its activation {name!r} has no lowering", operator=name)

    def refuse(self, why: str, operator: str = "") -> NotLowerable:
        """Return the error that says that this layer cannot be lowered, and why."""
        return refusal(self.layer, why, operator)


def refusal(layer: Any, why: str, operator: str = "") -> NotLowerable:
    """Return the error that says that a layer or operation of the graph cannot be lowered, and why."""
    kind = type(layer).__name__
    return NotLowerable(f"layer {layer.name!r} ({kind}): {why}", operator or kind, layer.name)


def run_graph(model: Any, inputs: Tensor, replay: Replay, outputs: Any = None) -> Tensor:
    """Compute a functional graph.

    Args:
        model: a `keras.Functional` with one input.
        inputs: the value of its input.
        replay: values and mode.
        outputs: the KerasTensor to compute; default: the model's output.
    """
    return _Walk({id(model.inputs[0]): inputs}, replay).value(model.outputs[0] if outputs is None else outputs)


class _Walk:
    """Values of KerasTensors, each computed once. Iterative: a deep model does not exhaust Python's stack."""

    def __init__(self, known: dict[int, Tensor], replay: Replay) -> None:
        self._known = known
        self._replay = replay

    def value(self, wanted: Any) -> Tensor:
        pending = [wanted]
        while pending:
            tensor = pending[-1]
            if id(tensor) in self._known:
                pending.pop()
                continue
            history = tensor._keras_history
            node = history.operation._inbound_nodes[history.node_index]
            missing = [t for t in node.input_tensors if id(t) not in self._known]
            if missing:
                pending.extend(missing)
                continue
            self._compute(node)
        return self._known[id(wanted)]

    def _compute(self, node: Any) -> None:
        if len(node.outputs) != 1:
            raise refusal(node.operation, f"it has {len(node.outputs)} outputs, one is supported")
        if node.is_input:
            raise refusal(node.operation, "it is an input beside the model's one input")
        args, kwargs = node.arguments.fill_in(self._known)
        operation = node.operation
        # An operation's own name counts calls in this process; its class does not, and gives the same program twice.
        known = isinstance(operation, keras.layers.Layer)
        with tf.name_scope(_scope(operation.name if known else type(operation).__name__)):
            self._known[id(node.outputs[0])] = self._apply(node.operation, args, kwargs)

    def _apply(self, operation: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        if isinstance(operation, keras.layers.Layer):
            if len(args) != 1:
                raise refusal(operation, f"it is called with {len(args)} positional arguments, one is supported")
            return lower_layer(operation, args[0], self._replay, kwargs)
        function = registry.operation_lowering(operation)
        if function is None:
            raise refusal(operation, f"keras.ops operation {type(operation).__name__!r} has no lowering")
        try:
            return function(operation, *args, **kwargs)
        except NotImplementedError as error:
            raise refusal(operation, str(error)) from error


def _scope(name: str) -> str:
    return re.sub(r"^[^A-Za-z0-9.]", ".", re.sub(r"[^A-Za-z0-9_.\\/-]", "_", name))


def graph_of(model: Any) -> Any | None:
    """Return the functional graph of a Functional or Sequential model; None for any other."""
    kind = f"{type(model).__module__}.{type(model).__name__}"
    if kind == "keras.src.models.functional.Functional":
        return model
    if kind == "keras.src.models.sequential.Sequential":
        return model._functional
    return None


def lower_layer(layer: Any, x: Tensor, replay: Replay, kwargs: dict[str, Any]) -> Tensor:
    """Compute one call of one layer.

    A `training` argument that the graph was built with is ignored, as Keras does where the model is called with
    one.

    Raises:
        NotLowerable: the layer's type is not known, or it is used in a way that cannot be lowered.
    """
    mask = kwargs.get("mask")
    extra = sorted(k for k, v in kwargs.items() if k not in ("training", "mask") and v is not None)
    if extra:
        raise refusal(layer, f"call argument {extra[0]!r} has no lowering")
    graph = graph_of(layer)
    if graph is not None:
        if mask is not None:
            raise refusal(layer, "a nested model cannot be called with a mask")
        return run_graph(graph, x, replay)
    function = replay.instead.get(type(layer)) or registry.layer_lowering(layer)
    if function is None:
        raise refusal(layer, "there is no lowering for this layer type to built-in LiteRT operators")
    if layer.compute_dtype != "float32":
        raise refusal(layer, f"it computes in {layer.compute_dtype}, only float32 is supported")
    return function(x, Call(layer, replay, mask))
