"""What the cloud counts and times, and the seam through which the numbers leave.

`SERIES` is the whole list; docs/seeing.md repeats it. Labels have few values: a device, or a name that a phone made up,
is never one. `model` is a model's id, `app/name`.
"""

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, Protocol

from flsys_ray.core.ids import model_id
from flsys_ray.wire.developer_schemas import RoundInfo
from flsys_ray.wire.schemas import CheckInReply


@dataclass(frozen=True, slots=True)
class Series:
    """One series of numbers: a counter adds up, a gauge is the last one, a histogram (upper `bounds`) spreads them."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    about: str
    labels: tuple[str, ...] = ("model",)
    bounds: tuple[float, ...] = ()


CHECK_INS = Series(
    "flsys_check_ins",
    "counter",
    "Check-ins: `assigned`, or why not. Model `-`: none of the app's",
    ("model", "outcome"),
)
UPDATES = Series(
    "flsys_updates",
    "counter",
    "Uploads: `counted`, `duplicate`, `late`, `unusable`, or `failed` here",
    ("model", "outcome"),
)
UPDATE_BYTES = Series("flsys_update_bytes", "counter", "Bytes of uploads, repeats and refused ones included")
DOWNLOAD_BYTES = Series("flsys_download_bytes", "counter", "Bytes of downloads", ("model", "what"))
ROUNDS = Series("flsys_rounds", "counter", "Rounds that ended: `committed` or `no-quorum`", ("model", "outcome"))
ROUND_S = Series(
    "flsys_round_seconds",
    "histogram",
    "From the opening of a round to its end",
    bounds=(1, 3, 10, 30, 100, 300, 1000, 3000, 10_000, 30_000, 100_000),
)
COMMIT_S = Series(
    "flsys_commit_seconds",
    "histogram",
    "From the end of a round to its version in the store",
    bounds=(0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30),
)
VERSION = Series("flsys_version", "gauge", "The newest version")
REFUSALS = Series(
    "flsys_refusals",
    "counter",
    "Requests that were refused, by the code of the problem; `http-405` and the like",
    ("reason",),
)
_REQUEST_BOUNDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30)
CHECK_IN_S = Series(
    "flsys_check_in_seconds", "histogram", "A check-in, from its body to its answer", (), _REQUEST_BOUNDS
)
UPLOAD_S = Series(
    "flsys_upload_seconds",
    "histogram",
    "An upload: its `body` comes, `check`, `store` and `count`, each with its waits; a refused one up to there",
    ("stage",),
    _REQUEST_BOUNDS,
)
NO_MODEL = "-"
SERIES = (
    *(CHECK_INS, UPDATES, UPDATE_BYTES, DOWNLOAD_BYTES, ROUNDS, ROUND_S, COMMIT_S, VERSION, REFUSALS),
    *(CHECK_IN_S, UPLOAD_S),
)


class Meter(Protocol):
    """Takes numbers. It never fails and never waits: what is measured goes on without it."""

    def record(self, series: Series, value: float, *labels: str) -> None:
        """Take one number, with a value for each of the series' labels."""


class NoMeter:
    """Forgets every number."""

    def record(self, series: Series, value: float, *labels: str) -> None:
        """Forget it."""


NO_METER = NoMeter()


class Stages:
    """Times the stages of one piece of work: each is over when it is `done`, and the next one begins."""

    def __init__(self, meter: Meter, series: Series, clock: Callable[[], float] = time.perf_counter) -> None:
        self._meter = meter
        self._series = series
        self._clock = clock
        self._since = clock()

    def done(self, *labels: str) -> None:
        """Record the time since the last stage was over."""
        now = self._clock()
        self._meter.record(self._series, now - self._since, *labels)
        self._since = now


@dataclass
class MemoryMeter:
    """Keeps every number, by series and labels, oldest first: for tests and for looking from the same process."""

    numbers: dict[tuple[str, ...], list[float]] = field(default_factory=lambda: defaultdict(list))

    def record(self, series: Series, value: float, *labels: str) -> None:
        """Keep it. Raises `ValueError` for another number of labels than the series has."""
        if len(labels) != len(series.labels):
            raise ValueError(f"{series.name} has the labels {series.labels}, got {labels}")
        self.numbers[series.name, *labels].append(value)

    def total(self, series: Series, *labels: str) -> float:
        """Return the sum of a series' numbers with these labels."""
        return sum(self.numbers.get((series.name, *labels), ()))


def record_check_in(meter: Meter, app_id: str, reply: CheckInReply) -> None:
    """Record what a check-in of an app's device came to, one number a model that it asked for."""
    for work in reply.assignments:
        meter.record(CHECK_INS, 1, model_id(app_id, work.model), "assigned")
    for refused in reply.rejections:
        named = NO_MODEL if refused.reason == "unknown-model" else model_id(app_id, refused.model)
        meter.record(CHECK_INS, 1, named, refused.reason)


def record_round(meter: Meter, model: str, closed: RoundInfo, commit_s: float) -> None:
    """Record a round of the model of this id that ended."""
    meter.record(ROUNDS, 1, model, "no-quorum" if closed.committed is None else "committed")
    meter.record(ROUND_S, closed.closed_at - closed.opened_at, model)
    if closed.committed is not None:
        meter.record(COMMIT_S, commit_s, model)
        meter.record(VERSION, closed.committed, model)
