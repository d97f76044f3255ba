"""Bring a sensor stream of any rate to a regular grid. Pure numpy.

Phones deliver samples at 20 to 100 Hz, at uneven instants, some twice. `resample` turns them into one value each
`1 / rate_hz` seconds, counted from the first sample of each uninterrupted stretch.

The kernel. Between samples the signal is taken as linear. A grid value is that line's mean over a box centred on the
grid instant, `max(0, 1 / rate_hz - d)` wide, where `d` is the distance of the two samples around the instant. So a
source slower than the grid, or as fast, is interpolated linearly and nothing else (samples that lie on the grid stay
as they are), while a faster one is averaged over one grid period, which damps what would otherwise be folded down
from above the new Nyquist frequency. The kernel is symmetric and sums to one: constants and straight lines pass
unchanged. It looks half a grid period ahead and no further, which is what lets a live stream be resampled with a
short buffer to the very same bits. A sharper filter would need a longer look-ahead and ring at the edges of short
stretches; at 20 Hz, walking and jogging (up to about 3 Hz, first harmonics to 6 Hz) lie well inside the flat part.

Instants count to the microsecond. So the windows of a recording do not depend on its clock's zero, and one that is
in the data twice gives the same windows bit for bit, and is found.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flsys_ray.errors import DataInvalid

_BOX_POINTS = 8  # midpoints of the box where the line is read: 160 readings a second on a 20 Hz grid
_DECIMALS = 6  # UNIX seconds in float64 are exact to 2.4e-7 s: a microsecond is the same wherever the clock's zero is
_TOLERANCE_S = 1e-6
SLACK_S = 0.5e-6  # limits are compared with it, so that a distance of exactly the limit is within it on any clock


@dataclass(frozen=True)
class Stretch:
    """An uninterrupted, regularly sampled piece of a stream.

    Attributes:
        start_s: the instant of the first value, seconds on the source's clock.
        rate_hz: values per second.
        values: `[N, C]` float64.
    """

    start_s: float
    rate_hz: float
    values: NDArray[np.float64]


def resample(timestamps_s: ArrayLike, values: ArrayLike, rate_hz: float, *, gap_s: float = 1.0) -> list[Stretch]:
    """Resample a stream to a regular grid, one stretch for each piece between gaps.

    Args:
        timestamps_s: `[T]` seconds, in any order. Samples with the same instant are averaged.
        values: `[T, C]`. A row that is not finite, or whose timestamp is not, is left out.
        rate_hz: the grid's rate.
        gap_s: two neighbours further apart than this do not belong to one stretch: nothing is invented in between.

    Raises:
        DataInvalid: the shapes do not fit, or a rate or gap is not positive.
    """
    if not (rate_hz > 0 and gap_s > 0):
        raise DataInvalid(f"resample: rate_hz and gap_s must be positive, not {rate_hz} and {gap_s}")
    instants, rows = finite_rows(timestamps_s, values)
    order = np.argsort(instants, kind="stable")
    codes = np.zeros(len(instants), np.int64)
    instants, rows, _ = average_duplicates(instants[order], rows[order], codes)
    stretches = []
    for piece in np.split(np.arange(len(instants)), np.flatnonzero(np.diff(instants) > gap_s + SLACK_S) + 1):
        if len(piece):
            start_s = float(instants[piece[0]])
            relative = seconds_since(start_s, instants[piece])
            grid = np.arange(grid_points(float(relative[-1]), rate_hz)) / rate_hz
            stretches.append(Stretch(start_s, rate_hz, read_grid(relative, rows[piece], grid, rate_hz)))
    return stretches


def finite_rows(timestamps_s: ArrayLike, values: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return timestamps `[T]`, to the microsecond, and values `[T, C]`, without rows that hold NaN or infinity."""
    instants = np.asarray(np.round(np.asarray(timestamps_s, dtype=np.float64), _DECIMALS), dtype=np.float64)
    rows = np.asarray(values, dtype=np.float64)
    if instants.ndim != 1 or rows.ndim != 2 or len(rows) != len(instants):
        raise DataInvalid(
            f"stream: timestamps have shape {instants.shape} and values {rows.shape}; [T] and [T, C] are needed"
        )
    keep = np.isfinite(instants) & np.isfinite(rows).all(axis=1)
    return (instants, rows) if keep.all() else (instants[keep], rows[keep])


def seconds_since(start_s: float, instants: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return instants relative to a start, to the microsecond: the same bits wherever the clock's zero is."""
    return np.asarray(np.round(instants - start_s, _DECIMALS))


def average_duplicates(
    instants: NDArray[np.float64], rows: NDArray[np.float64], codes: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Average neighbouring rows of the same instant and label code; `instants` `[T]` are sorted."""
    news = (np.diff(instants) > 0) | (np.diff(codes) != 0)
    if news.all():
        return instants, rows, codes
    first = np.flatnonzero(np.r_[True, news])
    counts = np.diff(np.r_[first, len(instants)])
    return instants[first], np.add.reduceat(rows, first, axis=0) / counts[:, None], codes[first]


def grid_points(length_s: float, rate_hz: float) -> int:
    """Return how many grid instants `0, 1/rate, 2/rate ...` lie in a stretch of `length_s` seconds."""
    return int(np.floor((length_s + _TOLERANCE_S) * rate_hz)) + 1


def settled_points(length_s: float, rate_hz: float) -> int:
    """Return how many leading grid values cannot change any more, however the stretch goes on."""
    return max(0, int(np.floor((length_s - 0.5 / rate_hz - _TOLERANCE_S) * rate_hz)) + 1)


def read_grid(
    relative_s: NDArray[np.float64], rows: NDArray[np.float64], grid_s: NDArray[np.float64], rate_hz: float
) -> NDArray[np.float64]:
    """Read a stretch at grid instants with the kernel of this module.

    Args:
        relative_s: `[T]` strictly increasing seconds since the stretch began; may lack what lies more than one
            grid period before `grid_s[0]`.
        rows: `[T, C]`.
        grid_s: `[G]` instants within the stretch.
        rate_hz: the grid's rate.

    Returns:
        `[G, C]` float64, the same bits whichever part of the stretch's past is missing.
    """
    if len(relative_s) == 1 or not len(grid_s):
        return np.repeat(rows[:1], len(grid_s), axis=0)
    right = np.clip(np.searchsorted(relative_s, grid_s, side="right"), 1, len(relative_s) - 1)
    spacing_s = relative_s[right] - relative_s[right - 1]
    edge_s = np.minimum(grid_s, relative_s[-1] - grid_s)  # the box stays symmetric, so it shrinks at both ends
    box_s = np.maximum(0.0, np.minimum(1.0 / rate_hz - spacing_s, 2.0 * edge_s))
    if not box_s.any():
        return _line_at(relative_s, rows, grid_s)
    total = np.zeros((len(grid_s), rows.shape[1]))
    for point in range(_BOX_POINTS):
        total += _line_at(relative_s, rows, grid_s + box_s * ((point + 0.5) / _BOX_POINTS - 0.5))
    return total / _BOX_POINTS


def _line_at(
    relative_s: NDArray[np.float64], rows: NDArray[np.float64], at_s: NDArray[np.float64]
) -> NDArray[np.float64]:
    right = np.clip(np.searchsorted(relative_s, at_s, side="right"), 1, len(relative_s) - 1)
    left = right - 1
    share = (at_s - relative_s[left]) / (relative_s[right] - relative_s[left])
    return rows[left] + (rows[right] - rows[left]) * np.clip(share, 0.0, 1.0)[:, None]
