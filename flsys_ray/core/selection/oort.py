"""Devices whose training is worth much for its time come first, and some that are not known yet.

Lai, Zhu, Madhyastha, Chowdhury, "Oort: Efficient Federated Learning via Guided Participant Selection", OSDI 2021
(arXiv 2010.06081), Algorithm 1 and equation 1: the utility of a device is its examples times the root mean square of
their losses, times (T / t)^alpha if it takes longer than T, plus a bonus that grows with the rounds since it was last
seen. A part epsilon of the slots, falling from round to round, goes to devices that are not known; the others are drawn
from those above a cutoff in proportion to their utility.

What differs: devices tell the mean loss and not each example's, so the mean stands for the root mean square. One device
is judged at a time, so each is taken with the chance that makes the expected number right. T is fixed, or a quantile of
the times that are known; Oort's pacer, which moves T, is not here. Utilities are cut at their 0.95 quantile, as there.
"""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal

from pydantic import Field

from flsys_ray.core.rng import unit
from flsys_ray.core.selection.base import Candidacy, Selector
from flsys_ray.core.selection.history import History, Known

QUANTILE = 0.95
BONUS = 0.1


class Oort(Selector):
    """Utility, exploration, and a time to which slow devices are held."""

    name: Literal["oort"] = "oort"
    reads_history: ClassVar[bool] = True
    exploration: float = Field(0.9, ge=0, le=1, description="share of slots for devices not known, in round 0")
    exploration_decay: float = Field(0.98, gt=0, le=1, description="what a round leaves of that share")
    min_exploration: float = Field(0.2, ge=0, le=1)
    preferred_s: float | None = Field(None, gt=0, description="T; default: four of five known devices are faster")
    penalty: float = Field(2.0, ge=0, le=10, description="alpha; 0: slow devices are as welcome")
    cutoff: float = Field(0.95, gt=0, le=1, description="drawn are those with this share of the last one's utility")
    max_times: int = Field(64, ge=1, description="a device that was counted as often in the last versions has a rest")
    open_at_fraction: float = Field(0.5, gt=0, le=1, description="share of the round's time after which all are taken")

    def share_of_unknown(self, round_: int) -> float:
        """Return epsilon of a round."""
        return max(self.min_exploration, self.exploration * self.exploration_decay**round_)

    def chooses(self, candidacy: Candidacy) -> bool:
        """Return whether the device's ticket is below its chance."""
        waited = min(1.0, candidacy.elapsed_fraction / self.open_at_fraction)
        chance = self.chance(candidacy)
        ticket = unit(candidacy.seed, "selection", candidacy.round, candidacy.device_id)
        return ticket < chance + (1.0 - chance) * waited

    def chance(self, candidacy: Candidacy) -> float:
        """Return the chance of the device when the round opens."""
        if candidacy.candidates <= candidacy.slots:
            return 1.0
        devices, slots = candidacy.history.devices, candidacy.slots
        unknown = max(0.0, candidacy.candidates - len(devices))
        explored = min(unknown, self.share_of_unknown(candidacy.round) * slots)
        known = devices.get(candidacy.device_id)
        if known is None:
            return min(1.0, explored / max(unknown, 1.0))
        market = _market(self, candidacy.history, candidacy.round, max(1, round(slots - explored)))
        utility = self.utility(known, candidacy.history, candidacy.round)
        if utility < market.bar or known.times >= self.max_times:
            return 0.0
        return min(1.0, (slots - explored) * min(utility, market.most) / market.total) if market.total > 0 else 1.0

    def utility(self, known: Known, history: History, round_: int) -> float:
        """Return the device's utility: statistical, with the bonus for a long absence, times that of its speed."""
        ago = max(1, round_ - known.last_round)
        statistical = known.examples * max(0.0, known.loss)
        worth = statistical * (1.0 + math.sqrt(BONUS * math.log(1 + round_) * ago / (1 + round_)))
        limit = self.preferred_s if self.preferred_s is not None else _usual_s(history)
        if known.train_s is None or limit is None or known.train_s <= limit:
            return worth
        return worth * float((limit / known.train_s) ** self.penalty)


@dataclass(frozen=True, slots=True)
class Market:
    """The bar that a utility must reach, what is counted of one at most, and the sum over those above the bar."""

    bar: float
    most: float
    total: float


@lru_cache(maxsize=16)
def _market(selector: Oort, history: History, round_: int, wanted: int) -> Market:
    rested = [known for known in history.devices.values() if known.times < selector.max_times]
    found = sorted((selector.utility(known, history, round_) for known in rested), reverse=True)
    if not found:
        return Market(0.0, 0.0, 0.0)
    most = found[int((1.0 - QUANTILE) * len(found))]
    bar = selector.cutoff * min(most, found[min(wanted, len(found)) - 1])
    return Market(bar, most, math.fsum(min(utility, most) for utility in found if utility >= bar))


@lru_cache(maxsize=16)
def _usual_s(history: History) -> float | None:
    """Return the time that four of five known devices do not exceed, None if no device says how long it takes."""
    told = sorted(known.train_s for known in history.devices.values() if known.train_s is not None)
    return told[math.ceil(0.8 * len(told)) - 1] if told else None
