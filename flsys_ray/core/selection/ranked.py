"""The base of selectors that prefer some devices: the best of a drawn group, without ever seeing the group.

A selector sees one device at the door. So it draws each with the chance that it would have to be in a group of `choice`
times as many as there are slots, and takes it if its score is among the best `1 / choice` of the scores that are known.
On average that fills the slots as the best of the group would. A device that is not known yet counts as the best:
otherwise it never would be. As with `uniform`, both bars move with the time, until at `open_at_fraction` of the
round's time everyone who is there is taken: no round starves for want of the best.
"""

from abc import abstractmethod
from bisect import bisect_left, bisect_right
from functools import lru_cache
from typing import ClassVar

from pydantic import Field

from flsys_ray.core.rng import unit
from flsys_ray.core.selection.base import Candidacy, Selector
from flsys_ray.core.selection.history import History, Known


class Ranked(Selector):
    """Prefers devices with a high score."""

    reads_history: ClassVar[bool] = True
    choice: float = Field(3.0, ge=1, le=100, description="size of the group to take the best of, in slots; 1: lottery")
    open_at_fraction: float = Field(0.5, gt=0, le=1, description="share of the round's time after which all are taken")

    @abstractmethod
    def score(self, known: Known, history: History, round_: int) -> float | None:
        """Return how much the device is wanted; None: nothing is known that says so, and a draw decides."""

    def chooses(self, candidacy: Candidacy) -> bool:
        """Return whether the device is drawn, and among the best."""
        seed, round_, device = candidacy.seed, candidacy.round, candidacy.device_id
        waited = min(1.0, candidacy.elapsed_fraction / self.open_at_fraction)
        choice = max(1.0, min(self.choice, candidacy.candidates / candidacy.slots))
        drawn = min(1.0, choice * candidacy.slots / candidacy.candidates)
        if unit(seed, "selection", round_, device) >= drawn + (1.0 - drawn) * waited:
            return False
        return self._rank(candidacy) >= (1.0 - 1.0 / choice) * (1.0 - waited)

    def _rank(self, candidacy: Candidacy) -> float:
        """Return the share of known scores below the device's, ties drawn apart: 0 to 1."""
        draw = unit(candidacy.seed, "rank", candidacy.round, candidacy.device_id)
        known = candidacy.history.devices.get(candidacy.device_id)
        if known is None:
            return 1.0
        score = self.score(known, candidacy.history, candidacy.round)
        scores = _scores(self, candidacy.history, candidacy.round)
        if score is None or not scores:
            return draw
        low, high = bisect_left(scores, score), bisect_right(scores, score)
        return (low + draw * (high - low)) / len(scores)


@lru_cache(maxsize=16)
def _scores(selector: Ranked, history: History, round_: int) -> tuple[float, ...]:
    """Return the scores of all known devices, rising: once a round, not once a device."""
    found = (selector.score(known, history, round_) for known in history.devices.values())
    return tuple(sorted(score for score in found if score is not None))
