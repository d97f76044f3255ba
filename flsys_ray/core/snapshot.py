"""A coordinator's state at one instant."""

from dataclasses import dataclass
from typing import Any

from flsys_ray.core.layout import Vector
from flsys_ray.core.ledger import Entry
from flsys_ray.core.selection.distinct import DistinctCount
from flsys_ray.core.selection.history import NO_HISTORY, History
from flsys_ray.core.types import Version


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """All of a coordinator's state at one instant: `Coordinator.restore` makes an equal one of it."""

    version: Version
    round: int
    opened_at: float
    asked_at: float | None
    started_at: float | None
    entries: tuple[Entry, ...]
    settled: tuple[Entry, ...]
    fold: Any
    held: tuple[tuple[str, Vector], ...]
    candidates: DistinctCount
    earlier_candidates: DistinctCount
    last_duration_s: float | None
    history: History = NO_HISTORY
