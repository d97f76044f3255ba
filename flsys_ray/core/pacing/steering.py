"""Pace steering: when a device that got no work comes back, so that not all of them come at once.

Bonawitz et al., "Towards Federated Learning at Scale: System Design", MLSys 2019 (arXiv 1902.01046), section 2.3: few
devices are told to come when they are wanted, many are spread so that they do not arrive together.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flsys_ray.core.pacing.base import Pacing, RoundView

SOON_S = 1.0
BUSY_S = 5.0
LONGEST_S = 3600.0
Array = NDArray[np.float64]


def round_over_in_s(pacing: Pacing, view: RoundView, last_duration_s: float | None) -> float:
    """Return when the open round will probably be over: at its deadline, or as long as the last one took.

    A buffer has no deadline. Of the first one nothing is known but how long it has been filling: as long again.
    """
    left = pacing.deadline(view) - view.now
    if last_duration_s is None and pacing.asynchronous:
        return min(left, view.now - view.started_at)
    return left if last_duration_s is None else min(left, view.started_at + last_duration_s - view.now)


def retry_after_s(wait_s: float, lot: float) -> float:
    """Return half of the expected wait, spread by a device's own `lot` in [0, 1).

    Half, since rounds that wait for devices which were told to wait would get longer from round to round.
    """
    return max(SOON_S, wait_s / 2) * (0.75 + 0.5 * lot)


@dataclass(frozen=True, slots=True)
class Steering:
    """A queue of moments, `per_s` of them a second: each device that leaves without work takes the next free one.

    It needs no estimate of how many there are. If all come at once, they come back one after the other. A device that
    never returns leaves its moment empty, so the queue gets shorter at night, when fewer come, and longer by day: a
    fleet of N comes back after about N / per_s seconds, a small one at once. Longer than `longest_s` nobody waits:
    a larger fleet than `per_s * longest_s` comes more often than `per_s`, evenly all the same.
    """

    per_s: float = 200.0
    longest_s: float = 4 * 3600.0

    def take(self, free_at: float, now: float, lots: Array) -> tuple[float, Array]:
        """Take a moment for each of the devices that leave at `now`, in order, each with a lot in [0, 1).

        `free_at` is when the last moment that was taken ends. Returns its successor, and the seconds to wait: float64
        [len(lots)]. A tenth of the wait to either side is the lot's: who came together does not come together again.
        """
        begin = max(free_at, now)
        waits = (begin - now) + np.arange(1, len(lots) + 1) / self.per_s
        spread = np.where(waits <= self.longest_s, waits * (0.9 + 0.2 * lots), self.longest_s * (0.5 + 0.5 * lots))
        return min(begin + len(lots) / self.per_s, now + self.longest_s), spread


def busy_retry_s(refused: int, served: int, window_s: float, lot: float) -> float:
    """Return when a caller comes back that was refused since too many came at once, by its `lot` in [0, 1).

    To serve as many as were `refused` takes `window_s * refused / served` at the rate at which callers were `served` in
    the same window. Each comes at its own moment of that time, so that they are not too many again.
    """
    crowd_s = window_s * refused / max(1, served)
    return SOON_S + lot * min(max(crowd_s, BUSY_S), LONGEST_S)
