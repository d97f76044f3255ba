"""Cut sensor streams into fixed windows, live or from a file, with one and the same code. Pure numpy.

A window is `rate_hz * window_s` grid values of one label from one uninterrupted stretch. A stretch ends where two
neighbours are more than `gap_s` apart, where the label changes, and where the clock goes back by more than
`lateness_s`. The grid (see `flsys_ray.data.resampling`) and the first window start at the stretch's first sample:
no window crosses a gap, a label change or a session, and shifting all timestamps shifts the windows and nothing else.

`WindowCutter` takes a live stream in chunks of any size; `cut_windows` hands a whole stream to the same class.
Samples may come out of order by up to `lateness_s`; those of the same instant and label are averaged; rows that are
not finite are left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Self, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flsys_ray.data.resampling import (
    SLACK_S,
    average_duplicates,
    finite_rows,
    grid_points,
    read_grid,
    seconds_since,
    settled_points,
)
from flsys_ray.errors import DataInvalid

STANDARD_GRAVITY_M_PER_S2 = 9.80665
AXES = 3
_BLOCK_ROWS = 4096
_MAX_WAITING_ROWS = 8192  # a clock that stands still must not fill the memory: far above any sensor's rate * lateness_s
_UNLABELLED = -1

Labels: TypeAlias = Sequence[str | None] | NDArray[np.str_] | NDArray[np.object_]


def to_android(
    values: ArrayLike, *, unit: Literal["g", "m/s^2"], sign: Literal["ios", "android"]
) -> NDArray[np.float32]:
    """Convert accelerations to m/s^2 in Android's sign: a phone lying face up at rest reads about +9.81 on z.

    iOS reports the opposite sign: the same phone reads -1 g (Core Motion, `CMAccelerometerData.acceleration`).

    Args:
        values: accelerations of any shape.
        unit: the unit of `values`.
        sign: the sign convention of `values`.
    """
    if unit not in ("g", "m/s^2") or sign not in ("ios", "android"):
        raise DataInvalid(
            f"acceleration: unit {unit!r} with sign {sign!r} is unknown; 'g' or 'm/s^2', 'ios' or 'android'"
        )
    scale = (STANDARD_GRAVITY_M_PER_S2 if unit == "g" else 1.0) * (-1.0 if sign == "ios" else 1.0)
    return (np.asarray(values, dtype=np.float64) * scale).astype(np.float32)


@dataclass(frozen=True)
class WindowSpec:
    """The form of windows.

    Attributes:
        rate_hz: grid values per second.
        window_s: length of a window; a whole number of grid values.
        stride_s: distance of the starts of neighbouring windows; a whole number of grid values.
        gap_s: a longer pause between two samples ends the stretch.
        lateness_s: how much older than the newest sample a sample may be when it arrives.
    """

    rate_hz: float = 20.0
    window_s: float = 5.0
    stride_s: float = 2.5
    gap_s: float = 1.0
    lateness_s: float = 0.25

    def __post_init__(self) -> None:
        for name in ("rate_hz", "window_s", "stride_s", "gap_s"):
            if not getattr(self, name) > 0:
                raise DataInvalid(f"windows: {name} must be positive, not {getattr(self, name)}")
        if not self.lateness_s >= 0:
            raise DataInvalid(f"windows: lateness_s must not be negative, it is {self.lateness_s}")
        for name in ("window_s", "stride_s"):
            values = getattr(self, name) * self.rate_hz
            if values < 0.5 or abs(values - round(values)) > 1e-6:
                raise DataInvalid(
                    f"windows: {name} must be a whole number of samples at {self.rate_hz} Hz, not {values}"
                )
        if self.stride_s > self.window_s:
            raise DataInvalid(f"windows: stride_s {self.stride_s} leaves data out between windows of {self.window_s} s")

    @property
    def samples(self) -> int:
        """Grid values in a window."""
        return round(self.window_s * self.rate_hz)

    @property
    def stride_samples(self) -> int:
        """Grid values from the start of one window to the start of the next."""
        return round(self.stride_s * self.rate_hz)

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of one window: (samples, axes)."""
        return self.samples, AXES


@dataclass(frozen=True)
class Window:
    """One finished window.

    Attributes:
        x: `[samples, 3]` float32.
        label: the label of all its samples; None if they had none.
        start_s: instant of the first value, on the stream's clock.
        end_s: `start_s + window_s`; the window covers `[start_s, end_s)`.
        stretch: number of its stretch in the stream, from 0. Windows of different stretches share no sample.
    """

    x: NDArray[np.float32]
    label: str | None
    start_s: float
    end_s: float
    stretch: int


@dataclass(frozen=True)
class Windows:
    """All windows of a stream: the fields of `Window`, stacked along a first axis of length N."""

    x: NDArray[np.float32]
    label: tuple[str | None, ...]
    start_s: NDArray[np.float64]
    end_s: NDArray[np.float64]
    stretch: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.label)

    @classmethod
    def stack(cls, windows: Sequence[Window], spec: WindowSpec) -> Self:
        """Stack windows of one form; none at all gives empty arrays of the right shape."""
        return cls(
            x=np.stack([w.x for w in windows]) if windows else np.empty((0, *spec.shape), np.float32),
            label=tuple(w.label for w in windows),
            start_s=np.array([w.start_s for w in windows], dtype=np.float64),
            end_s=np.array([w.end_s for w in windows], dtype=np.float64),
            stretch=np.array([w.stretch for w in windows], dtype=np.int64),
        )


def cut_windows(
    timestamps_s: ArrayLike, values: ArrayLike, labels: Labels | None = None, spec: WindowSpec | None = None
) -> Windows:
    """Cut a whole stream, in its order of arrival, into windows.

    Args:
        timestamps_s: `[T]` seconds.
        values: `[T, 3]`.
        labels: `[T]` names or None; without it no sample has a label.
        spec: the windows' form; the default is 5 s every 2.5 s at 20 Hz.

    Raises:
        DataInvalid: the shapes do not fit.
    """
    cutter = WindowCutter(spec)
    return Windows.stack([*cutter.push_many(timestamps_s, values, labels), *cutter.flush()], cutter.spec)


class _Rows(NamedTuple):
    """Samples: instants `[T]`, values `[T, 3]`, label codes `[T]`."""

    instants: NDArray[np.float64]
    values: NDArray[np.float64]
    codes: NDArray[np.int64]

    def part(self, index: slice | NDArray[np.intp]) -> "_Rows":
        return _Rows(self.instants[index], self.values[index], self.codes[index])

    def then(self, later: "_Rows") -> "_Rows":
        return _Rows(*(np.concatenate(pair) for pair in zip(self, later, strict=True)))


_NO_ROWS = _Rows(np.empty(0), np.empty((0, AXES)), np.empty(0, np.int64))


class WindowCutter:
    """Cut a live stream into windows while it arrives.

    However the stream is chunked, the windows are the same to the bit. Memory is bounded: the samples of `lateness_s`,
    one grid period before, and one window of grid values.

    >>> cutter = WindowCutter(WindowSpec(rate_hz=2.0, window_s=1.0, stride_s=1.0, lateness_s=0.0))
    >>> [w.start_s for i in range(8) for w in cutter.push(i / 2, (0.0, 0.0, 9.8), "sitting")]
    [0.0, 1.0, 2.0]
    >>> [w.start_s for w in cutter.flush()]
    [3.0]
    """

    def __init__(self, spec: WindowSpec | None = None) -> None:
        self.spec = spec or WindowSpec()
        self._codes: dict[str | None, int] = {None: _UNLABELLED}
        self._names: dict[int, str | None] = {_UNLABELLED: None}
        self._waiting = _NO_ROWS
        self._newest_s = -np.inf
        self._late_s = self.spec.lateness_s + SLACK_S
        self._gap_s = self.spec.gap_s + SLACK_S
        self._stretch: _OpenStretch | None = None
        self._stretches = 0

    def push(self, timestamp_s: float, xyz: ArrayLike, label: str | None = None) -> tuple[Window, ...]:
        """Take one sample; return the windows that it finished."""
        return self.push_many([timestamp_s], np.asarray(xyz)[np.newaxis], [label])

    def push_many(self, timestamps_s: ArrayLike, values: ArrayLike, labels: Labels | None = None) -> tuple[Window, ...]:
        """Take samples `[T]`, `[T, 3]`, `[T]` in their order of arrival; return the windows that they finished.

        Raises:
            DataInvalid: the shapes do not fit; nothing of the chunk was taken.
        """
        rows = self._coded(timestamps_s, values, labels)
        windows: list[Window] = []
        for start in range(0, len(rows.instants), _BLOCK_ROWS):
            windows += self._take(rows.part(slice(start, start + _BLOCK_ROWS)))
        return tuple(windows)

    def flush(self) -> tuple[Window, ...]:
        """End the stretch, at the end of a session say; return what it still held. The cutter can go on afterwards."""
        windows = self._consume(_sorted(self._waiting))
        self._waiting, self._newest_s = _NO_ROWS, -np.inf
        return (*windows, *self._close())

    def _coded(self, timestamps_s: ArrayLike, values: ArrayLike, labels: Labels | None) -> _Rows:
        instants = np.asarray(timestamps_s, dtype=np.float64)
        rows = np.asarray(values, dtype=np.float64).reshape(-1, AXES) if np.size(values) == 0 else np.asarray(values)
        if rows.ndim != 2 or rows.shape[1] != AXES or instants.shape != rows.shape[:1]:
            raise DataInvalid(
                f"stream: timestamps {instants.shape} and values {rows.shape} must be [T] and [T, {AXES}]"
            )
        if labels is None:
            codes = np.full(len(instants), _UNLABELLED, np.int64)
        elif len(labels) != len(instants):
            raise DataInvalid(f"stream: {len(labels)} labels for {len(instants)} samples")
        else:
            codes = np.fromiter((self._code(name) for name in labels), np.int64, len(instants))
        keep = np.isfinite(instants) & np.isfinite(rows).all(axis=1)
        instants, rows = finite_rows(instants, rows)
        return _Rows(instants, rows, codes[keep])

    def _code(self, name: str | None) -> int:
        code = self._codes.get(name)
        if code is None:
            name = str(name)
            code = self._codes[name] = len(self._codes)
            self._names[code] = name
        return code

    def _take(self, rows: _Rows) -> list[Window]:
        """Take at most `_BLOCK_ROWS` samples, splitting where the clock goes back."""
        windows: list[Window] = []
        while len(rows.instants):
            newest = np.maximum.accumulate(np.r_[self._newest_s, rows.instants])
            back = np.flatnonzero(rows.instants < newest[:-1] - self._late_s)
            end = int(back[0]) if len(back) else len(rows.instants)
            self._newest_s = float(newest[end])
            self._waiting = _sorted(self._waiting.then(rows.part(slice(0, end))))
            settled = int(np.searchsorted(self._waiting.instants, self._newest_s - self._late_s, side="left"))
            windows += self._consume(self._waiting.part(slice(0, settled)))
            self._waiting = self._waiting.part(slice(settled, None))
            if len(back) or len(self._waiting.instants) > _MAX_WAITING_ROWS:
                windows += self.flush()
            rows = rows.part(slice(end, None))
        return windows

    def _consume(self, rows: _Rows) -> list[Window]:
        """Take sorted samples that nothing can precede any more."""
        if not len(rows.instants):
            return []
        rows = _Rows(*average_duplicates(*rows))
        breaks = (np.diff(rows.instants) > self._gap_s) | (np.diff(rows.codes) != 0)
        windows: list[Window] = []
        for piece in np.split(np.arange(len(rows.instants)), np.flatnonzero(breaks) + 1):
            windows += self._extend(rows.part(piece))
        return windows

    def _extend(self, piece: _Rows) -> list[Window]:
        """Add samples without a break among them to the open stretch, or begin one with them."""
        windows: list[Window] = []
        code = int(piece.codes[0])
        open_ = self._stretch
        if open_ and (piece.instants[0] - open_.last_s > self._gap_s or open_.code != code):
            windows += self._close()
        if self._stretch is None:
            self._stretch = _OpenStretch(self.spec, float(piece.instants[0]), code)
        return [*windows, *self._named(self._stretch, self._stretch.extend(piece.instants, piece.values))]

    def _close(self) -> list[Window]:
        if self._stretch is None:
            return []
        windows = self._named(self._stretch, self._stretch.rest())
        self._stretch = None
        self._stretches += 1
        return windows

    def _named(self, stretch: "_OpenStretch", cuts: "list[_Cut]") -> list[Window]:
        label = self._names[stretch.code]
        return [Window(x, label, start_s, start_s + self.spec.window_s, self._stretches) for start_s, x in cuts]


class _Cut(NamedTuple):
    start_s: float
    x: NDArray[np.float32]


@dataclass
class _OpenStretch:
    """The stretch that is being read: the source samples and grid values that are still needed, and no more."""

    spec: WindowSpec
    start_s: float
    code: int
    relative_s: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    values: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, AXES)))
    grid: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, AXES)))
    grid_from: int = 0  # the grid index of grid[0]; always a window's start

    @property
    def last_s(self) -> float:
        """The newest sample's instant."""
        return self.start_s + float(self.relative_s[-1])

    def extend(self, instants: NDArray[np.float64], values: NDArray[np.float64]) -> list[_Cut]:
        """Add strictly later samples; return the windows whose values cannot change any more."""
        self.relative_s = np.concatenate([self.relative_s, seconds_since(self.start_s, instants)])
        self.values = np.concatenate([self.values, values])
        return self._read_until(settled_points(float(self.relative_s[-1]), self.spec.rate_hz))

    def rest(self) -> list[_Cut]:
        """Return the windows that were waiting for more samples."""
        return self._read_until(grid_points(float(self.relative_s[-1]), self.spec.rate_hz))

    def _read_until(self, end: int) -> list[_Cut]:
        begin = self.grid_from + len(self.grid)
        if end <= begin:
            return []
        rate_hz = self.spec.rate_hz
        fresh = read_grid(self.relative_s, self.values, np.arange(begin, end) / rate_hz, rate_hz)
        self.grid = np.concatenate([self.grid, fresh])
        needed = int(np.searchsorted(self.relative_s, (end - 1) / rate_hz, side="right")) - 1
        self.relative_s, self.values = self.relative_s[max(0, needed) :], self.values[max(0, needed) :]
        return self._cut()

    def _cut(self) -> list[_Cut]:
        length, stride = self.spec.samples, self.spec.stride_samples
        count = max(0, (len(self.grid) - length) // stride + 1)
        cuts = [
            _Cut(
                self.start_s + (self.grid_from + i * stride) / self.spec.rate_hz,
                self.grid[i * stride : i * stride + length].astype(np.float32),
            )
            for i in range(count)
        ]
        self.grid, self.grid_from = self.grid[count * stride :], self.grid_from + count * stride
        return cuts


def _sorted(rows: _Rows) -> _Rows:
    """Sort by instant; equal instants stay in their order of arrival."""
    if (np.diff(rows.instants) >= 0).all():
        return rows
    return rows.part(np.argsort(rows.instants, kind="stable"))
