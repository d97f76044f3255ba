"""How a rule reads the updates of a cohort again: in blocks of parameters, so that they need not fit into memory.

A reader is injected into the coordinator: the cloud reads the store, where every counted update is an object already;
a simulation holds the vectors in memory.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

from flsys_ray.core.layout import Vector

BLOCK_BYTES = 16 * 2**20  # of float32: a rule that works in float64 holds a few times as much
CHUNK = 1024  # parameters; blocks end at multiples, so sums over fixed chunks do not depend on the block's width


class UpdateReader(Protocol):
    """Gives columns of the matrix whose rows are the deltas of the counted updates."""

    def block(self, keys: Sequence[str], start: int, stop: int) -> Vector:
        """Return elements `start:stop` of the deltas of `keys`: float32 [len(keys), stop - start], a new array."""


class HeldUpdates:
    """Deltas kept in memory."""

    def __init__(self) -> None:
        self.deltas: dict[str, Vector] = {}

    def hold(self, key: str, delta: Vector) -> None:
        """Keep a copy of a delta, float32 [P]."""
        self.deltas[key] = delta.copy()

    def block(self, keys: Sequence[str], start: int, stop: int) -> Vector:
        """Return elements `start:stop` of the deltas of `keys`. Raises `KeyError` for one that is not held."""
        rows = np.empty((len(keys), stop - start), dtype=np.float32)
        for row, key in zip(rows, keys, strict=True):
            row[:] = self.deltas[key][start:stop]
        return rows


def blocks(updates: UpdateReader, keys: Sequence[str], size: int) -> Iterator[tuple[slice, Vector]]:
    """Yield all columns in order: their slice of the parameter vector, and float32 [len(keys), width].

    The width is a multiple of `CHUNK` for which a block has about `BLOCK_BYTES`, and at least one chunk.
    """
    width = max(1, BLOCK_BYTES // (4 * CHUNK * len(keys))) * CHUNK
    for start in range(0, size, width):
        stop = min(start + width, size)
        yield slice(start, stop), updates.block(keys, start, stop)
