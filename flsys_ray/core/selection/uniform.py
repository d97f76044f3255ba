"""A lottery: every candidate has the same chance when a round opens, however often it checks in.

Each device draws one ticket a round from (seed, round, device), uniform in [0, 1), and is taken when the ticket is
below `slots / candidates`. Coming back in the same round does not draw again. Since candidates can vanish, the bar
rises with the time since the round's first candidate until, at `open_at_fraction` of the round's time, everyone who is
there is taken: no round starves for want of luck. The price: in rounds that fill slowly, those who come back often
pass the rising bar first. A model's first rounds know few candidates yet and take who comes.
"""

from typing import Literal

from pydantic import Field

from flsys_ray.core.rng import unit
from flsys_ray.core.selection.base import Candidacy, Selector


class Uniform(Selector):
    """A lottery with one ticket a device and round."""

    name: Literal["uniform"] = "uniform"
    open_at_fraction: float = Field(0.5, gt=0, le=1, description="share of the round's time after which all are taken")

    def chooses(self, candidacy: Candidacy) -> bool:
        """Return whether the device's ticket is below the bar."""
        fair = min(1.0, candidacy.slots / candidacy.candidates)
        waited = min(1.0, candidacy.elapsed_fraction / self.open_at_fraction)
        bar = fair + (1.0 - fair) * waited
        return unit(candidacy.seed, "selection", candidacy.round, candidacy.device_id) < bar
