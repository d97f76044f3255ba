"""When devices are there, how fast they are, and how often they fail: made up from published statistics, or read.

Windows repeat every `period_s`. In a window a device is eligible as phones judge it: idle, charging, on an unmetered
network. It checks in only then; work that is not uploaded when its window ends is lost.

Made-up traces (`synthetic_traces`) follow what is published, and say where a number is ours:

- four times as many devices are there at the peak, at night, as at the trough (Bonawitz et al. 2019, arXiv 1902.01046,
  section 9);
- one training in ten is lost (the same: 6 to 10 %; FLASH, Yang et al. 2021, arXiv 2006.06983, found more than 10 %);
  how the losses divide on before, during and after training is ours;
- devices differ by an order of magnitude in speed and by more in bandwidth (FedScale, Lai et al. 2022, arXiv
  2105.11367, section 4, after AI Benchmark and MobiPerf). The four classes, the medians and the spreads are ours.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from flsys_ray.core.rng import generator
from flsys_ray.errors import DataInvalid

DAY_S = 86400.0
CLASS_SHARE = (0.2, 0.4, 0.3, 0.1)
CLASS_SPEED = (2.0, 1.0, 0.5, 0.2)  # of a device of the middle
SPEED_SPREAD = 0.25  # within a class, of the logarithm
DOWN_BYTES_PER_S, UP_BYTES_PER_S, NETWORK_SPREAD = 2.5e6, 1.0e6, 1.0
LOSS_BEFORE, LOSS_DURING, LOSS_AFTER = 0.02, 0.06, 0.02
NIGHT_H, NIGHT_SPREAD_H, SLEEP_H, SLEEP_SPREAD_H = 23.0, 2.0, 7.0, 1.5
DAY_WINDOWS, DAY_WINDOW_H = 2, 3.0
CHARGE_PER_S = 0.5 / 3600
SPREAD_S = 60.0

_FLOATS = (
    "speed", "down_bytes_per_s", "up_bytes_per_s", "loss_before", "loss_during", "loss_after", "battery_fraction",
)  # fmt: skip
_PERIOD = b"period_s"


@dataclass(frozen=True, eq=False)
class Traces:
    """Arrays over D devices; nothing is an object of its own, so that a million devices take 90 MB.

    Attributes:
        speed: float32 [D], of local training, 1 is a device of the middle.
        down_bytes_per_s, up_bytes_per_s: float32 [D].
        loss_before, loss_during, loss_after: float32 [D], how likely a training is lost: before it begins, while it
            runs, and when its update is to be uploaded.
        battery_fraction: float32 [D], at a window's beginning; it charges half of its capacity an hour.
        offsets: int64 [D + 1]; device d has the windows `offsets[d] : offsets[d + 1]`.
        starts, ends: float32 [W], seconds within a period, in order; an end may lie in the next period.
        period_s: after which windows repeat.
    """

    speed: NDArray[np.float32]
    down_bytes_per_s: NDArray[np.float32]
    up_bytes_per_s: NDArray[np.float32]
    loss_before: NDArray[np.float32]
    loss_during: NDArray[np.float32]
    loss_after: NDArray[np.float32]
    battery_fraction: NDArray[np.float32]
    offsets: NDArray[np.int64]
    starts: NDArray[np.float32]
    ends: NDArray[np.float32]
    period_s: float = DAY_S

    def __len__(self) -> int:
        return len(self.speed)

    def eligible(self, device: int, now: float, min_battery: float) -> tuple[float, float] | None:
        """Return the next stretch, from `now` on, in which a device may train: its beginning and end, UTC seconds.

        None: it never may. Whether a window is long enough for the battery to reach `min_battery` is part of it.
        Windows that overlap or touch are one stretch.
        """
        first, last = int(self.offsets[device]), int(self.offsets[device + 1])
        wait_s = max(0.0, (min_battery - float(self.battery_fraction[device])) / CHARGE_PER_S)
        period = int(now // self.period_s)
        stretches: list[tuple[float, float]] = []
        found: tuple[float, float] | None = None
        for number in (period - 1, period, period + 1):
            for window in range(first, last):
                end = number * self.period_s + float(self.ends[window])
                if end > now:
                    begin = max(now, number * self.period_s + float(self.starts[window]) + wait_s)
                    stretches += [(begin, end)] if begin < end else []
            found = _first_of(stretches)
            if found is not None and found[1] < (number + 1) * self.period_s:
                return found  # windows of the next period begin later
        return found

    def first_visits(self, min_battery: float, spread: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return when each device first comes by, float64 [D]: `spread` (0 to 1) of a minute after it may."""
        visits = np.full(len(self), np.inf)
        device = np.repeat(np.arange(len(self)), np.diff(self.offsets))
        wait_s = np.maximum(0.0, (min_battery - self.battery_fraction.astype(np.float64)) / CHARGE_PER_S)[device]
        for number in (-1, 0):
            begin = np.maximum(0.0, number * self.period_s + self.starts.astype(np.float64) + wait_s)
            open_ = begin < number * self.period_s + self.ends.astype(np.float64)
            np.minimum.at(visits, device[open_], begin[open_])
        return visits + spread * SPREAD_S


def _first_of(stretches: list[tuple[float, float]]) -> tuple[float, float] | None:
    """Return the earliest of some stretches, with those that begin before it ends."""
    if not stretches:
        return None
    stretches.sort()
    begin, end = stretches[0]
    for other, other_end in stretches:
        if other <= end:
            end = max(end, other_end)
    return begin, end


def always_there(devices: int, *, speed: float = 1.0, bytes_per_s: float = 1e9) -> Traces:
    """Return traces of equal devices that are always there and never fail."""
    ones, zeros = np.ones(devices, np.float32), np.zeros(devices, np.float32)
    ends = np.full(devices, DAY_S, np.float32)
    rates = (ones * np.float32(bytes_per_s), ones * np.float32(bytes_per_s))
    return Traces(ones * np.float32(speed), *rates, zeros, zeros, zeros, ones, np.arange(devices + 1), zeros, ends)


def synthetic_traces(devices: int, seed: int) -> Traces:
    """Return made-up traces; see the module. Same seed, same traces."""
    rng = generator(seed, "traces")
    classes = rng.choice(len(CLASS_SPEED), devices, p=CLASS_SHARE)
    speed = np.array(CLASS_SPEED)[classes] * np.exp(SPEED_SPREAD * rng.normal(size=devices))
    network = np.exp(NETWORK_SPREAD * rng.normal(size=devices))
    uneven = rng.gamma(2.0, 0.5, devices)  # of mean 1: some devices fail more often than others
    count = 1 + DAY_WINDOWS
    starts, ends = np.empty((devices, count)), np.empty((devices, count))
    starts[:, 0] = rng.normal(NIGHT_H, NIGHT_SPREAD_H, devices) * 3600
    ends[:, 0] = starts[:, 0] + np.maximum(0.5, rng.normal(SLEEP_H, SLEEP_SPREAD_H, devices)) * 3600
    starts[:, 1:] = rng.uniform(0, DAY_S, (devices, DAY_WINDOWS))
    ends[:, 1:] = starts[:, 1:] + rng.exponential(DAY_WINDOW_H * 3600, (devices, DAY_WINDOWS))
    shift = np.floor(starts / DAY_S) * DAY_S
    before, during, after = (np.minimum(uneven * loss, 0.9) for loss in (LOSS_BEFORE, LOSS_DURING, LOSS_AFTER))
    return Traces(
        speed=_float32(speed),
        down_bytes_per_s=_float32(network * DOWN_BYTES_PER_S),
        up_bytes_per_s=_float32(network * UP_BYTES_PER_S),
        loss_before=_float32(before),
        loss_during=_float32(during),
        loss_after=_float32(after),
        battery_fraction=_float32(rng.uniform(0.1, 1.0, devices)),
        offsets=np.arange(devices + 1) * count,
        starts=_float32((starts - shift).ravel()),
        ends=_float32((ends - shift).ravel()),
    )


def write_traces(traces: Traces, path: Path) -> None:
    """Write traces as Parquet: one row a device; lists `starts_s` and `ends_s` hold its windows."""
    columns = {name: pa.array(getattr(traces, name)) for name in _FLOATS}
    for name, values in (("starts_s", traces.starts), ("ends_s", traces.ends)):
        columns[name] = pa.ListArray.from_arrays(pa.array(traces.offsets, pa.int32()), pa.array(values))
    table = pa.table(columns).replace_schema_metadata({_PERIOD: str(traces.period_s).encode()})
    pq.write_table(table, path)


def read_traces(path: Path) -> Traces:
    """Read traces. Windows repeat after the `period_s` of the file's metadata; default: a day.

    Raises:
        DataInvalid: there is no Parquet file, or a column is missing, of another type, or holds values that cannot be.
    """
    try:
        table = pq.read_table(path).combine_chunks()
    except (pa.ArrowException, OSError) as error:
        raise DataInvalid(f"traces: {path} is no Parquet file: {error}") from error
    if missing := [name for name in (*_FLOATS, "starts_s", "ends_s") if name not in table.column_names]:
        raise DataInvalid(f"traces: {path.name} lacks {', '.join(missing)}")
    try:
        period_s = float((table.schema.metadata or {}).get(_PERIOD, str(DAY_S).encode()))
        floats = {name: _column(table[name]) for name in _FLOATS}
        lists = [_lists(table[name]) for name in ("starts_s", "ends_s")]
    except (pa.ArrowException, ValueError) as error:
        raise DataInvalid(f"traces: {path.name}: {error}") from error
    offsets = lists[0][0]
    if not np.array_equal(offsets, lists[1][0]):
        raise DataInvalid(f"traces: {path.name}: starts_s and ends_s have lists of different lengths")
    traces = Traces(**floats, offsets=offsets, starts=lists[0][1], ends=lists[1][1], period_s=period_s)
    _check(traces, path.name)
    return traces


def _check(traces: Traces, name: str) -> None:
    rates = np.stack([traces.speed, traces.down_bytes_per_s, traces.up_bytes_per_s])
    shares = np.stack([traces.loss_before, traces.loss_during, traces.loss_after, traces.battery_fraction])
    if len(traces) == 0 or not (np.isfinite(rates).all() and (rates > 0).all()):
        raise DataInvalid(f"traces: {name}: speed and bandwidths must be positive, and there must be a device")
    if not ((shares >= 0).all() and (shares <= 1).all()):
        raise DataInvalid(f"traces: {name}: losses and battery_fraction must lie in 0 .. 1")
    inside = (traces.starts >= 0) & (traces.starts < traces.period_s) & (traces.ends > traces.starts)
    if not (traces.period_s > 0 and inside.all() and (traces.ends <= traces.starts + traces.period_s).all()):
        raise DataInvalid(f"traces: {name}: a window must begin within the period, and last no longer than one")


def _float32(array: NDArray[np.float64]) -> NDArray[np.float32]:
    return array.astype(np.float32)


def _column(column: pa.ChunkedArray) -> NDArray[np.float32]:
    values: NDArray[np.float32] = column.cast(pa.float32()).to_numpy()
    return values


def _lists(column: pa.ChunkedArray) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Return offsets [D + 1] and values of a column of lists; a missing list is an empty one."""
    lists = column.cast(pa.list_(pa.float32())).to_pylist()
    lengths = [0 if one is None else len(one) for one in lists]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    values = [value for one in lists if one is not None for value in one]
    return offsets, np.array(values, np.float32)
