"""How many different devices could serve each model, and how much each app was served: estimates in bounded memory.

A replica sees a fair share of all check-ins, and an order needs ratios only: each replica keeps its own estimates, and
starts anew with nothing when it is restarted.
"""

import math
from collections import OrderedDict
from dataclasses import dataclass, field

from flsys_ray.core.rng import unit
from flsys_ray.core.selection.distinct import DistinctCount

WINDOW_S = 1800.0
MAX_MODELS = 1000
HALF_LIFE_S = 600.0


@dataclass(slots=True)
class _Window:
    """The devices of the running window and of the one before it."""

    number: int
    now: DistinctCount = field(default_factory=DistinctCount)
    before: DistinctCount = field(default_factory=DistinctCount)


@dataclass(slots=True)
class Supply:
    """Distinct devices for each model, in the last one to two windows. Keeps the `max_models` used last."""

    window_s: float = WINDOW_S
    max_models: int = MAX_MODELS
    _windows: OrderedDict[str, _Window] = field(default_factory=OrderedDict)

    def seen(self, model: str, device_id: str, now: float) -> None:
        """Note that a device could train a model."""
        window = self._at(model, now)
        window.now = window.now.add(unit(0, "supply", 0, device_id))

    def of(self, model: str, now: float) -> float:
        """Return the estimated number of devices, at least 1."""
        window = self._at(model, now)
        return max(1.0, window.now.merge(window.before).estimate())

    def _at(self, model: str, now: float) -> _Window:
        number = int(now // self.window_s)
        window = self._windows.setdefault(model, _Window(number))
        self._windows.move_to_end(model)
        while len(self._windows) > self.max_models:
            self._windows.popitem(last=False)
        if number > window.number:
            window.before = window.now if number == window.number + 1 else DistinctCount()
            window.number, window.now = number, DistinctCount()
        return window


@dataclass(slots=True)
class Served:
    """Assignments given to each app, where one counts half after `half_life_s`."""

    half_life_s: float = HALF_LIFE_S
    _amounts: dict[str, tuple[float, float]] = field(default_factory=dict)

    def give(self, app: str, now: float) -> None:
        """Count one assignment."""
        self._amounts[app] = (self.of(app, now) + 1.0, now)

    def of(self, app: str, now: float) -> float:
        """Return what an app was given lately."""
        amount, at = self._amounts.get(app, (0.0, now))
        return amount * math.exp2(-max(0.0, now - at) / self.half_life_s)
