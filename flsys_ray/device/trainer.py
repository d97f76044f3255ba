"""Local training: examples and a base version in, the bytes of an update out. No network, no database.

The work of an assignment is a function of its id, its base version and the examples: the order of the batches is drawn
from the assignment's id, so a training that was killed and begun again gives the same update from the same examples.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from flsys_ray.core.layout import Vector
from flsys_ray.core.rng import generator
from flsys_ray.device.augmenting import Augment, augmenting
from flsys_ray.device.controls import Controls, decode_controls, own_control
from flsys_ray.device.examples import Batch
from flsys_ray.device.mixing import mixed
from flsys_ray.device.uploads import Told, Upload, compressed
from flsys_ray.errors import DataInvalid, UpdateUnusable
from flsys_ray.programs.manifest import Manifest, read_tokenizer
from flsys_ray.programs.runner import Evaluated, Program, Trained
from flsys_ray.tokenizer import Tokenizer
from flsys_ray.wire.schemas import AssignmentMessage, ClassCounts, EvaluationRequest
from flsys_ray.wire.tensors import MAX_CLASSES, MAX_TRAIN_S, decode_vector, encode_update


class DeviceProgram(Protocol):
    """What the phone asks of a program; `programs.runner.Program` is the real one."""

    @property
    def manifest(self) -> Manifest:
        """What the program says of itself."""

    def train(
        self,
        parameters: Vector,
        x: NDArray[Any],
        y: NDArray[Any],
        *,
        epochs: int,
        learning_rate: float,
        proximal_mu: float,
        rng: np.random.Generator,
        max_steps: int | None,
        should_stop: Callable[[], bool],
        correction: Vector | None = None,
        augment: Augment | None = None,
    ) -> Trained:
        """Train from `parameters` [P] on x [N, ...], y [N]; `should_stop` is asked before each step.

        `correction` [P] is added to the gradient of each step. `augment` makes the x of each epoch.
        """

    def evaluate(self, parameters: Vector, x: NDArray[Any], y: NDArray[Any]) -> Evaluated:
        """Return the sums of loss and correct answers."""

    def infer(self, parameters: Vector, x: NDArray[Any]) -> NDArray[np.float32]:
        """Return probabilities: [C] for one example, [N, C] for N."""


@dataclass(frozen=True)
class Programs:
    """Loaded programs by hash, the `most` recently used; many phones of one process may share it."""

    load: Callable[[Path], DeviceProgram] = Program.load
    most: int = 8
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)
    _loaded: OrderedDict[str, DeviceProgram] = field(default_factory=OrderedDict, repr=False)
    _tokenizers: OrderedDict[str, Tokenizer | None] = field(default_factory=OrderedDict, repr=False)

    def get(self, sha256: str, path: Path) -> DeviceProgram:
        """Return the program with this hash, reading `path` if it is not loaded."""
        with self._lock:
            program = self._loaded.pop(sha256, None) or self.load(path)
            self._loaded[sha256] = program
            while len(self._loaded) > self.most:
                self._loaded.popitem(last=False)
        return program

    def tokenizer(self, sha256: str, path: Path) -> Tokenizer | None:
        """Return the tokenizer of the program with this hash; None if it takes no texts."""
        with self._lock:
            if sha256 not in self._tokenizers:
                self._tokenizers[sha256] = read_tokenizer(path.read_bytes())
                while len(self._tokenizers) > self.most:
                    self._tokenizers.popitem(last=False)
            return self._tokenizers[sha256]


@dataclass(frozen=True, slots=True)
class LocalResult:
    """The outcome of local training. `update` are the bytes to upload, None if it was stopped before its end.

    `control` and `residual` are the phone's own (safetensors) once the update is counted, if there are any.
    """

    update: bytes | None
    num_examples: int
    loss: float
    evaluation: EvaluationRequest | None
    control: bytes | None = None
    residual: bytes | None = None


@dataclass(frozen=True, slots=True)
class Carried:
    """What a phone brings to a training beside its own examples.

    From its counted updates `controls`, for a rule that has them, and `residual`, for a lossy compression; and its
    `portion` of the model's shared set.
    """

    controls: Controls | None = None
    residual: bytes | None = None
    portion: Batch | None = None


@dataclass(frozen=True, slots=True)
class Telling:
    """What the cloud is told of a training: by which clock it is timed, and whether labels may be counted.

    Labels are counted only if the assignment asks for it too.
    """

    clock: Callable[[], float] | None = None
    label_counts: bool = False


def train_assignment(
    program: DeviceProgram,
    weights: bytes,
    assignment: AssignmentMessage,
    parts: tuple[Batch, Batch | None],
    should_stop: Callable[[], bool],
    carried: Carried = Carried(),
    telling: Telling = Telling(),
) -> LocalResult:
    """Train an assignment's base version on `parts` (training, held-out); evaluate the base version on the second.

    What is told of examples (how many, of which classes) is about the phone's own: see `augmentation.shared`.

    Raises:
        UpdateUnusable: the base version is not of this program, training diverged, or the delta is not finite.
        DataInvalid: the examples do not fit the program.
    """
    training, held_out = parts
    base = decode_vector(weights, "parameters", program.manifest.parameters)
    local = assignment.local
    started_at = telling.clock() if telling.clock is not None else 0.0
    pair = decode_controls(carried.controls, program.manifest) if carried.controls is not None else None
    seen = mixed(training, carried.portion)
    trained = program.train(
        base,
        seen.x,
        seen.y,
        epochs=local.epochs,
        learning_rate=local.learning_rate,
        proximal_mu=local.proximal_mu,
        rng=generator(0, "local-training", assignment.round, assignment.assignment_id),
        max_steps=local.max_steps,
        should_stop=should_stop,
        correction=pair.correction if pair is not None else None,
        augment=augmenting(assignment, program.manifest),
    )
    count = len(training.y)
    if not trained.completed:
        return LocalResult(None, count, trained.loss, None)
    delta = np.asarray(trained.parameters, np.float32) - base
    if not np.isfinite(delta).all() or not np.isfinite(trained.loss):
        raise UpdateUnusable(f"{assignment.model}: the delta of assignment {assignment.assignment_id} is not finite")
    evaluation = _evaluate(program, base, held_out)
    train_s = min(max(0.0, telling.clock() - started_at), MAX_TRAIN_S) if telling.clock is not None else None
    counts = label_counts(training, program.manifest) if telling.label_counts and assignment.label_counts else None
    told = Told(count, trained.loss, max(1, trained.steps), train_s, counts)
    if pair is None:
        upload, own = compressed(delta, told, assignment, program.manifest, carried.residual), None
    else:
        change = pair.change(delta, trained.steps, local.learning_rate)
        upload = Upload(
            encode_update(delta, told.num_examples, told.loss, told.num_steps, control=change, more=told.more)
        )
        own = own_control(pair, change)
    return LocalResult(upload.body, count, trained.loss, evaluation, own, upload.residual)


def label_counts(batch: Batch, manifest: Manifest) -> tuple[int, ...] | None:
    """Return how many examples of each class there are; None if there are more classes than can be told."""
    classes = len(manifest.classes)
    return tuple(np.bincount(batch.y, minlength=classes).tolist()) if classes <= MAX_CLASSES else None


def evaluate_per_class(program: DeviceProgram, weights: bytes, batch: Batch) -> EvaluationRequest | None:
    """Evaluate a version, class by class; None if its loss is no number. Raises `DataInvalid`, `UpdateUnusable`."""
    vector = decode_vector(weights, "parameters", program.manifest.parameters)
    loss_sum = program.evaluate(vector, batch.x, batch.y).loss_sum
    right = program.infer(vector, batch.x).argmax(axis=1) == batch.y
    if not np.isfinite(loss_sum):
        return None
    per_class = [
        ClassCounts(label=int(label), count=int((batch.y == label).sum()), correct=int(right[batch.y == label].sum()))
        for label in np.unique(batch.y)
    ]
    return EvaluationRequest(
        loss_sum=max(0.0, loss_sum), correct=int(right.sum()), count=len(batch.y), per_class=per_class
    )


def infer(program: DeviceProgram, weights: bytes, x: NDArray[Any]) -> NDArray[np.float32]:
    """Return scores [N, C] for examples x [N, ...], or [1, C] for one x. Raises `DataInvalid` for another shape."""
    manifest = program.manifest
    x = np.asarray(x, dtype=manifest.input_dtype)
    rows = x[None] if x.shape == manifest.input_shape else x
    if rows.shape[1:] != manifest.input_shape:
        raise DataInvalid(f"infer: x has shape {x.shape}, {manifest.name!r} takes {manifest.input_shape}, or N of them")
    return program.infer(decode_vector(weights, "parameters", manifest.parameters), rows)


def _evaluate(program: DeviceProgram, base: Vector, held_out: Batch | None) -> EvaluationRequest | None:
    if held_out is None:
        return None
    found = program.evaluate(base, held_out.x, held_out.y)
    if not np.isfinite(found.loss_sum):
        return None
    return EvaluationRequest(loss_sum=max(0.0, found.loss_sum), correct=found.correct, count=found.examples)
