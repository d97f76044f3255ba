"""Split by user, within a user, and among devices. Same seed, same split, whatever the order of the input."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flsys_ray.core.rng import generator
from flsys_ray.data.leaks import digests, overlaps_any
from flsys_ray.data.schema import Examples
from flsys_ray.errors import DataInvalid


def split_users(users: Sequence[str], held_out_fraction: float, seed: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Split users into those that train and those that are held out, both sorted.

    The count that is held out is rounded, and both parts get at least one user.

    Raises:
        DataInvalid: fewer than two users, one twice, or a fraction that is not between 0 and 1.
    """
    _check_fraction(held_out_fraction)
    order = _shuffled(users, seed, least=2)
    count = min(max(1, round(held_out_fraction * len(order))), len(order) - 1)
    return tuple(sorted(order[count:])), tuple(sorted(order[:count]))


def user_folds(users: Sequence[str], folds: int, seed: int) -> tuple[tuple[tuple[str, ...], tuple[str, ...]], ...]:
    """Return `folds` pairs (train, held out). Each user is held out in one of them; sizes differ by one at most.

    Raises:
        DataInvalid: fewer users than folds, fewer than two folds, or a user twice.
    """
    if folds < 2:
        raise DataInvalid(f"folds: at least 2 are needed, not {folds}")
    order = _shuffled(users, seed, least=folds)
    parts = [order[i::folds] for i in range(folds)]
    return tuple((tuple(sorted(set(order) - set(part))), tuple(sorted(part))) for part in parts)


def held_out_part(examples: Examples, fraction: float, seed: int) -> tuple[Examples, Examples]:
    """Split one user's windows into (train, held out), so that no window of one overlaps one of the other.

    Of each class in each session one contiguous block, at a random place, is held out; about `fraction` of the
    windows in expectation. Windows that share time with it, or repeat a window of it bit for bit, are in neither part.

    Raises:
        DataInvalid: a fraction that is not between 0 and 1.
    """
    _check_fraction(fraction)
    rng = generator(seed, "held-out-part", 0, examples.user)
    held = np.zeros(len(examples), dtype=np.bool_)
    for session in np.unique(examples.session):
        for label in np.unique(examples.y):
            rows = np.flatnonzero((examples.session == session) & (examples.y == label))
            rows = rows[np.argsort(examples.start_s[rows], kind="stable")]
            count = int(fraction * len(rows) + rng.random())
            first = int(rng.integers(len(rows) - count + 1))
            held[rows[first : first + count]] = True
    held_content = set(digests(examples.take(held)))
    repeats = np.array([digest in held_content for digest in digests(examples)], dtype=np.bool_)
    train = ~held & ~repeats & ~overlaps_any(examples, examples.take(held))
    return examples.take(train), examples.take(held)


def dirichlet_partition(
    labels: ArrayLike, devices: int, concentration: float, seed: int
) -> tuple[NDArray[np.int64], ...]:
    """Deal pooled examples to devices with class mixes from a Dirichlet distribution.

    Each device draws a mix q ~ Dir(concentration * p), p being the pool's own mix, and takes its share of examples
    one by one by q, without replacement; a class that has run out leaves its weight to the others (Hsu, Qi and Brown,
    2019, arXiv 1909.06335, section 2). A small concentration makes one-sided devices, a large one equal ones.

    Args:
        labels: `[N]` class of each example.
        devices: how many parts; sizes differ by one at most.
        concentration: of the Dirichlet distribution, positive.
        seed: of the draw.

    Returns:
        For each device the sorted indices of its examples. Each example is in exactly one part.

    Raises:
        DataInvalid: fewer examples than devices, or a concentration that is not positive.
    """
    classes, y = np.unique(np.asarray(labels), return_inverse=True)
    if not 1 <= devices <= len(y) or not concentration > 0:
        raise DataInvalid(f"partition: {len(y)} examples, {devices} devices, concentration {concentration}")
    rng = generator(seed, "dirichlet-partition")
    pools = [list(rng.permutation(np.flatnonzero(y == c))) for c in range(len(classes))]
    prior = np.bincount(y) / len(y)
    parts = []
    for device in range(devices):
        mix = rng.dirichlet(concentration * prior)
        size = len(y) // devices + (device < len(y) % devices)
        parts.append(np.sort(np.array(_draw(pools, mix, size, rng), dtype=np.int64)))
    return tuple(parts)


def _draw(pools: list[list[np.int64]], mix: NDArray[np.float64], size: int, rng: np.random.Generator) -> list[np.int64]:
    drawn: list[np.int64] = []
    while len(drawn) < size:
        left = np.array([len(pool) for pool in pools])
        weights = np.where(left > 0, mix, 0.0)
        if weights.sum() < 1e-12:
            weights = left.astype(np.float64)
        for choice in rng.choice(len(pools), size - len(drawn), p=weights / weights.sum()):
            if not pools[choice]:
                break  # this class has run out: renew the weights
            drawn.append(pools[choice].pop())
    return drawn


def _shuffled(users: Sequence[str], seed: int, *, least: int) -> list[str]:
    order = sorted(set(users))
    if len(order) != len(users) or len(order) < least:
        raise DataInvalid(f"split: {len(users)} users, {len(order)} different; {least} different ones are needed")
    generator(seed, "split-users").shuffle(order)
    return order


def _check_fraction(fraction: float) -> None:
    if not 0 < fraction < 1:
        raise DataInvalid(f"split: the held-out fraction must be between 0 and 1, not {fraction}")
