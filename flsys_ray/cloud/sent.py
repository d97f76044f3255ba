"""How many bytes of versions this replica sent, until a model's owner is told."""

import threading
from collections import Counter


class Sent:
    """Bytes by model since they were taken last. Thread-safe; what a replica has not told yet goes with it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bytes: Counter[str] = Counter()

    def add(self, model: str, size: int) -> None:
        """Bytes of a version of the model of this id went out."""
        with self._lock:
            self._bytes[model] += size

    def take(self, model: str) -> int:
        """Return the bytes since the last call."""
        with self._lock:
            return self._bytes.pop(model, 0)
