"""Personalisation: the newest version, trained further on this phone alone, used here if it is better here.

It may be trained in several ways: how much is good differs from user to user. The candidates and the shared version are
compared on the phone's own held-out examples. The best one answers `infer`: of equals the shared one, then the first
way. A newer shared version answers until they have been compared again. Personal parameters are a row of the local
database: they go with consent, with `erase` and with the cloud that they began from, and nothing that talks to the
network ever sees them.

NOTE(production): the best of several on few examples looks a little better than it is; a phone that must report an
unbiased figure needs a third part of its examples.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from flsys_ray.core.layout import Vector
from flsys_ray.core.plan import LocalTraining
from flsys_ray.core.rng import generator
from flsys_ray.device.clock import Clock
from flsys_ray.device.conditions import ConditionsSource, eligible
from flsys_ray.device.database import Database, Value
from flsys_ray.device.examples import Batch, ExampleStore
from flsys_ray.device.journal import HeldVersion, Journal
from flsys_ray.device.trainer import DeviceProgram
from flsys_ray.device.versions import Loaded, Versions
from flsys_ray.wire.tensors import decode_vector, encode_vector

Ways = LocalTraining | Sequence[LocalTraining]
FALL = (1.0, 0.4, 0.1)  # of the rate, in thirds of the epochs: docs/results.md says what it is worth
_COLUMNS = "version, weights_sha256, program_sha256, parameters, personal_correct, shared_correct, held_out"


@dataclass(frozen=True, slots=True)
class PersonalRecord:
    """The newest comparison. `parameters` (safetensors): the better ones of the phone; None: the shared ones are."""

    version: int
    weights_sha256: str
    program_sha256: str
    parameters: bytes | None = None
    personal_correct: int | None = None
    shared_correct: int | None = None
    held_out: int = 0

    def is_about(self, held: HeldVersion | None) -> bool:
        """Whether the shared version of the comparison is the one at hand."""
        return held is not None and (held.weights_sha256, held.program_sha256) == (
            self.weights_sha256,
            self.program_sha256,
        )


@dataclass(frozen=True, slots=True)
class Personalisation:
    """How a personalisation ended: which parameters answer now, and how both do on `held_out` own examples.

    `refusal` says why nothing was compared: `withdrawn`, `paused`, `interrupted`, or what stands against training now
    (`not-charging`, `too-few-examples` ...); `failed: ...` what the program raised in training.
    """

    model: str
    version: int
    personal: bool
    personal_accuracy: float | None = None
    shared_accuracy: float | None = None
    held_out: int = 0
    refusal: str = ""


@dataclass(frozen=True, slots=True)
class Personaliser:
    """Makes, compares and keeps personal parameters. `interrupt` ends a training between two steps, for good."""

    journal: Journal
    examples: ExampleStore
    versions: Versions
    conditions: ConditionsSource
    clock: Clock
    interrupt: threading.Event = field(default_factory=threading.Event)
    _alone: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def record(self, model: str) -> PersonalRecord | None:
        """Return the newest comparison, None if there was none."""
        found = self._database.row(f"SELECT {_COLUMNS} FROM personal WHERE model = ?", (model,))
        return _record(found) if found else None

    def parameters(self, model: str, held: HeldVersion) -> bytes | None:
        """Return the personal parameters (safetensors) if they are better than the version at hand."""
        record = self.record(model)
        return record.parameters if record and record.is_about(held) else None

    def due(self, model: str, held: HeldVersion, *, automatic: bool) -> bool:
        """Whether personal parameters are to be compared with a newer version, or, if `automatic`, made for it."""
        if self.refusal(model) or not self.versions.holds(held):
            return False
        record = self.record(model)
        if record is None or record.is_about(held):
            return automatic and record is None
        return automatic or record.parameters is not None

    def refusal(self, model: str) -> str:
        """Return what stands against personalising now; empty: nothing does."""
        if not self.journal.consent(model):
            return "withdrawn"
        if self._database.setting("paused"):
            return "paused"
        eligibility, counts = self.journal.eligibility(model), self.examples.counts(model)
        return ", ".join(eligible(self.conditions.read(self.clock.now()), eligibility, counts.training))

    def personalise(
        self, model: str, held: HeldVersion, local: Ways | None, stopping: Callable[[], bool]
    ) -> Personalisation:
        """Train the version at hand further, and keep the best: it, the personal parameters so far, the new ones.

        `local`: how, or several ways; without any as the newest assignment says. A way that fails leaves the others.
        """
        ways = (local,) if isinstance(local, LocalTraining) else local or (self.journal.local(model),)
        with self._alone:
            self.interrupt.clear()
            if refusal := self.refusal(model):
                return self._said(model, held, refusal)
            loaded = self.versions.load(held.program_sha256, held.weights_sha256)
            fresh, refusal = list[Vector](), ""
            for way in ways:
                try:
                    made = self._trained(model, held, loaded, way, stopping)
                except Exception as error:  # a program comes from outside: what it raises is no trouble of the phone's
                    refusal = f"failed: {type(error).__name__}: {error}"
                    continue
                if made is None:
                    return self._said(model, held, "interrupted")
                fresh.append(made)
            return self._compared(model, held, loaded, fresh, refusal)

    def compare(self, model: str, held: HeldVersion) -> Personalisation:
        """Compare the personal parameters so far with the version at hand, without training."""
        with self._alone:
            self.interrupt.clear()
            if refusal := self.refusal(model):
                return self._said(model, held, refusal)
            loaded = self.versions.load(held.program_sha256, held.weights_sha256)
            return self._compared(model, held, loaded, [], "")

    # Inside -------------------------------------------------------------------------------------------------------

    @property
    def _database(self) -> Database:
        return self.journal.database

    def _trained(
        self, model: str, held: HeldVersion, loaded: Loaded, local: LocalTraining, stopping: Callable[[], bool]
    ) -> Vector | None:
        """Return fine-tuned parameters [P]; None if it was stopped."""
        manifest = loaded.program.manifest
        training = self.examples.batch(model, "training", manifest.classes, manifest.input_shape)
        base = decode_vector(loaded.weights, "parameters", manifest.parameters)
        if training is None:
            return base
        rng = generator(0, "personalisation", held.version, model)
        stops = lambda: stopping() or self.interrupt.is_set() or bool(self.refusal(model))  # noqa: E731
        return fine_tuned(loaded.program, base, training, local, rng, stops)

    def _compared(
        self, model: str, held: HeldVersion, loaded: Loaded, fresh: Sequence[Vector], refusal: str
    ) -> Personalisation:
        """Keep the best of the shared parameters, fresh ones, and those kept so far; of equals the first."""
        manifest, record = loaded.program.manifest, self.record(model)
        candidates = [encode_vector("parameters", vector) for vector in fresh if np.isfinite(vector).all()]
        if record and record.parameters and record.program_sha256 == held.program_sha256:
            candidates.append(record.parameters)
        batch = self.examples.batch(model, "held-out", manifest.classes, manifest.input_shape)
        made = PersonalRecord(held.version, held.weights_sha256, held.program_sha256)
        if batch is not None:
            made = _best(made, loaded, candidates, batch)
        if not self._keep(model, made):
            return self._said(model, held, "interrupted")
        return self._said(model, held, refusal)

    def _keep(self, model: str, record: PersonalRecord) -> bool:
        """Write the comparison down, unless consent was withdrawn, or all erased, while it was made."""
        values: tuple[Value, ...] = (
            model,
            record.version,
            record.weights_sha256,
            record.program_sha256,
            record.parameters,
            record.personal_correct,
            record.shared_correct,
            record.held_out,
        )
        with self._database.transaction():
            if self.interrupt.is_set() or not self.journal.consent(model):
                return False
            self._database.write(
                f"INSERT OR REPLACE INTO personal (model, {_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values
            )
        return True

    def _said(self, model: str, held: HeldVersion, refusal: str) -> Personalisation:
        record = self.record(model)
        if record is None or not record.is_about(held):
            return Personalisation(model, held.version, personal=False, refusal=refusal)
        accuracies = personal_accuracy(record), shared_accuracy(record)
        personal = record.parameters is not None
        return Personalisation(model, held.version, personal, *accuracies, record.held_out, refusal)


def fine_tuned(
    program: DeviceProgram,
    base: Vector,
    examples: Batch,
    local: LocalTraining,
    rng: np.random.Generator,
    should_stop: Callable[[], bool] = lambda: False,
) -> Vector | None:
    """Return parameters [P] trained further on a user's examples; None if it was stopped.

    The rate falls by `FALL`: in a round the noise of the last steps is averaged away with other devices' updates, here
    it would stay. Each part pulls towards where it began with `proximal_mu`. `max_steps` ends it wherever it is.
    """
    current, left = base, local.max_steps
    for i, factor in enumerate(FALL):
        epochs = local.epochs // len(FALL) + (i < local.epochs % len(FALL))
        if epochs == 0 or left == 0:
            continue
        trained = program.train(
            current,
            examples.x,
            examples.y,
            epochs=epochs,
            learning_rate=factor * local.learning_rate,
            proximal_mu=local.proximal_mu,
            rng=rng,
            max_steps=left,
            should_stop=should_stop,
        )
        if not trained.completed:
            return None
        left = None if left is None else left - trained.steps
        current = np.asarray(trained.parameters, np.float32)
    return current


def personal_accuracy(record: PersonalRecord | None) -> float | None:
    """Return the share of own held-out examples that personal parameters had right, None if nothing was compared."""
    return _share(record.personal_correct, record.held_out) if record else None


def shared_accuracy(record: PersonalRecord | None) -> float | None:
    """Return the share of own held-out examples that the shared version had right, None if nothing was compared."""
    return _share(record.shared_correct, record.held_out) if record else None


def _share(correct: int | None, count: int) -> float | None:
    return correct / count if correct is not None and count else None


def _best(made: PersonalRecord, loaded: Loaded, candidates: Sequence[bytes], batch: Batch) -> PersonalRecord:
    """Return the comparison filled in: the candidate that has most right, if that is more than the shared version."""
    shared = _correct(loaded.program, loaded.weights, batch)
    scores = [_correct(loaded.program, parameters, batch) for parameters in candidates]
    most = max(scores, default=None)
    better = candidates[scores.index(most)] if most is not None and most > shared else None
    identity = (made.version, made.weights_sha256, made.program_sha256)
    return PersonalRecord(*identity, better, most, shared, len(batch.y))


def _correct(program: DeviceProgram, parameters: bytes, batch: Batch) -> int:
    vector = decode_vector(parameters, "parameters", program.manifest.parameters)
    return program.evaluate(vector, batch.x, batch.y).correct


def _record(row: Sequence[Value]) -> PersonalRecord:
    version, weights, program, parameters, personal, shared, held_out = row
    return PersonalRecord(
        version=int(version or 0),
        weights_sha256=str(weights),
        program_sha256=str(program),
        parameters=parameters if isinstance(parameters, bytes) else None,
        personal_correct=None if personal is None else int(personal),
        shared_correct=None if shared is None else int(shared),
        held_out=int(held_out or 0),
    )
