"""What is known of devices: what their counted updates said, of the last versions.

It is a function of the last committed versions' lines and of nothing else, and each line is in the model's log: a
restart reads the same history again. It is bounded in versions and in lines, and a device of which no line is left is
not known any more.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

VERSIONS = 64
LINES = 20_000


class Line(Protocol):
    """What a version's line says of one update; `UpdateRef` is one."""

    @property
    def device_id(self) -> str: ...  # noqa: D102
    @property
    def num_examples(self) -> int: ...  # noqa: D102
    @property
    def loss(self) -> float: ...  # noqa: D102
    @property
    def train_s(self) -> float | None: ...  # noqa: D102
    @property
    def labels(self) -> tuple[int, ...] | None: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Known:
    """One device: how often it was counted, in which round last, and what its last update said.

    `loss` is the mean training loss, `train_s` how long training took, `labels` how many examples of each class it
    had; None where the device says nothing.
    """

    times: int
    last_round: int
    examples: int
    loss: float
    train_s: float | None = None
    labels: tuple[int, ...] | None = None


@dataclass(frozen=True, eq=False)
class History:
    """The lines of the last versions, oldest first, each with the round that made it."""

    versions: tuple[tuple[int, tuple[Line, ...]], ...] = field(default=(), repr=False)

    def after(self, round_: int, lines: Sequence[Line]) -> "History":
        """Return the history with one version more, and without what is too old or too much."""
        versions = (*self.versions, (round_, tuple(lines[:LINES])))[-VERSIONS:]
        total, first = 0, len(versions)
        while first > 0 and total + len(versions[first - 1][1]) <= LINES:
            first -= 1
            total += len(versions[first][1])
        return History(versions[first:])

    @cached_property
    def devices(self) -> dict[str, Known]:
        """Every device that is known, by its id."""
        found: dict[str, Known] = {}
        for round_, lines in self.versions:
            for line in lines:
                before = found.get(line.device_id)
                times = 1 if before is None else before.times + 1
                told = (line.num_examples, line.loss, line.train_s, line.labels)
                found[line.device_id] = Known(times, round_, *told)
        return found


NO_HISTORY = History()
