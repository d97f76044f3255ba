"""From a Keras model to a program file."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

from flsys_ray.errors import ProgramInvalid
from flsys_ray.programs.flatbuffer import check
from flsys_ray.programs.manifest import MANIFEST_NAME, LeafEntry, Manifest, pack, read_manifest

LocalOptimizerName = Literal["sgd", "momentum", "adam"]


@dataclass(frozen=True)
class CompiledProgram:
    """A program file in memory: `data` is what a phone downloads, and what `Program.load` takes."""

    data: bytes

    @cached_property
    def manifest(self) -> Manifest:
        """What the program says of itself."""
        return read_manifest(self.data)

    @cached_property
    def sha256(self) -> str:
        """The hash of the whole file, under which the cloud serves it."""
        return hashlib.sha256(self.data).hexdigest()

    def save(self, path: Path | str) -> Path:
        """Write the file, and return its path."""
        target = Path(path)
        target.write_bytes(self.data)
        return target


class ModelSource(Protocol):
    """A model with all that its program needs: a `flsys_ray.models.BuiltinModel` is one."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def classes(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def batch_size(self) -> int: ...  # noqa: D102
    @property
    def local_optimizer(self) -> LocalOptimizerName: ...  # noqa: D102
    @property
    def build(self) -> Callable[[Sequence[str]], Any]: ...  # noqa: D102
    @property
    def assets(self) -> Callable[[], Mapping[str, bytes]]: ...  # noqa: D102


def compile_builtin(source: ModelSource, classes: Sequence[str] | None = None) -> CompiledProgram:
    """Build a model, for other classes than its own if they are given, and compile it."""
    chosen = tuple(source.classes if classes is None else classes)
    return compile(
        source.build(chosen),
        classes=chosen,
        batch_size=source.batch_size,
        local_optimizer=source.local_optimizer,
        name=source.name,
        assets=source.assets(),
    )


def compile(  # noqa: A001 - `flsys_ray.compile` is the name that a developer looks for
    keras_model: Any,
    *,
    classes: Sequence[str],
    batch_size: int = 32,
    local_optimizer: LocalOptimizerName = "sgd",
    name: str | None = None,
    assets: Mapping[str, bytes] | None = None,
) -> CompiledProgram:
    """Compile a Keras model to a device program of built-in LiteRT operators.

    The weights that the model has are not used: version 0 comes from the program's `init`, which draws from the
    layers' own initialisers. How the model was compiled in Keras (`model.compile`) is not used either.

    Args:
        keras_model: a Functional or Sequential model with one input of fixed shape (float32 or int32) and one output
            [batch, C]: logits, or softmax.
        classes: the C class names, in the order of the outputs.
        batch_size: B, the batch of a local training step.
        local_optimizer: "sgd"; "momentum": 0.9; or "adam": 0.9, 0.999, epsilon 1e-7.
        name: the program's name; default: the model's.
        assets: files to put into the program, a tokenizer say.

    Raises:
        NotLowerable: a layer or operator has no form in built-in operators; it names both.
        ProgramInvalid: the model does not fit the contract of a program; it says how.
    """
    from flsys_ray.programs.lowering.blueprint import blueprint_of
    from flsys_ray.programs.lowering.convert import to_flatbuffer
    from flsys_ray.programs.lowering.signatures import functions_of

    if assets and MANIFEST_NAME in assets:
        raise ProgramInvalid(f"compile: an asset cannot be called {MANIFEST_NAME!r}")
    title = keras_model.name if name is None else name
    if not 1 <= len(title) <= 100:
        raise ProgramInvalid(f"compile: name {title[:20]!r} must have 1 to 100 characters")
    blueprint = blueprint_of(keras_model, classes, batch_size, local_optimizer)
    body = to_flatbuffer(functions_of(blueprint))
    manifest = _manifest(blueprint, title, classes, local_optimizer, body)
    program = CompiledProgram(pack(body, manifest, dict(assets or {})))
    check(program.data)
    return program


def _manifest(
    blueprint: Any, name: str, classes: Sequence[str], local_optimizer: LocalOptimizerName, body: bytes
) -> Manifest:
    layout = blueprint.leaves.layout
    return Manifest(
        name=name,
        flatbuffer_sha256=hashlib.sha256(body).hexdigest(),
        parameters=layout.size,
        slots=blueprint.optimizer.slots_of(blueprint.leaves.trained),
        batch_size=blueprint.batch_size,
        input_shape=blueprint.input_shape,
        input_dtype=blueprint.input_dtype,
        classes=tuple(classes),
        local_optimizer=local_optimizer,
        layout=tuple(LeafEntry.of(leaf) for leaf in layout.leaves),
    )
