"""Check a Keras model and make the blueprint of its program."""

from collections.abc import Sequence
from typing import Any

import keras

from flsys_ray.errors import NotLowerable, ProgramInvalid
from flsys_ray.programs.lowering.layers.activations import softmax
from flsys_ray.programs.lowering.leaves import collect
from flsys_ray.programs.lowering.optimizers import LOCAL_OPTIMIZERS
from flsys_ray.programs.lowering.registry import activation_lowering
from flsys_ray.programs.lowering.replay import graph_of, refusal
from flsys_ray.programs.lowering.signatures import Blueprint, Logits


def blueprint_of(model: Any, classes: Sequence[str], batch_size: int, local_optimizer: str) -> Blueprint:
    """Return the blueprint of a model's program.

    Raises:
        NotLowerable: the model, or a layer of it, is of a kind that has no lowering.
        ProgramInvalid: the model does not fit `classes`, or an option is out of range.
    """
    if keras.backend.backend() != "tensorflow":
        raise ProgramInvalid(f"compile: Keras runs on {keras.backend.backend()!r}; set KERAS_BACKEND=tensorflow")
    if local_optimizer not in LOCAL_OPTIMIZERS:
        known = ", ".join(LOCAL_OPTIMIZERS)
        raise ProgramInvalid(f"compile: local_optimizer {local_optimizer!r} is none of {known}")
    if batch_size < 1:
        raise ProgramInvalid(f"compile: batch_size is {batch_size}, at least 1 is needed")
    graph = _graph(model)
    input_shape, input_dtype = _input(graph)
    _check_output(graph, classes)
    return Blueprint(
        graph=graph,
        logits=_logits(graph),
        leaves=collect(graph),
        optimizer=LOCAL_OPTIMIZERS[local_optimizer],
        batch_size=batch_size,
        input_shape=input_shape,
        input_dtype=input_dtype,
    )


def _graph(model: Any) -> Any:
    if not isinstance(model, keras.Model):
        raise ProgramInvalid(f"compile: a keras.Model is needed, not {type(model).__name__}")
    graph = graph_of(model)
    if graph is None and isinstance(model, keras.Sequential) and type(model) is keras.Sequential:
        raise ProgramInvalid(f"model {model.name!r}: it is not built; add keras.Input(shape) as its first layer")
    if graph is None:
        raise NotLowerable(
            f"model {model.name!r}: a subclassed model has no graph; build it with keras.Model(inputs, outputs)",
            type(model).__name__,
            model.name,
        )
    for what, tensors in (("inputs", graph.inputs), ("outputs", graph.outputs)):
        if len(tensors) != 1:
            raise NotLowerable(f"model {model.name!r}: it has {len(tensors)} {what}, one is supported", "", model.name)
    return graph


def _input(graph: Any) -> tuple[tuple[int, ...], str]:
    tensor = graph.inputs[0]
    shape = tuple(tensor.shape[1:])
    if not shape or any(n is None for n in shape):
        raise ProgramInvalid(f"model {graph.name!r}: input shape {tuple(tensor.shape)} must be fixed but for the batch")
    dtype = {"float32": "float32", "int32": "int32", "int64": "int32"}.get(tensor.dtype)
    if dtype is None:
        raise ProgramInvalid(f"model {graph.name!r}: input is {tensor.dtype}, float32 or int32 is supported")
    return shape, dtype


def _check_output(graph: Any, classes: Sequence[str]) -> None:
    shape = tuple(graph.outputs[0].shape)
    if isinstance(classes, str) or len(classes) < 2 or len(set(classes)) != len(classes) or not all(classes):
        raise ProgramInvalid(f"compile: classes {classes!r} must be two or more different names, none empty")
    if len(shape) != 2:
        raise ProgramInvalid(f"model {graph.name!r}: output has shape {shape}, (None, {len(classes)}) is needed")
    if shape[1] != len(classes):
        raise ProgramInvalid(f"model {graph.name!r}: output has {shape[1]} classes, `classes` names {len(classes)}")


def _logits(graph: Any) -> Logits:
    """Find the logits: the output itself, or what a final softmax is applied to."""
    output = graph.outputs[0]
    history = output._keras_history
    layer = history.operation
    node = layer._inbound_nodes[history.node_index]
    below = node.input_tensors[0] if node.input_tensors else None
    if isinstance(layer, keras.layers.Softmax) or type(layer).__name__ == "Softmax":
        return Logits(below)
    activation = getattr(layer, "activation", None)
    nested = graph_of(layer) if isinstance(layer, keras.layers.Layer) else None
    if nested is not None:
        return _check_nested(nested, output)
    if activation is None or activation is keras.activations.linear:
        return Logits(output)
    if activation_lowering(activation) is not softmax:
        name = getattr(activation, "__name__", type(activation).__name__)
        raise refusal(layer, f"the model ends in {name!r}; end it in softmax, or in logits without activation", name)
    if type(layer) is keras.layers.Activation:
        return Logits(below)
    if type(layer) is keras.layers.Dense:
        return Logits(below, layer)
    raise refusal(layer, "a final softmax must belong to a Dense, Activation or Softmax layer", "softmax")


def _check_nested(nested: Any, output: Any) -> Logits:
    inner = _logits(nested)
    if inner.tensor is not nested.outputs[0]:
        raise refusal(nested, "a nested model that ends in softmax cannot be the last layer; leave its softmax out")
    return Logits(output)
