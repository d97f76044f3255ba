"""Pace steering: when a device that got no work comes back.

Bonawitz et al., "Towards Federated Learning at Scale: System Design", MLSys 2019 (arXiv 1902.01046), section 2.3.
"""

from flsys_ray.core.pacing.base import Pacing, RoundView

SOON_S = 1.0
BUSY_S = 5.0
LONGEST_S = 3600.0


def round_over_in_s(pacing: Pacing, view: RoundView, last_duration_s: float | None) -> float:
    """Return when the open round will probably be over: at its deadline, or as long as the last one took."""
    left = pacing.deadline(view) - view.now
    return left if last_duration_s is None else min(left, view.started_at + last_duration_s - view.now)


def retry_after_s(wait_s: float, lot: float) -> float:
    """Return half of the expected wait, spread by a device's own `lot` in [0, 1).

    Half, since rounds that wait for devices which were told to wait would get longer from round to round.
    """
    return max(SOON_S, wait_s / 2) * (0.75 + 0.5 * lot)


def busy_retry_s(refused: int, served: int, window_s: float, lot: float) -> float:
    """Return when a caller comes back that was refused since too many came at once, by its `lot` in [0, 1).

    To serve as many as were `refused` takes `window_s * refused / served` at the rate at which callers were `served` in
    the same window. Each comes at its own moment of that time, so that they are not too many again.
    """
    crowd_s = window_s * refused / max(1, served)
    return SOON_S + lot * min(max(crowd_s, BUSY_S), LONGEST_S)
