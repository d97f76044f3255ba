"""The gate of an actor that leaves when nobody needs it: it counts who is inside, and closes once, for good."""

import threading
import time
from collections.abc import Callable


class Gate:
    """Thread-safe. `clock` gives seconds that never run backwards."""

    def __init__(self, idle_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._idle_s = idle_s
        self._clock = clock
        self._lock = threading.Lock()
        self._inside = 0
        self._last_at = clock()
        self._closed = False

    def enter(self) -> bool:
        """Let a call in. False: the gate is closed, nothing was begun, and the caller goes to the next actor."""
        with self._lock:
            self._inside += not self._closed
            return not self._closed

    def leave(self) -> None:
        """A call that was let in is done."""
        with self._lock:
            self._inside -= 1
            self._last_at = self._clock()

    def idle_in_s(self) -> float:
        """Return in how many seconds the gate may close if nobody comes."""
        with self._lock:
            return max(0.0, self._last_at + self._idle_s - self._clock())

    def close_if_idle(self) -> bool:
        """Close if nobody is inside and nobody was for `idle_s`. Returns whether it is closed."""
        with self._lock:
            if self._inside == 0 and self._clock() >= self._last_at + self._idle_s:
                self._closed = True
            return self._closed
