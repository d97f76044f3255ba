"""When devices come by next: an agenda of up to millions of visits, in arrays.

One number a device. The soonest visits are taken out in order; of devices that come at the same instant the lower
number is first. Only a slice of the agenda is ever sorted.
"""

import heapq

import numpy as np
from numpy.typing import NDArray

SLICE = 2048


class Agenda:
    """Visits of D devices, each at one instant or (infinity) at none."""

    def __init__(self, visits: NDArray[np.float64]) -> None:
        self.visits = visits.astype(np.float64)
        self._soon: list[tuple[float, int]] = []
        self._horizon = -np.inf

    def set(self, device: int, at: float) -> None:
        """Have a device come by at an instant; what was planned for it is forgotten."""
        self.visits[device] = at
        if at <= self._horizon:
            heapq.heappush(self._soon, (at, device))

    def next_at(self) -> float:
        """Return when the next device comes by; infinity if none does."""
        while True:
            while self._soon:
                at, device = self._soon[0]
                if self.visits[device] == at:
                    return at
                heapq.heappop(self._soon)
            if not self._take_slice():
                return float("inf")

    def pop(self) -> tuple[float, int]:
        """Return the next visit, and take it out. Raises `IndexError` if there is none."""
        if self.next_at() == float("inf"):
            raise IndexError("nobody comes by")
        at, device = heapq.heappop(self._soon)
        self.visits[device] = np.inf
        return at, device

    def _take_slice(self) -> bool:
        """Move the soonest visits into the heap; return whether there were any."""
        count = min(SLICE, len(self.visits))
        bound = np.partition(self.visits, count - 1)[count - 1] if count else np.inf
        chosen = np.flatnonzero((self.visits <= bound) & np.isfinite(self.visits))
        self._soon = [(float(self.visits[device]), int(device)) for device in chosen]
        heapq.heapify(self._soon)
        self._horizon = float(bound)
        return bool(self._soon)
