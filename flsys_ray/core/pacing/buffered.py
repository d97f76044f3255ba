"""Asynchronous training in a buffer: FedBuff.

Nguyen, Malik, Zhan, Yousefpour, Rabbat, Malek, Huba, "Federated Learning with Buffered Asynchronous Aggregation",
AISTATS 2022 (arXiv 2106.06639), Algorithm 1: a fixed number of devices is at work at any time, each on the version that
was the newest when it began; every K updates make a version. A round is one filling of the buffer, so it ends by a
commit only.

The paper divides the sum of weighted deltas by K: a buffer of old updates makes a smaller step. Here the plan's
aggregation rule divides, `weighted_mean` by the sum of weights: staleness decides what updates count beside each other,
and the server's learning rate alone how far a version moves.
"""

from typing import Literal

from pydantic import Field

from flsys_ray.core.pacing.base import Decision, Pacing, RoundView
from flsys_ray.core.pacing.late import MAX_STALENESS, AnyWeight
from flsys_ray.core.staleness.base import Staleness


class Buffered(Pacing):
    """Commits at `buffer` updates, whatever version each began with; refuses those more than `max_staleness` old."""

    name: Literal["buffered"] = "buffered"
    buffer: int = Field(10, ge=1, le=100_000, description="K: updates that make a version")
    concurrency: int = Field(32, ge=1, le=100_000, description="devices at work at a time")
    deadline_s: float = Field(600.0, gt=0, le=7 * 86400, description="of each assignment; a version may pass meanwhile")
    max_staleness: int = Field(20, ge=0, le=MAX_STALENESS, description="an update may be so many versions old")
    weight: AnyWeight = Field("polynomial", validate_default=True, description="what an old update counts")

    @property
    def slots(self) -> int:
        """The concurrency."""
        return self.concurrency

    @property
    def max_updates(self) -> int:
        """Eight times the larger of buffer and concurrency: what may be durable after restarts, as with rounds."""
        return 8 * max(self.buffer, self.concurrency)

    @property
    def min_updates(self) -> int:
        """The buffer: nothing less is committed."""
        return self.buffer

    @property
    def asynchronous(self) -> bool:
        """It is."""
        return True

    @property
    def staleness(self) -> Staleness:
        """As the fields say."""
        return Staleness(self.max_staleness, self.weight)

    def free_slots(self, view: RoundView) -> int:
        """The concurrency less the devices that are at work; a device that is done makes room at once."""
        return 0 if view.counters.counted >= self.buffer else self.concurrency - view.counters.pending

    def decide(self, view: RoundView) -> Decision:
        """Commit when the buffer is full."""
        return "commit" if view.counters.counted >= self.buffer else "wait"

    def deadline(self, view: RoundView) -> float:
        """The assignment's own: nothing else ends."""
        return view.now + self.deadline_s

    def elapsed_fraction(self, view: RoundView) -> float:
        """How long the buffer has been filling, as a share of `deadline_s`."""
        return min(1.0, max(0.0, (view.now - view.started_at) / self.deadline_s))
