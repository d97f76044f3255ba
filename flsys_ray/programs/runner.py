"""Run a device program with LiteRT. What a phone loads: numpy and the runtime, never TensorFlow.

program = Program.load(Path("har-wild.tflite"))
parameters = program.init(seed=1)
trained = program.train(parameters, x, y, epochs=1, learning_rate=0.1, rng=np.random.default_rng(0))
delta = trained.parameters - parameters
"""

import hashlib
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from flsys_ray.core.layout import Vector
from flsys_ray.errors import DataInvalid, InvalidInput, ProgramInvalid, UpdateUnusable
from flsys_ray.programs.manifest import Manifest, read_manifest

Array = NDArray[Any]


class Step(NamedTuple):
    """The result of one training step: new parameters [P], mean loss before the step, new slots [S]."""

    parameters: Vector
    loss: float
    slots: Vector


class Trained(NamedTuple):
    """The result of local training.

    Attributes:
        parameters: [P].
        loss: mean loss over all examples seen, each before the step that used it; 0.0 if no step was taken.
        steps: how many steps were taken.
        completed: False if `should_stop` ended it early.
    """

    parameters: Vector
    loss: float
    steps: int
    completed: bool


class Evaluated(NamedTuple):
    """Sums over examples: of the loss, of correct answers, and their number."""

    loss_sum: float
    correct: int
    examples: int


class Batch(NamedTuple):
    """B examples, of which those with mask 1 count: x [B, ...], y int32 [B], mask float32 [B]."""

    x: Array
    y: Array
    mask: Array


class Program:
    """A loaded program. It may be used from many threads: each gets its own interpreter on first use.

    An interpreter computes on one thread and releases Python's global lock while it does: a Python loop beside a
    training thread runs undisturbed (`benchmarks/program_step.py`). One of HAR-Wild takes about 13 MB.
    """

    def __init__(self, data: bytes, manifest: Manifest) -> None:
        self._data = data
        self._local = threading.local()
        self.manifest = manifest
        self.sha256 = hashlib.sha256(data).hexdigest()

    def __reduce__(self) -> tuple[type["Program"], tuple[bytes, Manifest]]:
        """Pickle the file; interpreters stay behind."""
        return Program, (self._data, self.manifest)

    @classmethod
    def load(cls, source: bytes | Path) -> "Program":
        """Read a program file. The interpreter is made on first use.

        Raises:
            ProgramInvalid: it is not a program file.
        """
        data = source if isinstance(source, bytes) else Path(source).read_bytes()
        return cls(data, read_manifest(data))

    def init(self, seed: int) -> Vector:
        """Return fresh parameters [P]; the same seed, any int, gives the same ones on every runtime."""
        folded = (seed + 2**31) % 2**32 - 2**31
        return self._vector(self._run("init", seed=np.int32(folded))["parameters"])

    def train_step(
        self,
        parameters: Vector,
        batch: Batch,
        *,
        learning_rate: float,
        anchor: Vector,
        proximal_mu: float = 0.0,
        slots: Vector,
    ) -> Step:
        """Take one step of the local optimizer.

        Args:
            parameters: [P].
            batch: exactly `batch_size` rows.
            learning_rate: step size.
            anchor: [P], the parameters that the proximal term pulls towards: those of the base version.
            proximal_mu: FedProx's mu (Li et al. 2020, arXiv 1812.06127, equation 2).
            slots: [S], see `fresh_slots`.

        Raises:
            UpdateUnusable: the loss or a new parameter is not finite.
        """
        state = {"slots": slots} if self.manifest.slots else {}
        out = self._run(
            "train",
            parameters=parameters,
            **batch._asdict(),
            learning_rate=np.float32(learning_rate),
            anchor=anchor,
            proximal_mu=np.float32(proximal_mu),
            **state,
        )
        loss = float(out["loss"])
        if not (np.isfinite(loss) and np.isfinite(out["parameters"]).all()):
            raise UpdateUnusable(
                f"program {self.manifest.name!r}: training diverged (loss {loss}): lower the learning rate, or "
                "check the input's scale"
            )
        return Step(out["parameters"], loss, out.get("slots", slots))

    def fresh_slots(self) -> Vector:
        """Return the state that the local optimizer starts from: zeros [S]."""
        return np.zeros(self.manifest.slots, np.float32)

    def train(
        self,
        parameters: Vector,
        x: Array,
        y: Array,
        *,
        epochs: int,
        learning_rate: float,
        proximal_mu: float = 0.0,
        rng: np.random.Generator,
        max_steps: int | None = None,
        should_stop: Callable[[], bool] = lambda: False,
        correction: Vector | None = None,
        augment: Callable[[Array, int], Array] | None = None,
    ) -> Trained:
        """Train on a device's examples: each epoch in a new order, in batches, the last one padded and masked.

        Args:
            parameters: [P], the base version; the proximal term's anchor too. Not changed.
            x: [N, ...].
            y: [N], labels in 0 .. C-1.
            epochs: passes over the examples.
            learning_rate: step size.
            proximal_mu: FedProx's mu.
            rng: makes the order of examples.
            max_steps: stop after so many batches, whatever the epochs.
            should_stop: asked before each step; True ends training with what there is (charger unplugged, say).
            correction: [P], added to the gradient of each step. Plain SGD is linear in its gradient, so that taking
                `learning_rate * correction` off after the step is the same.
            augment: given x and the number of an epoch, the examples of that epoch: of the same shape.

        Raises:
            DataInvalid: x or y has a wrong shape or values, or there are no examples.
            InvalidInput: the base parameters or the correction are not finite, or of another model; or a correction is
                given to a program with a stateful local optimizer.
            UpdateUnusable: training diverged.
        """
        if correction is not None and self.manifest.slots:
            optimizer = self.manifest.local_optimizer
            raise InvalidInput(f"program {self.manifest.name!r}: {optimizer!r} has a state, only SGD is corrected")
        x, y = self._examples(x, y)
        batches = self._epochs(x, y, epochs, rng, augment)
        return self._steps(
            self._vector(parameters),
            itertools.islice(batches, max_steps),
            should_stop,
            learning_rate=learning_rate,
            proximal_mu=proximal_mu,
            shift=None if correction is None else np.float32(learning_rate) * self._vector(correction),
        )

    def _steps(
        self,
        base: Vector,
        batches: Iterable[Batch],
        should_stop: Callable[[], bool],
        *,
        learning_rate: float,
        proximal_mu: float,
        shift: Vector | None,
    ) -> Trained:
        current, slots, loss_sum, seen, steps = base, self.fresh_slots(), 0.0, 0, 0
        for batch in batches:
            if should_stop():
                return Trained(current, loss_sum / max(seen, 1), steps, completed=False)
            current, loss, slots = self.train_step(
                current, batch, learning_rate=learning_rate, anchor=base, proximal_mu=proximal_mu, slots=slots
            )
            current = current if shift is None else current - shift
            count = int(batch.mask.sum())
            loss_sum, seen, steps = loss_sum + loss * count, seen + count, steps + 1
        return Trained(current, loss_sum / max(seen, 1), steps, completed=True)

    def evaluate(self, parameters: Vector, x: Array, y: Array) -> Evaluated:
        """Return the sums of loss and correct answers over examples x [N, ...], y [N]."""
        x, y = self._examples(x, y)
        parameters = self._vector(parameters)
        loss_sum, correct = 0.0, 0
        for batch in self._batches(x, y, np.arange(len(y))):
            out = self._run("evaluate", parameters=parameters, x=batch.x, y=batch.y, mask=batch.mask)
            loss_sum += float(out["loss_sum"])
            correct += round(float(out["correct"]))
        return Evaluated(loss_sum, correct, len(y))

    def infer(self, parameters: Vector, x: Array) -> NDArray[np.float32]:
        """Return probabilities: [C] for one example x of the input's shape, [N, C] for N of them."""
        shape = self.manifest.input_shape
        x, parameters = np.asarray(x), self._vector(parameters)
        if x.shape == shape:
            return np.asarray(self.infer(parameters, x[None])[0], np.float32)
        if x.shape[1:] != shape:
            raise DataInvalid(f"infer: x has shape {x.shape}, {self.manifest.name!r} takes {self._rows()} or one row")
        x = x.astype(self.manifest.input_dtype, copy=False)
        rows = [self._run("infer", parameters=parameters, x=row[None])["scores"][0] for row in x]
        return np.asarray(rows, np.float32).reshape(len(x), len(self.manifest.classes))

    def _rows(self) -> str:
        return f"(N, {', '.join(map(str, self.manifest.input_shape))})"

    def _examples(self, x: Array, y: Array) -> tuple[Array, Array]:
        m = self.manifest
        x, y = np.asarray(x), np.asarray(y)
        if x.shape[1:] != m.input_shape or y.shape != x.shape[:1]:
            raise DataInvalid(f"{m.name!r} takes x {self._rows()} and y (N,), not {x.shape} and {y.shape}")
        if len(y) == 0:
            raise DataInvalid(f"{m.name!r}: there are no examples")
        if not np.isfinite(x).all():
            raise DataInvalid(f"{m.name!r}: x holds a value that is not finite")
        if y.min() < 0 or y.max() >= len(m.classes):
            raise DataInvalid(f"{m.name!r}: labels lie in {y.min()} .. {y.max()}, it has {len(m.classes)} classes")
        return x.astype(m.input_dtype, copy=False), y.astype(np.int32, copy=False)

    def _epochs(
        self,
        x: Array,
        y: Array,
        epochs: int,
        rng: np.random.Generator,
        augment: Callable[[Array, int], Array] | None,
    ) -> Iterator[Batch]:
        for epoch in range(epochs):
            seen = x if augment is None else self._examples(augment(x, epoch), y)[0]
            yield from self._batches(seen, y, rng.permutation(len(y)))

    def _batches(self, x: Array, y: Array, order: Array) -> Iterator[Batch]:
        """Cut examples into batches. The last is filled up by wrap-around, with mask 0."""
        size = self.manifest.batch_size
        for start in range(0, len(order), size):
            real = min(size, len(order) - start)
            rows = order[np.arange(start, start + size) % len(order)]
            yield Batch(x[rows], y[rows], (np.arange(size) < real).astype(np.float32))

    def _vector(self, parameters: Array) -> Vector:
        """Return parameters as float32 [P]; raise `InvalidInput` if they are not P finite numbers."""
        vector = np.ascontiguousarray(parameters, np.float32)
        name, size = self.manifest.name, self.manifest.parameters
        if vector.shape != (size,):
            raise InvalidInput(f"program {name!r}: parameters have shape {vector.shape}, it takes ({size},)")
        if not np.isfinite(vector).all():
            leaf = self.manifest.to_layout().leaf_at(int(np.flatnonzero(~np.isfinite(vector))[0]))
            raise InvalidInput(f"program {name!r}: parameter {leaf.name!r} holds a value that is not finite")
        return vector

    def _run(self, signature: str, **inputs: Any) -> dict[str, Any]:
        runners = getattr(self._local, "runners", None)
        if runners is None:
            runners = self._local.runners = self._interpreter()
        result: dict[str, Any] = runners[signature](**inputs)
        return result

    def _interpreter(self) -> dict[str, Any]:
        """Make this thread's interpreter, and return its signature runners."""
        from ai_edge_litert.interpreter import Interpreter

        try:
            interpreter = Interpreter(model_content=self._data, num_threads=1)
            return {name: interpreter.get_signature_runner(name) for name in ("init", "train", "evaluate", "infer")}
        except (ValueError, RuntimeError) as error:
            raise ProgramInvalid(f"program {self.manifest.name!r}: LiteRT cannot load it: {error}") from error
