"""Arithmetic on the updates of a cohort, as rows of blocks: the same bits on every machine, for any width of blocks.

Sums over the rows run in the order of the rows. Sums over the columns run over fixed chunks of `CHUNK` parameters, and
over the chunks in order.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from flsys_ray.core.exact import FixedPoint
from flsys_ray.core.updates import CHUNK, UpdateReader, blocks

Array = NDArray[np.float64]
LIMB = 2**18
PIECE = 2**16


def weighted_sum(coefficients: Sequence[float], rows: NDArray[np.float32]) -> Array:
    """Return `sum_k c_k row_k`, float64 [width], added in the order of the rows."""
    total = np.zeros(rows.shape[1])
    for coefficient, row in zip(coefficients, rows, strict=True):
        total += np.multiply(row, coefficient, dtype=np.float64)
    return total


def exact_mean(scale: FixedPoint, keys: Sequence[str], size: int, updates: UpdateReader) -> Array:
    """Return the plain mean of the updates of `keys`, summed exactly: float64 [size]."""
    mean = np.empty(size)
    for where, rows in blocks(updates, keys, size):
        mean[where] = scale.mean(scale.encode(rows).sum(axis=0), len(keys))
    return mean


def squared_distances_to(center: Array, rows: NDArray[np.float32], before: Array) -> Array:
    """Return `before_k + |row_k - center|^2` of each row, float64 [n].

    `before` is the sum over earlier blocks: chunks are added to it one by one, so the order does not know of blocks.
    """
    total = before.copy()
    for columns in chunks(rows.shape[1]):
        difference = rows[:, columns] - center[columns]
        total += np.sum(np.square(difference, out=difference), axis=1)
    return total


def squared_distances(scale: FixedPoint, keys: Sequence[str], size: int, updates: UpdateReader) -> Array:
    """Return `|delta_i - delta_j|^2` of all pairs, float64 [n, n].

    The inner products that it takes are left to BLAS, which adds in an order of its own. So they are made exact: each
    value is rounded to 35 bits and a sign (a unit of `max_abs * 2**-35`, or up to twice that, whatever the updates
    hold) and cut into two limbs of at most 2**17. A product of limbs is at most 2**34, a sum of `PIECE` = 2**16 of them
    2**50, and the four that make a squared difference 2**52: integers that a float64 holds, in any order of addition.
    They are added up as int64, with room for 2**27 parameters.
    """
    unit = 2.0 ** (math.ceil(math.log2(scale.max_abs)) - 35)
    totals = [np.zeros((len(keys), len(keys)), dtype=np.int64) for _ in range(3)]
    for _, rows in blocks(updates, keys, size):
        for start in range(0, rows.shape[1], PIECE):
            value = np.multiply(rows[:, start : start + PIECE], 1 / unit, dtype=np.float64)
            np.rint(value, out=value)
            high = np.rint(value / LIMB)
            value -= high * LIMB
            for total, pair in zip(totals, ((high, high), (high, value), (value, value)), strict=True):
                total += _cross(*pair).astype(np.int64)
    squares, products, rest = (total.astype(np.float64) for total in totals)
    return (squares * LIMB**2 + products * (2 * LIMB) + rest) * unit**2


def chunks(width: int) -> Iterator[slice]:
    """Yield the fixed chunks of a block that begins at a multiple of `CHUNK`."""
    for start in range(0, width, CHUNK):
        yield slice(start, min(start + CHUNK, width))


def _cross(left: Array, right: Array) -> Array:
    """Return `(left_i - left_j) . (right_i - right_j)` for all pairs of rows of integers."""
    product: Array = left @ right.T
    own = np.diagonal(product)
    cross: Array = own[:, None] + own[None, :] - product - product.T
    return cross
