"""Which devices there are, and which examples each of them has. Nothing is kept for a device that is not at work.

Examples of all users lie one after the other (`Pool`), and behind them those of a shared set. A device belongs to a
user: device d to user d mod U, so that a small data set can serve any number of devices. With `classes_per_device`, a
device has its user's examples of some drawn classes only, with `examples_per_device` a drawn part of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flsys_ray.augmentation.shared import portion_of
from flsys_ray.core.rng import generator, unit
from flsys_ray.data.dataset import Dataset
from flsys_ray.data.leaks import check_no_leak
from flsys_ray.data.splits import held_out_part, split_users
from flsys_ray.errors import DataInvalid
from flsys_ray.simulation.training import Examples

HELD_OUT_USERS = 0.2
HELD_OUT_PART = 0.2


@dataclass(frozen=True, slots=True, eq=False)
class Pool:
    """Examples of U users; user u has the rows `offsets[u] : offsets[u + 1]`. `held_out` are of other users.

    The rows from `offsets[U]` on are the shared set. `counts` [U, C] are each user's examples of each class.
    """

    training: Examples
    offsets: NDArray[np.int64]
    held_out: Examples
    users: tuple[str, ...]
    counts: NDArray[np.int64]

    @property
    def shared(self) -> int:
        """How many examples the shared set has."""
        return len(self.training.y) - int(self.offsets[-1])


@dataclass(frozen=True, slots=True, eq=False)
class Population:
    """The devices that hold examples of one model.

    `classes_per_device` gives each device so many of its user's classes, drawn evenly: a stress test of label skew as
    in Zhao et al. 2018 (arXiv 1806.00582), section 3, where each device has two; here of its user's own.
    """

    pool: Pool
    devices: int
    seed: int
    examples_per_device: int | None = None
    classes_per_device: int | None = None

    def rows(self, device: int) -> NDArray[np.int64]:
        """Return the rows of a device's own examples, sorted. The same each time."""
        user = device % len(self.pool.users)
        rows = np.arange(int(self.pool.offsets[user]), int(self.pool.offsets[user + 1]))
        if self.classes_per_device is not None:
            rows = rows[np.isin(self.pool.training.y[rows], self.classes(device))]
        most = self.examples_per_device
        if most is None or len(rows) <= most:
            return rows
        draw = generator(self.seed, "examples-of-device", 0, str(device))
        return rows[np.sort(draw.choice(len(rows), most, replace=False))]

    def classes(self, device: int) -> list[int]:
        """Return the classes that a device may have examples of, sorted."""
        present = np.flatnonzero(self.pool.counts[device % len(self.pool.users)]).tolist()
        if self.classes_per_device is None:
            return present
        lots = sorted((unit(self.seed, "class-of-device", label, str(device)), label) for label in present)
        return sorted(label for _, label in lots[: self.classes_per_device])

    def count(self, device: int) -> int:
        """Return how many examples of its own a device has."""
        user = device % len(self.pool.users)
        if self.classes_per_device is None:
            count = int(self.pool.offsets[user + 1] - self.pool.offsets[user])
        else:
            count = int(self.pool.counts[user][self.classes(device)].sum())
        return count if self.examples_per_device is None else min(count, self.examples_per_device)

    def portion(self, device: int, share: float, seed: int) -> NDArray[np.int64]:
        """Return the rows of the shared set that a device mixes in: those that a phone of this name would."""
        rows = portion_of(self.pool.shared, share, seed=seed, device_id=str(device))
        return int(self.pool.offsets[-1]) + rows


@dataclass(frozen=True, slots=True)
class Split:
    """Which users devices belong to, and which others judge."""

    training: tuple[str, ...]
    held_out: tuple[str, ...]

    @classmethod
    def of(
        cls,
        users: Sequence[str],
        seed: int,
        *,
        held_out: Sequence[str] | None = None,
        training: Sequence[str] | None = None,
    ) -> "Split":
        """Return the split of some users: those that are named, or a fifth held out, and all others training.

        Raises:
            DataInvalid: fewer than two users, a name that is not among them, one twice, or a part without a user.
        """
        judged = tuple(held_out) if held_out is not None else None
        if judged is None:
            judged = split_users(sorted(set(users) - set(training or ())), HELD_OUT_USERS, seed)[1]
        trained = tuple(training) if training is not None else tuple(user for user in users if user not in judged)
        named = trained + judged
        if unknown := sorted(set(named) - set(users)):
            raise DataInvalid(f"split: no users {', '.join(unknown)} with these classes")
        if len(set(named)) != len(named) or not trained or not judged:
            raise DataInvalid("split: each user trains or is held out, once, and there is one of each kind")
        return cls(trained, judged)


def pool_of(dataset: Dataset, split: Split, own_part: float, seed: int, shared: Examples | None = None) -> Pool:
    """Read a data set: of users that train, what their devices do not hold out (`own_part` of it; 0: nothing).

    `shared` is the shared set that devices may mix in.

    Raises:
        DataInvalid: a part that is not in [0, 1), or no user with an example to train on.
        DataLeak: examples of both parts of the split overlap.
    """
    own = [dataset.examples(user) for user in split.training]
    parts = own if own_part == 0 else [held_out_part(one, own_part, seed)[0] for one in own]
    judged = [dataset.examples(user) for user in split.held_out]
    check_no_leak({"training": parts, "held out": judged})
    kept = [(part.user, part.x, part.y) for part in parts if len(part)]
    together = Examples(np.concatenate([p.x for p in judged]), np.concatenate([p.y for p in judged]))
    return make_pool(kept, together, shared)


def make_pool(
    parts: Sequence[tuple[str, NDArray[np.generic], NDArray[np.int32]]],
    held_out: Examples,
    shared: Examples | None = None,
) -> Pool:
    """Return a pool of users, each with name, x [N, ...] and y [N], and a shared set.

    Raises `DataInvalid` if there is no user.
    """
    if not parts:
        raise DataInvalid("population: no user has an example to train on")
    lengths = [len(y) for _, _, y in parts]
    labels = 1 + max(int(y.max(initial=0)) for _, _, y in parts)
    counts = np.stack([np.bincount(y, minlength=labels) for _, _, y in parts]).astype(np.int64)
    more = [shared] if shared is not None else []
    training = Examples(
        np.concatenate([x for _, x, _ in parts] + [s.x for s in more]),
        np.concatenate([y for _, _, y in parts] + [s.y for s in more]),
    )
    for array in (training.x, training.y, held_out.x, held_out.y):
        array.flags.writeable = False
    names = tuple(user for user, _, _ in parts)
    return Pool(training, np.concatenate([[0], np.cumsum(lengths)]), held_out, names, counts)
