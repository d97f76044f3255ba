"""Devices that are seldom there come first, and those that took part lately wait.

Abdelmoniem, Sahu, Canini, Fahmy, "REFL: Resource-Efficient Federated Learning", EuroSys 2023 (arXiv 2111.01108),
section 4.1: the least available devices are preferred, and who took part pauses for some rounds. There a device
predicts its availability; here it is estimated by how often the device was counted in the last versions, since a
prediction would tell the cloud about the user's day. The other half of REFL, late updates that count with less weight
(section 4.2), is the pacing's: `pacing: {late: {max_staleness: 5}}`.
"""

from typing import Literal

from pydantic import Field

from flsys_ray.core.selection.base import Candidacy
from flsys_ray.core.selection.history import History, Known
from flsys_ray.core.selection.ranked import Ranked


class Refl(Ranked):
    """Prefers devices that were counted seldom, and of these the ones that are longest ago."""

    name: Literal["refl"] = "refl"
    hold_off: int = Field(5, ge=0, le=64, description="rounds for which a counted device waits, if there are others")

    def score(self, known: Known, history: History, round_: int) -> float | None:
        """Return minus how often it was counted; of equals the longer ago the higher."""
        ago = round_ - known.last_round
        return -float(known.times) + 1.0 - 1.0 / (1.0 + max(0, ago))

    def chooses(self, candidacy: Candidacy) -> bool:
        """Return whether the device has paused long enough, is drawn, and is among the seldom."""
        known = candidacy.history.devices.get(candidacy.device_id)
        pausing = known is not None and candidacy.round - known.last_round <= self.hold_off
        crowded = candidacy.candidates > candidacy.slots * (self.hold_off + 1)
        if pausing and crowded and candidacy.elapsed_fraction < self.open_at_fraction:
            return False
        return super().chooses(candidacy)
