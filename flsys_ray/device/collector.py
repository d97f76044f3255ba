"""The data collector: brings a source's data into the local database, exactly once.

A live source is any iterable of `Sample`s; windows are cut while it runs. A replay plays the stream of one user of a
data set, in time order, at a speed or all at once. How far a replay has come is stored together with its examples, so
a phone that is killed in between neither loses nor repeats one.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from flsys_ray.device.examples import Example, ExampleStore
from flsys_ray.errors import InvalidInput


@dataclass(frozen=True, slots=True)
class Sample:
    """One reading of a three-axis sensor: UTC seconds, m/s^2, and what the user was doing, if anybody said so."""

    timestamp_s: float
    xyz: tuple[float, float, float]
    label: str | None = None


class SampleSink(Protocol):
    """Where samples go: `Phone` is one."""

    def add_samples(self, timestamps_s: Sequence[float], xyz: Sequence[Sequence[float]], label: str | None) -> int:
        """Take samples of one label in their order of arrival; return how many examples they made."""


def collect(source: Iterable[Sample], sink: SampleSink, *, stop: Callable[[], bool], most: int = 64) -> int:
    """Feed a live source into a phone, at most `most` samples at a time, until it ends or `stop` says so.

    Returns:
        how many examples came of it.
    """
    made, chunk = 0, list[Sample]()

    def hand_over() -> int:
        if not chunk:
            return 0
        label = chunk[0].label
        examples = sink.add_samples([s.timestamp_s for s in chunk], [s.xyz for s in chunk], label)
        chunk.clear()
        return examples

    for sample in source:
        if chunk and (sample.label != chunk[0].label or len(chunk) >= most):
            made += hand_over()
        chunk.append(sample)
        if stop():
            break
    return made + hand_over()


class UserExamples(Protocol):
    """One user's examples: x [N, ...], y [N] (indices of classes), and for each its time in its session, seconds."""

    @property
    def x(self) -> NDArray[Any]:
        """Inputs."""

    @property
    def y(self) -> NDArray[np.int32]:
        """Classes."""

    @property
    def start_s(self) -> NDArray[np.float64]:
        """First instants."""

    @property
    def end_s(self) -> NDArray[np.float64]:
        """Last instants."""

    @property
    def session(self) -> NDArray[np.str_]:
        """Names of recordings."""


class UserData(Protocol):
    """A data set by user; `flsys_ray.data.dataset.Dataset` is one. The phone itself reads no files of data sets."""

    @property
    def name(self) -> str:
        """The data set's name."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names, in the order of `y`."""

    @property
    def users(self) -> tuple[str, ...]:
        """Who has examples."""

    def examples(self, user: str) -> UserExamples:
        """Read one user's examples, in order of session and time."""


class ExampleSource(Protocol):
    """A source that knows its examples in advance."""

    @property
    def name(self) -> str:
        """A stable name: the position in the source is stored under it."""

    def due(self, position: int, elapsed_s: float) -> Sequence[Example]:
        """Return the examples after the first `position` that have happened `elapsed_s` seconds after the start."""


@dataclass(frozen=True)
class ReplaySource:
    """One user's examples of a data set, in time order.

    Attributes:
        part: (index, count): this phone takes one of `count` equal stretches of the user's examples. Where several
            emulated phones share a user, each has its own data.
        speed: seconds of the stream in one second; None: everything at once.
    """

    dataset: UserData
    user: str
    part: tuple[int, int] = (0, 1)
    speed: float | None = None

    def __post_init__(self) -> None:
        index, count = self.part
        if not 0 <= index < count:
            raise InvalidInput(f"replay of {self.user}: part {index} of {count} does not exist")
        if self.speed is not None and not self.speed > 0:
            raise InvalidInput(f"replay of {self.user}: speed must be positive, not {self.speed}")

    @property
    def name(self) -> str:
        """Data set, user and part."""
        return f"{self.dataset.name}/{self.user}/{self.part[0]}of{self.part[1]}"

    def due(self, position: int, elapsed_s: float) -> Sequence[Example]:
        """Return what has happened by now and was not taken yet. A session follows its predecessor without a pause."""
        examples, ends_s = self._stream
        until = len(examples)
        if self.speed is not None:
            until = int(np.searchsorted(ends_s, elapsed_s * self.speed, side="right"))
        return examples[position:until]

    @cached_property
    def _stream(self) -> tuple[list[Example], list[float]]:
        found = self.dataset.examples(self.user)
        index, count = self.part
        rows = np.array_split(np.arange(len(found.y)), count)[index]
        examples, ends_s, offset_s, session = list[Example](), list[float](), 0.0, None
        for row in rows:
            start_s, end_s, name = float(found.start_s[row]), float(found.end_s[row]), str(found.session[row])
            if name != session:
                session, offset_s = name, (ends_s[-1] if ends_s else 0.0) - start_s
            label = self.dataset.classes[int(found.y[row])]
            # Texts last no time, and are held out by what they say: a repeated one cannot be on both sides.
            at_s = start_s if end_s > start_s else None
            examples.append(Example(found.x[row], None, label, at_s, end_s - start_s, name))
            ends_s.append(offset_s + end_s)
        return examples, ends_s


def feed(model: str, source: ExampleSource, store: ExampleStore, now: float) -> int:
    """Store what is due of a source at `now` (UTC seconds) and was not stored before; return how many examples."""
    key = f"source:{model}:{source.name}"
    found = store.database.setting(key)
    position, started_at = (int(part) for part in str(found).split("@")) if found else (0, int(now))
    examples = source.due(position, now - started_at)
    if examples or found is None:
        store.add(model, examples, now, {key: f"{position + len(examples)}@{started_at}"})
    return len(examples)
