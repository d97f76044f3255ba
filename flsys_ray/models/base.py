"""What a built-in model is, and how built-in models are found.

A model is one file of this folder with a module constant `MODEL`. Other distributions add theirs through entry points
of the group `flsys_ray.models`, each naming a `BuiltinModel`. Nothing here loads TensorFlow until `build` is called.
`flsys_ray.programs.compile.compile_builtin` makes a program of one.
"""

import importlib
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Literal

from flsys_ray.errors import NotFound

PACKAGE = "flsys_ray.models"


@dataclass(frozen=True)
class BuiltinModel:
    """A model that comes with the platform.

    Attributes:
        name: what `--builtin` takes.
        summary: one line.
        classes: the default classes.
        input_shape: one example, without the batch.
        input_dtype: "float32" or "int32".
        input_meaning: what the numbers are, with unit and sampling.
        local_optimizer: the program's local optimizer.
        batch_size: examples in a local training step.
        build: `(classes) -> keras.Model`; loads Keras.
        plan: the default training plan, as YAML says it.
        assets: files that go into the program.
    """

    name: str
    summary: str
    classes: tuple[str, ...]
    input_shape: tuple[int, ...]
    input_dtype: Literal["float32", "int32"]
    input_meaning: str
    build: Callable[[Sequence[str]], Any]
    plan: Mapping[str, Any]
    local_optimizer: Literal["sgd", "momentum", "adam"] = "sgd"
    batch_size: int = 32
    assets: Callable[[], Mapping[str, bytes]] = dict

    def default_plan(self) -> dict[str, Any]:
        """Return a copy of the default training plan, for `parse_plan`."""
        return {k: dict(v) if isinstance(v, Mapping) else v for k, v in self.plan.items()}


@cache
def all_models() -> Mapping[str, BuiltinModel]:
    """Return every built-in model by name, sorted. Raises `TypeError` if two share one."""
    package = importlib.import_module(PACKAGE)
    modules = [importlib.import_module(f"{PACKAGE}.{m.name}") for m in pkgutil.iter_modules(package.__path__)]
    models = [module.MODEL for module in modules if hasattr(module, "MODEL")]
    models += [point.load() for point in entry_points(group=PACKAGE)]
    found: dict[str, BuiltinModel] = {}
    for model in models:
        if found.setdefault(model.name, model) is not model:
            raise TypeError(f"{PACKAGE}: two models are called {model.name!r}")
    return dict(sorted(found.items()))


def get(name: str) -> BuiltinModel:
    """Return the built-in model of this name. Raises `NotFound` that lists the names there are."""
    try:
        return all_models()[name]
    except KeyError:
        raise NotFound(f"no built-in model {name!r}; there are: {', '.join(all_models())}") from None
