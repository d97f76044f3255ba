"""Time, as the phone knows it: an instant and a wait, both replaceable.

Instants are wall-clock UTC seconds, because a deadline must survive a restart of the phone.
"""

import threading
import time
from typing import Protocol


class Clock(Protocol):
    """What the phone runtime asks of time."""

    def now(self) -> float:
        """Return the present instant, UTC seconds."""

    def wait(self, seconds: float) -> None:
        """Let so many seconds pass, or return early because someone stops the phone."""


class SystemClock:
    """Real time. A wait ends early when `stop` is set, so that a phone stops at once."""

    def __init__(self, stop: threading.Event | None = None) -> None:
        self._stop = stop or threading.Event()

    def now(self) -> float:
        """Return the present instant, UTC seconds."""
        return time.time()

    def wait(self, seconds: float) -> None:
        """Sleep, unless `stop` is or becomes set."""
        self._stop.wait(max(0.0, seconds))


class VirtualClock:
    """Time that moves only when somebody waits: for emulation and tests. One thread only."""

    def __init__(self, start_s: float = 0.0) -> None:
        self._now = start_s

    def now(self) -> float:
        """Return the present instant of the emulation, UTC seconds."""
        return self._now

    def wait(self, seconds: float) -> None:
        """Move time on at once."""
        self._now += max(0.0, seconds)
