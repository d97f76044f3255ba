"""One model in a simulation: its coordinator, the trainings at work, and what happened since the last round."""

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from flsys_ray.compression.float32 import FLOAT32
from flsys_ray.compression.memory import encoded, payload_bytes
from flsys_ray.core.controls import ControlPair
from flsys_ray.core.coordinator import Coordinator
from flsys_ray.core.layout import Vector
from flsys_ray.core.snapshot import Snapshot
from flsys_ray.core.types import Assignment, Counted, RoundSummary, Update, Version
from flsys_ray.errors import UpdateUnusable
from flsys_ray.programs.manifest import read_manifest
from flsys_ray.programs.runner import Program
from flsys_ray.simulation.desk import Desk, DeskState, Result
from flsys_ray.simulation.downloads import Base, Downloads
from flsys_ray.simulation.executors import Executor
from flsys_ray.simulation.results import Row, Tally
from flsys_ray.simulation.training import Work, group_size_of, steps_of, updates_of
from flsys_ray.wire.tensors import MAX_CLASSES, MAX_TRAIN_S

if TYPE_CHECKING:
    from flsys_ray.simulation.engine import SimulatedModel


@dataclass(frozen=True, slots=True, eq=False)
class TraineeState:
    """All of a model's state."""

    snapshot: Snapshot
    desk: DeskState
    tally: Tally
    controls: dict[int, Vector]
    residuals: dict[int, Vector]
    have_shared: frozenset[int]
    pairs: dict[str, ControlPair]
    bases: dict[int, Base]
    held: dict[int, int]


@dataclass(frozen=True, slots=True, eq=False)
class Sent:
    """An update as the cloud decodes it, and what the device keeps, float32 [P] each, once it is counted."""

    update: Update
    control: Vector | None = None
    residual: Vector | None = None


class Trainee:
    """One model. `coordinator` decides, `tally` counts since the last row.

    `upload_bytes` is what one update weighs: its tensors, without the file's header.
    """

    def __init__(self, model: "SimulatedModel", executor: Executor) -> None:
        self.model, self.tally = model, Tally()
        manifest = read_manifest(model.program)
        self.layout, self._batch, self._labels = manifest.to_layout(), manifest.batch_size, len(manifest.classes)
        self._mask = self.layout.trainable_mask()
        start = Program.load(model.program).init(model.plan.seed)
        version = Version(0, start, model.plan.server_optimizer.init(start.size))
        self.coordinator = Coordinator(model.name, self.layout, model.plan, version, round_=0, opened_at=0.0)
        self._control_bytes = start.nbytes if model.plan.aggregation.carries_control else 0
        self.upload_bytes = payload_bytes(model.plan.compression, start.size) + self._control_bytes
        exact = not model.plan.pacing.asynchronous and model.plan.pacing.slots <= updates_of(model.plan)
        self.desk = Desk(model.name, executor, group_size_of(model.plan), at_once=exact)
        self._controls: dict[int, Vector] = {}
        self._residuals: dict[int, Vector] = {}
        self._have_shared: set[int] = set()
        self._pairs: dict[str, ControlPair] = {}
        self._downloads = Downloads(model.plan.download, model.plan.seed)
        self._plain_downloads, self._plain_uploads = model.plan.download == FLOAT32, model.plan.compression == FLOAT32
        self._last_rate: tuple[int, float] = (-1, 0.0)
        self._keep_bases()

    def steps(self, device: int) -> int:
        """Return the local steps of a device, on its own examples and its portion of the shared set."""
        mixed = round(self.model.plan.augmentation.share * self.model.population.pool.shared)
        return steps_of(self.model.population.count(device) + mixed, self.model.plan.local, self._batch)

    def download_bytes(self, device: int, work: Assignment) -> int:
        """Return what a device downloads for a training: its base, and the shared set if it has not got it yet."""
        base_bytes, pool = (
            self._downloads.num_bytes(device, work.version) + self._control_bytes,
            self.model.population.pool,
        )
        if self.model.plan.augmentation.share == 0 or device in self._have_shared:
            return base_bytes
        return base_bytes + pool.shared * (pool.training.x[:1].nbytes + pool.training.y[:1].nbytes)

    def downloaded(self, device: int, work: Assignment) -> None:
        """A device has got its base, and the shared set if there is one: it keeps both."""
        if not self._plain_downloads:
            self._downloads.held[device] = work.version
        if self.model.plan.augmentation.share > 0:
            self._have_shared.add(device)

    def begin(self, work: Assignment, device: int, arrives_at: float) -> None:
        """A device has begun a training whose update will arrive."""
        version, correction = self.coordinator.version, None
        if version.control is not None:
            own = self._controls.get(device, np.zeros(self.layout.size, np.float32))
            pair = self._pairs[work.assignment_id] = ControlPair(version.control, own, self._mask)
            correction = pair.correction
        rows, base = self._rows(device), self._downloads.bases[work.version].parameters
        rate = self._rate(work)
        self.desk.give(Work(work.assignment_id, work.round, work.version, rows, rate, correction), base, arrives_at)

    def _rows(self, device: int) -> NDArray[np.int64]:
        """Return the rows that a device trains on: its own, and its portion of the shared set."""
        population, plan = self.model.population, self.model.plan
        if plan.augmentation.share == 0:
            return population.rows(device)
        return np.concatenate([population.rows(device), population.portion(device, plan.augmentation.share, plan.seed)])

    def _rate(self, work: Assignment) -> float:
        if self._last_rate[0] != work.version:
            self._last_rate = work.version, self.model.plan.local.at(work.version).learning_rate
        return self._last_rate[1]

    def submit(self, work: Assignment, device: int, now: float, train_s: float) -> tuple[bool, int]:
        """An update arrives: return whether it was counted, and how many trainings were computed for it (1 or 0)."""
        pair = self._pairs.pop(work.assignment_id, None)
        if self.coordinator.misplaced(work, now) is not None:
            self.desk.drop(work.assignment_id)
            self.tally.upload_bytes += self.upload_bytes
            return False, 0
        result = self.desk.result(work.assignment_id, updates_of(self.model.plan) - self.coordinator.counters.counted)
        try:
            sent = self._sent(work, device, result, pair, train_s)
        except UpdateUnusable:
            self.coordinator.give_back(work, now)  # a phone uploads nothing, and gives the work back
            return False, 1
        self.tally.upload_bytes += self.upload_bytes
        counted = isinstance(self.coordinator.submit(sent.update, now), Counted)
        if counted and sent.control is not None:
            self._controls[device] = sent.control
        if counted and sent.residual is not None:
            self._residuals[device] = sent.residual
        return counted, 1

    def _sent(self, work: Assignment, device: int, result: Result, pair: ControlPair | None, train_s: float) -> Sent:
        """Return what a device uploads. Raises `UpdateUnusable` if the training diverged."""
        if not (np.isfinite(result.loss) and np.isfinite(result.delta).all()):
            raise UpdateUnusable(f"{self.model.name}: the delta of {work.assignment_id} is not finite")
        change = pair.change(result.delta, result.steps, self._rate(work)) if pair is not None else None
        delta, residual = self._as_decoded(work, device, result.delta)
        update = Update(
            work,
            delta,
            self.model.population.count(device),
            result.loss,
            num_steps=result.steps,
            num_bytes=self.upload_bytes,
            control=change,
            train_s=min(train_s, MAX_TRAIN_S),
            labels=self._label_counts(device),
        )
        return Sent(update, pair.after(change) if pair is not None and change is not None else None, residual)

    def _as_decoded(self, work: Assignment, device: int, delta: Vector) -> tuple[Vector, Vector | None]:
        """Return a delta as the cloud decodes it, and what the encoding leaves for the device's next one."""
        encoding, memory = self.model.plan.compression, self._residuals.get(device)
        if self._plain_uploads:
            return delta, None
        made = encoded(encoding, delta, memory, self._mask, round_=work.round, assignment_id=work.assignment_id)
        return encoding.decode(made.parts, 0, delta.size), made.residual

    def _label_counts(self, device: int) -> tuple[int, ...] | None:
        """Return how many examples of each class a device has of its own, if the plan's selector asks."""
        if not self.model.plan.selection.reads_labels or self._labels > MAX_CLASSES:
            return None
        population = self.model.population
        return tuple(np.bincount(population.pool.training.y[population.rows(device)], minlength=self._labels).tolist())

    def row(self, summary: RoundSummary) -> Row:
        """Return the row of a round that closed, and begin to count anew."""
        tally, self.tally = self.tally, Tally()
        self._keep_bases()
        commit, counters = summary.commit, summary.counters
        return Row(
            model=self.model.name,
            round=summary.round,
            version=None if commit is None else commit.version.number,
            opened_s=summary.opened_at,
            closed_s=summary.closed_at,
            assigned=counters.assigned,
            counted=counters.counted,
            late=counters.late,
            given_back=counters.given_back,
            num_examples=summary.num_examples,
            training_loss=summary.mean_loss,
            delta_norm=None if commit is None else commit.delta_norm,
            check_ins=tally.check_ins,
            download_bytes=tally.download_bytes,
            upload_bytes=tally.upload_bytes,
            device_s=tally.device_s,
            wasted_device_s=tally.wasted_device_s,
            mean_staleness=None if commit is None else float(np.mean([ref.staleness for ref in commit.updates])),
        )

    def _keep_bases(self) -> None:
        """Add the newest version's, if it is new, and let go of those that no open work can begin with."""
        newest, pacing = self.coordinator.version, self.model.plan.pacing
        age = pacing.staleness.max_staleness if pacing.asynchronous and pacing.staleness is not None else 0
        if newest.number not in self._downloads.bases:
            self._downloads.add(newest, newest.number - age)

    def digest(self) -> str:
        """Return the hash of the newest version's parameters."""
        return hashlib.sha256(self.coordinator.version.parameters.tobytes()).hexdigest()

    def state(self) -> TraineeState:
        """Return all of the state."""
        return TraineeState(
            self.coordinator.snapshot(),
            self.desk.state(),
            self.tally,
            dict(self._controls),
            dict(self._residuals),
            frozenset(self._have_shared),
            dict(self._pairs),
            dict(self._downloads.bases),
            dict(self._downloads.held),
        )

    def restore(self, state: TraineeState) -> None:
        """Go on from a state."""
        self.coordinator = Coordinator.restore(self.model.name, self.layout, self.model.plan, state.snapshot)
        self.desk.restore(state.desk)
        self.tally = state.tally
        self._downloads.bases, self._downloads.held = dict(state.bases), dict(state.held)
        self._controls, self._pairs = dict(state.controls), dict(state.pairs)
        self._residuals, self._have_shared = dict(state.residuals), set(state.have_shared)
