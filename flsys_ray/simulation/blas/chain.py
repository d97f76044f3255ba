"""Which models are chains of layers that numpy can train: read from the Keras graph, or refused with None.

A chain is one path from input to logits, of `Conv1D` (with `MaxPooling1D` behind it), `GlobalAveragePooling1D`,
`Flatten`, `Dense` and activations, on float32. Any other model is trained by TensorFlow.
"""

import math
from dataclasses import replace
from typing import Any

import keras

from flsys_ray.programs.lowering.signatures import Blueprint
from flsys_ray.programs.lowering.windows import Windows
from flsys_ray.simulation.blas.activations import ACTIVATIONS
from flsys_ray.simulation.blas.parts import (
    Chain,
    ConvolutionPart,
    DensePart,
    FlattenPart,
    Matrix,
    MeanPart,
    Part,
    Sliding,
)


def chain_of(blueprint: Blueprint) -> Chain | None:
    """Return the parts of a model, from input to logits; None if it is no such chain."""
    variables = blueprint.leaves.variables
    plain = all(v.trainable and v.source.regularizer is None for v in variables)
    if blueprint.input_dtype != "float32" or not plain:
        return None
    layers = _path(blueprint)
    if layers is None or len({id(layer) for layer in layers}) < len(layers):
        return None
    offsets = {id(v.source): leaf.offset for v, leaf in zip(variables, blueprint.leaves.layout.leaves, strict=True)}
    parts: list[Part] = []
    for layer in layers:
        made = _with(parts, layer, offsets, blueprint.logits.dense)
        if made is None:
            return None
        parts = made
    return tuple(parts) if any(isinstance(part, DensePart) for part in parts[-1:]) else None


def _path(blueprint: Blueprint) -> list[Any] | None:
    """Return the layers between input and logits, if there is one path."""
    layers = [] if blueprint.logits.dense is None else [blueprint.logits.dense]
    tensor = blueprint.logits.tensor
    while tensor is not blueprint.graph.inputs[0]:
        history = tensor._keras_history
        node = history.operation._inbound_nodes[history.node_index]
        given = node.arguments
        if len(node.input_tensors) != 1 or given.kwargs.get("mask") is not None:
            return None
        layers.append(history.operation)
        tensor = node.input_tensors[0]
    return layers[::-1]


def _with(parts: list[Part], layer: Any, offsets: dict[int, int], last_dense: Any) -> list[Part] | None:
    """Return the parts with one more layer; None if it does not fit."""
    last = parts[-1] if parts else None
    if getattr(layer, "data_format", "channels_last") != "channels_last":
        return None
    if type(layer) is keras.layers.Flatten:
        return [*parts, FlattenPart()]
    if type(layer) is keras.layers.GlobalAveragePooling1D and not layer.keepdims:
        return [*parts, MeanPart()]
    if type(layer) is keras.layers.MaxPooling1D and isinstance(last, ConvolutionPart):
        return _pooled(parts, last, layer)
    if type(layer) is keras.layers.Dense and len(layer.input.shape) == 2:
        name = "linear" if layer is last_dense else _name(layer.activation)
        matrix = _matrix(layer, offsets)
        return None if name is None or matrix is None else [*parts, DensePart(matrix, name)]
    if type(layer) is keras.layers.Conv1D and layer.groups == 1:
        return _convolved(parts, layer, offsets)
    return _activated(parts, last, layer)


def _convolved(parts: list[Part], layer: Any, offsets: dict[int, int]) -> list[Part] | None:
    _, length, channels = layer.input.shape
    size, stride, dilation = layer.kernel_size[0], layer.strides[0], layer.dilation_rate[0]
    w = Windows.over(length, size, stride, dilation, layer.padding)
    windows = Sliding(w.size, w.stride, w.dilation, w.count, w.left)
    matrix, name = _matrix(layer, offsets), _name(layer.activation)
    if matrix is None or name is None or windows.count < 1:
        return None
    return [*parts, ConvolutionPart(matrix, windows, length, channels, name)]


def _pooled(parts: list[Part], last: ConvolutionPart, layer: Any) -> list[Part] | None:
    size = layer.pool_size[0]
    whole = layer.padding == "valid" or last.windows.count % size == 0
    if last.pool > 1 or size != layer.strides[0] or not whole or not ACTIVATIONS[last.activation].keeps_ties:
        return None
    return [*parts[:-1], replace(last, pool=size)] if last.windows.count >= size else None


def _activated(parts: list[Part], last: Part | None, layer: Any) -> list[Part] | None:
    """Return the parts with an activation that is a layer of its own."""
    plain = (
        type(layer) is keras.layers.ReLU and layer.max_value is None and not (layer.negative_slope or layer.threshold)
    )
    name = "relu" if plain else _name(layer.activation) if type(layer) is keras.layers.Activation else None
    if name is None or not isinstance(last, ConvolutionPart | DensePart) or last.activation != "linear":
        return None
    if isinstance(last, ConvolutionPart) and last.pool > 1 and not ACTIVATIONS[name].keeps_ties:
        return None
    return [*parts[:-1], replace(last, activation=name)]


def _name(activation: Any) -> str | None:
    """Return the name of an activation that there is; None for others."""
    if activation is None:
        return "linear"
    return next((name for name in ACTIVATIONS if activation is getattr(keras.activations, name)), None)


def _matrix(layer: Any, offsets: dict[int, int]) -> Matrix | None:
    """Return where a layer's kernel lies, with the bias right behind it if there is one."""
    *inner, columns = layer.kernel.shape
    rows = math.prod(inner)
    offset = offsets[id(layer.kernel)]
    bias = layer.bias is not None
    if bias and offsets[id(layer.bias)] != offset + rows * columns:
        return None
    return Matrix(offset, rows + bias, columns, bias)
