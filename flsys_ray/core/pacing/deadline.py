"""Synchronous rounds with over-selection, a quorum and a deadline.

Bonawitz et al., "Towards Federated Learning at Scale: System Design", MLSys 2019 (arXiv 1902.01046), section 2.2: more
devices are asked than needed (they found 130 % enough), the round commits as soon as the goal is reached, or at the
deadline with whatever is there if that is enough. A round that misses its quorum is abandoned.
"""

import math
from typing import Literal

from pydantic import Field, model_validator

from flsys_ray.core.pacing.base import Decision, Pacing, RoundView
from flsys_ray.core.pacing.late import LateUpdates
from flsys_ray.core.staleness.base import Staleness


class Rounds(Pacing):
    """Commits at `cohort` updates, or at the deadline with at least `quorum`; closes without a commit otherwise."""

    name: Literal["rounds"] = "rounds"
    cohort: int = Field(16, ge=1, le=100_000, description="updates that make a version")
    over_selection: float = Field(1.3, ge=1, le=10, description="devices asked for each update needed")
    quorum: int | None = Field(None, ge=1, description="fewest updates at the deadline; default: half of the cohort")
    deadline_s: float = Field(120.0, gt=0, le=7 * 86400)
    late: LateUpdates | None = Field(None, description="fold updates that missed their round into the open one")

    @model_validator(mode="after")
    def _quorum_is_within_the_cohort(self) -> "Rounds":
        if self.needed > self.cohort:
            raise ValueError(f"quorum ({self.quorum}) is larger than cohort ({self.cohort}): no round could reach it")
        return self

    @property
    def needed(self) -> int:
        """The quorum."""
        return self.quorum if self.quorum is not None else math.ceil(self.cohort / 2)

    @property
    def slots(self) -> int:
        """The cohort, over-selected."""
        return math.ceil(round(self.cohort * self.over_selection, 6))  # 100 * 1.1 is a little above 110 in binary

    @property
    def max_updates(self) -> int:
        """Eight times the slots: enough for seven restarts within a round, at the price of three fraction bits."""
        return 8 * self.slots

    @property
    def min_updates(self) -> int:
        """The quorum."""
        return self.needed

    @property
    def staleness(self) -> Staleness | None:
        """As `late` says: by default an update that missed its round is lost."""
        return self.late.staleness if self.late is not None else None

    def free_slots(self, view: RoundView) -> int:
        """Slots less the devices that are at work or done; a slot that was given back is free again."""
        if view.counters.counted >= self.cohort or view.now >= self.deadline(view):
            return 0
        return self.slots - view.counters.pending - view.counters.counted

    def decide(self, view: RoundView) -> Decision:
        """Commit when full, or at the deadline with the quorum; close at the deadline without it."""
        if view.counters.counted >= self.cohort:
            return "commit"
        if view.now < self.deadline(view):
            return "wait"
        return "commit" if view.counters.counted >= self.needed else "close"

    def deadline(self, view: RoundView) -> float:
        """The round's."""
        return view.started_at + self.deadline_s

    def assignment_deadline(self, view: RoundView) -> float:
        """The round's; with `late`, the end of the last round in which the update may count."""
        return self.deadline(view) + (self.late.max_staleness * self.deadline_s if self.late is not None else 0.0)

    def elapsed_fraction(self, view: RoundView) -> float:
        """The share of `deadline_s`."""
        return min(1.0, max(0.0, (view.now - view.started_at) / self.deadline_s))
