"""What local training is in a simulation: works in, deltas out; who computes it is a `Trainer`'s business.

A device's batches are those of the phone: `core.rng.generator(0, "local-training", round, assignment id)` draws the
order of each epoch, and the last batch is filled up by wrap-around with mask 0 (`programs.runner.Program.train`).
Windows are changed as the phone changes them, each epoch anew (`augmentation.base.augmented`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from flsys_ray.augmentation.base import Transform, augmented
from flsys_ray.core.layout import Vector
from flsys_ray.core.pacing.buffered import Buffered
from flsys_ray.core.pacing.deadline import Rounds
from flsys_ray.core.plan import LocalTraining, TrainingPlan
from flsys_ray.core.rng import generator

if TYPE_CHECKING:
    from flsys_ray.simulation.crew import Recipe

MAX_GROUP = 10
TrainerName = Literal["fast", "program"]


@dataclass(frozen=True, slots=True, eq=False)
class Work:
    """One device's local training: of version `base`, on the rows of the pool that are its examples, at `rate`.

    `correction` [P] is added to each gradient, for a rule that carries controls.
    """

    assignment_id: str
    round: int
    base: int
    rows: NDArray[np.int64]
    rate: float
    correction: Vector | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Group:
    """Works that are trained together. `bases` holds the parameters [P] of each version that one of them begins with.

    The composition of a group never depends on who computes it, so neither do its bits.
    """

    model: str
    works: tuple[Work, ...]
    bases: Mapping[int, Vector]


@dataclass(frozen=True, slots=True, eq=False)
class Deltas:
    """What a group's training gave, row by row: delta float32 [D, P], mean loss [D], steps [D]."""

    delta: NDArray[np.float32]
    loss: NDArray[np.float64]
    steps: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Answers:
    """A version's answers on the held-out examples: the class it chose [N], and the sum of its losses."""

    chosen: NDArray[np.int32]
    loss_sum: float


@dataclass(frozen=True, slots=True, eq=False)
class Examples:
    """Examples of many users, one after the other: x [M, ...], y int32 [M]. Shared, and never written to."""

    x: NDArray[Any]
    y: NDArray[np.int32]


@dataclass(frozen=True, slots=True, eq=False)
class TrainerSpec:
    """All that a worker needs to train a model.

    Attributes:
        name: which trainer.
        program: the program file of the model.
        build: makes the Keras model, for the fast trainer. It travels to workers.
        local: the plan's local training.
        group_size: the most works that a group will have.
        training: what devices train on.
        held_out: what versions are evaluated on.
        transforms: of the plan: what each epoch changes of the examples.
    """

    name: TrainerName
    program: bytes
    build: Callable[[], Any] | None
    local: LocalTraining
    group_size: int
    training: Examples
    held_out: Examples
    transforms: tuple[Transform, ...] = ()


class Trainer(Protocol):
    """Computes local trainings of one model, and evaluates its versions.

    `at_once`: how many works it computes together; a group may be cut into parts of so many without changing a bit.
    0: a group is one computation.
    """

    at_once: int

    def recipe(self) -> "Recipe | None":
        """Return what processes without TensorFlow can make such a trainer of; None if none can."""

    def train(self, group: Group) -> Deltas:
        """Train all works of a group. A device whose training diverges has a delta that is not finite."""

    def evaluate(self, parameters: Vector) -> Answers:
        """Return a version's answers on the held-out examples."""


def make_trainer(spec: TrainerSpec) -> Trainer:
    """Make the trainer that a spec names. The fast one loads TensorFlow."""
    if spec.name == "program":
        from flsys_ray.simulation.program_trainer import ProgramTrainer

        return ProgramTrainer(spec)
    from flsys_ray.simulation.fast_trainer import make_fast_trainer

    return make_fast_trainer(spec)


def parts_of(group: Group, at_once: int) -> list[Group]:
    """Return a group in even parts of at most so many works; 0: whole."""
    works, count = group.works, -(-len(group.works) // at_once) if at_once else 1
    return [replace(group, works=works[i * len(works) // count : (i + 1) * len(works) // count]) for i in range(count)]


def group_size_of(plan: TrainingPlan) -> int:
    """Return how many works a group has at most: a round's are dealt into at least two, of ten or fewer."""
    goal = updates_of(plan)
    return -(-goal // max(2, -(-goal // MAX_GROUP)))


def updates_of(plan: TrainingPlan) -> int:
    """Return how many updates a version will probably have."""
    pacing = plan.pacing
    return (
        pacing.cohort if isinstance(pacing, Rounds) else pacing.buffer if isinstance(pacing, Buffered) else pacing.slots
    )


@dataclass(frozen=True, slots=True, eq=False)
class Feed:
    """A work's examples, x [N, ...] and y int32 [N], and the places of each step's batch in them.

    Of S steps with batches of B: `places` int32 [S, B], and `mask` float32 [S, B]. With transforms, x holds the
    examples as each epoch sees them, one epoch after the other.
    """

    x: NDArray[Any]
    y: NDArray[np.int32]
    places: NDArray[np.int32]
    mask: NDArray[np.float32]


def feed_of(work: Work, spec: TrainerSpec, size: int) -> Feed:
    """Return what a work trains on, in batches of `size`: what the phone's program is fed."""
    places, mask = batches_of(work, spec.local, size)
    x, y = spec.training.x[work.rows], spec.training.y[work.rows]
    if not spec.transforms:
        return Feed(x, y, places, mask)
    epochs = np.arange(len(places)) // -(-len(y) // size)
    changes = augmenting(work, spec.transforms)
    seen = [changes(x, epoch) for epoch in range(int(epochs[-1]) + 1)]
    places = (places + (epochs * len(y))[:, None]).astype(np.int32)
    return Feed(np.concatenate(seen), np.tile(y, len(seen)), places, mask)


def augmenting(work: Work, transforms: tuple[Transform, ...]) -> Callable[[NDArray[Any], int], NDArray[Any]]:
    """Return what makes the examples x of an epoch of a work."""
    return lambda x, epoch: augmented(transforms, x, assignment_id=work.assignment_id, epoch=epoch)


def batches_of(work: Work, local: LocalTraining, size: int) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Return the places in `work.rows` of each step's batch, int32 [S, size], and the mask [S, size]."""
    rng, count = generator(0, "local-training", work.round, work.assignment_id), len(work.rows)
    steps, (places, mask) = steps_of(count, local, size), _one_epoch(count, size)
    epochs = -(-steps // len(places))
    rows = np.concatenate([rng.permutation(count)[places] for _ in range(epochs)])[:steps].astype(np.int32)
    return rows, mask if epochs == 1 and steps == len(mask) else np.tile(mask, (epochs, 1))[:steps]


@lru_cache(maxsize=1024)
def _one_epoch(count: int, size: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return the places of an epoch's batches within its order, [S, size], and their mask."""
    places = np.arange(-(-count // size) * size).reshape(-1, size)
    mask = (places < count).astype(np.float32)
    mask.flags.writeable = False
    return places % count, mask


def steps_of(examples: int, local: LocalTraining, size: int) -> int:
    """Return how many steps a device with so many examples takes."""
    steps = -(-examples // size) * local.epochs
    return steps if local.max_steps is None else min(steps, local.max_steps)
