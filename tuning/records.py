"""What is known of each trial when a sweep has ended, the best of them, and those that nothing dominates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from flsys_ray.errors import InvalidInput
from tuning.figures import Figures, mean_of
from tuning.space import Value

Status = Literal["finished", "ended early", "stalled", "refused", "failed"]


@dataclass(frozen=True, slots=True)
class Record:
    """One trial.

    Attributes:
        number: in the order in which configurations were made.
        status: `finished`: all versions of all seeds; `ended early`: by the search; `stalled`: rounds closed without
            versions, or virtual time ran out; `refused`: its plan contradicts itself; `failed`: by an error.
        reports: the figures of each seed at each evaluated version, oldest first.
        digests: the hash of the newest version of each seed.
        wall_s: seconds of real time that it took.
        problem: why it was refused or failed.
    """

    number: int
    configuration: Mapping[str, Value]
    status: Status
    reports: Sequence[Sequence[Figures]]
    digests: Mapping[str, str] = field(default_factory=dict)
    wall_s: float = 0.0
    problem: str | None = None

    def last(self, metric: str) -> Figures:
        """Return the means over seeds at the last version. Raises `IndexError` if it never reported."""
        return mean_of(self.reports[-1], metric)


def best_of(records: Sequence[Record], metric: str) -> Record:
    """Return the finished trial with most of the metric; of equal ones the one with the fewest bytes.

    Raises:
        InvalidInput: no trial finished.
    """
    finished = finished_of(records)
    if not finished:
        raise InvalidInput("sweep: no trial finished, so there is no best plan: the table says what became of each")
    return max(finished, key=lambda r: (r.last(metric)[metric], -r.last(metric)["bytes"], -r.number))


def front_of(records: Sequence[Record], metric: str, costs: Sequence[str]) -> list[Record]:
    """Return the finished trials that no other one dominates: as good or better in all, and better in one.

    More of the metric is better, and less of each cost. Sorted by the first cost.
    """
    finished = finished_of(records)
    points = {r.number: _point(r.last(metric), metric, costs) for r in finished}
    front = [r for r in finished if not any(_dominates(other, points[r.number]) for other in points.values())]
    return sorted(front, key=lambda r: r.last(metric)[costs[0]])


def finished_of(records: Sequence[Record]) -> list[Record]:
    """Return the trials that trained all versions of all seeds."""
    return [r for r in records if r.status == "finished" and r.reports]


def ranked(records: Sequence[Record], metric: str) -> list[Record]:
    """Return the trials, the best first: finished ones by the metric, then the others by how far they came."""

    def rank(record: Record) -> tuple[float, ...]:
        score = record.last(metric)[metric] if record.reports else None
        finished = record.status == "finished"
        return (not finished, 0 if finished else -len(record.reports), -(score or 0.0), record.number)

    return sorted(records, key=rank)


def _point(figures: Figures, metric: str, costs: Sequence[str]) -> tuple[float, ...]:
    return (-figures[metric], *(figures[cost] for cost in costs))


def _dominates(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return one != other and all(a <= b for a, b in zip(one, other, strict=True))
