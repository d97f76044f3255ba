"""Which function lowers which Keras layer type, Keras operation or activation.

A third party lowers its own layer in the same way, in one file imported before `flsys_ray.compile` is called:

    @lowers(MyLayer)
    def my_layer(x, call):
        return x * call.weight("scale")
"""

import importlib
import pkgutil
from collections.abc import Callable
from typing import Any

Lowering = Callable[[Any, Any], Any]
"""`(x, call) -> tensor`: `x` is the layer's input (a list where the layer takes several), `call` a `replay.Call`."""

_LAYERS: dict[type, Lowering] = {}
_OPERATIONS: dict[str, Callable[..., Any]] = {}
_ACTIVATIONS: dict[Any, Callable[[Any], Any]] = {}


def lowers(*layer_types: type) -> Callable[[Lowering], Lowering]:
    """Register a function as the lowering of exactly these layer types, subclasses not included."""

    def register(function: Lowering) -> Lowering:
        for layer_type in layer_types:
            _LAYERS[layer_type] = function
        return function

    return register


def lowers_operation(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function `(operation, *args, **kwargs) -> tensor` for classes of `keras.ops`, by class name."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        for name in names:
            _OPERATIONS[name] = function
        return function

    return register


def lowers_activation(*functions: Any) -> Callable[[Callable[[Any], Any]], Callable[[Any], Any]]:
    """Register a function `tensor -> tensor` as the lowering of functions of `keras.activations`."""

    def register(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        for activation in functions:
            _ACTIVATIONS[activation] = function
        return function

    return register


def layer_lowering(layer: Any) -> Lowering | None:
    """Return the function for this layer's exact type, or None."""
    _load()
    return _LAYERS.get(type(layer))


def operation_lowering(operation: Any) -> Callable[..., Any] | None:
    """Return the function for an operation of `keras.ops` that stands in a functional graph, or None."""
    _load()
    if not type(operation).__module__.startswith("keras.src.ops."):
        return None
    return _OPERATIONS.get(type(operation).__name__)


def activation_lowering(activation: Any) -> Callable[[Any], Any] | None:
    """Return the function for an activation function, or None."""
    _load()
    try:
        return _ACTIVATIONS.get(activation)
    except TypeError:  # not hashable
        return None


def supported_layers() -> tuple[type, ...]:
    """Return every layer type that can be lowered, by name."""
    _load()
    return tuple(sorted(_LAYERS, key=lambda layer_type: layer_type.__name__))


def _load() -> None:
    """Import every module of `layers/`: each registers its functions."""
    package = importlib.import_module("flsys_ray.programs.lowering.layers")
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
