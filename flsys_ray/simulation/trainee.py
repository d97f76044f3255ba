"""One model in a simulation: its coordinator, the trainings at work, and what happened since the last round."""

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from flsys_ray.core.controls import ControlPair
from flsys_ray.core.coordinator import Coordinator
from flsys_ray.core.layout import Vector
from flsys_ray.core.snapshot import Snapshot
from flsys_ray.core.types import Assignment, Counted, RoundSummary, Update, Version
from flsys_ray.programs.manifest import read_manifest
from flsys_ray.programs.runner import Program
from flsys_ray.simulation.desk import Desk, DeskState
from flsys_ray.simulation.executors import Executor
from flsys_ray.simulation.results import Row, Tally
from flsys_ray.simulation.training import Work, group_size_of, steps_of, updates_of

if TYPE_CHECKING:
    from flsys_ray.simulation.engine import SimulatedModel


@dataclass(frozen=True, slots=True, eq=False)
class TraineeState:
    """All of a model's state."""

    snapshot: Snapshot
    desk: DeskState
    tally: Tally
    controls: dict[int, Vector]
    pairs: dict[str, ControlPair]
    versions: dict[int, Vector]


class Trainee:
    """One model. `coordinator` decides, `tally` counts since the last row."""

    def __init__(self, model: "SimulatedModel", executor: Executor) -> None:
        self.model, self.tally = model, Tally()
        manifest = read_manifest(model.program)
        self.layout, self._batch = manifest.to_layout(), manifest.batch_size
        start = Program.load(model.program).init(model.plan.seed)
        version = Version(0, start, model.plan.server_optimizer.init(start.size))
        self.coordinator = Coordinator(model.name, self.layout, model.plan, version, round_=0, opened_at=0.0)
        self.vector_bytes = start.nbytes
        self.desk = Desk(model.name, executor, group_size_of(model.plan))
        self._controls: dict[int, Vector] = {}
        self._pairs: dict[str, ControlPair] = {}
        self._versions = {0: start}  # that open work may begin with: a device that comes back begins its own again

    def steps(self, examples: int) -> int:
        """Return the local steps of a device with so many examples."""
        return steps_of(examples, self.model.plan.local, self._batch)

    def begin(self, work: Assignment, device: int, arrives_at: float) -> None:
        """A device has begun a training whose update will arrive."""
        version, correction = self.coordinator.version, None
        if version.control is not None:
            own = self._controls.get(device, np.zeros(self.layout.size, np.float32))
            pair = self._pairs[work.assignment_id] = ControlPair(version.control, own, self.layout.trainable_mask())
            correction = pair.correction
        rows, base = self.model.population.rows(device), self._versions[work.version]
        rate = self._rate(work)
        self.desk.give(Work(work.assignment_id, work.round, work.version, rows, rate, correction), base, arrives_at)

    def _rate(self, work: Assignment) -> float:
        return self.model.plan.local.at(work.version).learning_rate

    def submit(self, work: Assignment, device: int, now: float) -> tuple[bool, int]:
        """An update arrives: return whether it was counted, and how many trainings were computed for it (1 or 0)."""
        pair = self._pairs.pop(work.assignment_id, None)
        if self.coordinator.misplaced(work, now) is not None:
            self.desk.drop(work.assignment_id)
            return False, 0
        result = self.desk.result(work.assignment_id, updates_of(self.model.plan) - self.coordinator.counters.counted)
        change = None
        if not (np.isfinite(result.loss) and np.isfinite(result.delta).all()):
            self.coordinator.give_back(work, now)  # it diverged: a phone uploads nothing, and gives the work back
            return False, 1
        if pair is not None:
            change = pair.change(result.delta, result.steps, self._rate(work))
        examples = self.model.population.count(device)
        update = Update(
            work,
            result.delta,
            examples,
            result.loss,
            num_steps=result.steps,
            num_bytes=result.delta.nbytes,
            control=change,
        )
        counted = isinstance(self.coordinator.submit(update, now), Counted)
        if counted and pair is not None and change is not None:
            self._controls[device] = pair.after(change)
        return counted, 1

    def row(self, summary: RoundSummary) -> Row:
        """Return the row of a round that closed, and begin to count anew."""
        tally, self.tally = self.tally, Tally()
        self._keep_versions()
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

    def _keep_versions(self) -> None:
        """Add the newest version, and let go of those that no open work can begin with."""
        newest, pacing = self.coordinator.version, self.model.plan.pacing
        age = pacing.staleness.max_staleness if pacing.asynchronous and pacing.staleness is not None else 0
        self._versions[newest.number] = newest.parameters
        self._versions = {n: kept for n, kept in self._versions.items() if n >= newest.number - age}

    def digest(self) -> str:
        """Return the hash of the newest version's parameters."""
        return hashlib.sha256(self.coordinator.version.parameters.tobytes()).hexdigest()

    def state(self) -> TraineeState:
        """Return all of the state."""
        controls, pairs = dict(self._controls), dict(self._pairs)
        return TraineeState(
            self.coordinator.snapshot(), self.desk.state(), self.tally, controls, pairs, dict(self._versions)
        )

    def restore(self, state: TraineeState) -> None:
        """Go on from a state."""
        self.coordinator = Coordinator.restore(self.model.name, self.layout, self.model.plan, state.snapshot)
        self.desk.restore(state.desk)
        self.tally, self._controls, self._pairs = state.tally, dict(state.controls), dict(state.pairs)
        self._versions = dict(state.versions)
