"""May this phone train now? Judged on the phone alone: what is found here never leaves it.

`eligible` is a pure function of the conditions, the plan's eligibility and the examples at hand. Where conditions
come from is a `ConditionsSource`: fixed, read from Linux, or played from a trace.
"""

import bisect
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from flsys_ray.core.plan import Eligibility
from flsys_ray.errors import InvalidInput

Obstacle = Literal["not-charging", "in-use", "metered", "battery-low", "too-few-examples"]


@dataclass(frozen=True, slots=True)
class Conditions:
    """The state of the phone at one instant. `battery_fraction` is in [0, 1]; 1 where there is no battery."""

    charging: bool
    idle: bool
    unmetered: bool
    battery_fraction: float


READY = Conditions(charging=True, idle=True, unmetered=True, battery_fraction=1.0)


def eligible(conditions: Conditions, eligibility: Eligibility, new_examples: int) -> tuple[Obstacle, ...]:
    """Return what stands against training now; empty: nothing does.

    >>> eligible(READY, Eligibility(min_examples=10), new_examples=3)
    ('too-few-examples',)
    """
    obstacles: list[tuple[bool, Obstacle]] = [
        (eligibility.charging and not conditions.charging, "not-charging"),
        (eligibility.idle and not conditions.idle, "in-use"),
        (eligibility.unmetered and not conditions.unmetered, "metered"),
        (conditions.battery_fraction < eligibility.min_battery_fraction, "battery-low"),
        (new_examples < eligibility.min_examples, "too-few-examples"),
    ]
    return tuple(obstacle for stands, obstacle in obstacles if stands)


class ConditionsSource(Protocol):
    """Where conditions come from."""

    def read(self, now: float) -> Conditions:
        """Return the conditions at `now` (UTC seconds). Called between training steps: keep it cheap."""


@dataclass(frozen=True, slots=True)
class FixedConditions:
    """The same conditions for ever: a machine on mains that has nothing else to do, say."""

    conditions: Conditions = READY

    def read(self, now: float) -> Conditions:
        """Return the fixed conditions."""
        return self.conditions


class TraceConditions:
    """Plays timed conditions: from each point's instant (UTC seconds) until the next. The first holds before it too."""

    def __init__(self, points: Sequence[tuple[float, Conditions]]) -> None:
        if not points:
            raise InvalidInput("a trace of conditions needs at least one (instant, conditions) point")
        self._instants = [instant for instant, _ in points]
        if self._instants != sorted(self._instants):
            raise InvalidInput("a trace of conditions must be in the order of its instants")
        self._conditions = [conditions for _, conditions in points]

    def read(self, now: float) -> Conditions:
        """Return the conditions of the last point at or before `now`."""
        return self._conditions[max(0, bisect.bisect_right(self._instants, now) - 1)]


class LinuxConditions:
    """Reads power, load and the default network interface of a Linux system; kept for `refresh_s` seconds.

    A machine without a battery counts as charging with a full one. It is idle while its one-minute load stays under
    `max_load_per_cpu` a core, with one core's allowance for the training itself.

    NOTE(production): an Android or iOS app reads these from the system's own job scheduler, which also knows about
    the screen and about networks that the user marked as metered; here only mobile interfaces count as metered.
    """

    METERED_INTERFACES = ("wwan", "ppp", "rmnet", "usb")

    def __init__(self, *, root: Path = Path("/"), max_load_per_cpu: float = 0.7, refresh_s: float = 5.0) -> None:
        self._root = root
        self._max_load_per_cpu = max_load_per_cpu
        self._refresh_s = refresh_s
        self._last: tuple[float, Conditions] | None = None

    def read(self, now: float) -> Conditions:
        """Return the conditions, at most `refresh_s` seconds old."""
        if self._last is None or not 0 <= now - self._last[0] < self._refresh_s:
            charging, battery_fraction = self._power()
            found = Conditions(charging, self._idle(), self._unmetered(), battery_fraction)
            self._last = (now, found)
        return self._last[1]

    def _power(self) -> tuple[bool, float]:
        charging, fractions, supplies = False, [], 0
        folder = self._root / "sys/class/power_supply"
        for supply in sorted(folder.iterdir()) if folder.is_dir() else []:
            kind = _text(supply / "type")
            if kind == "Battery" and _text(supply / "scope") != "Device":  # a mouse's battery is not the phone's
                supplies += 1
                charging |= _text(supply / "status") in ("Charging", "Full", "Not charging")
                fractions.append(_number(supply / "capacity", 100.0) / 100.0)
            elif kind in ("Mains", "USB"):
                charging |= _text(supply / "online") == "1"
        if supplies == 0:
            return True, 1.0
        return charging, min(max(min(fractions), 0.0), 1.0)

    def _idle(self) -> bool:
        load = _number(self._root / "proc/loadavg", 0.0)
        return load <= 1.0 + self._max_load_per_cpu * (os.cpu_count() or 1)

    def _unmetered(self) -> bool:
        for line in _text(self._root / "proc/net/route").splitlines()[1:]:
            fields = line.split()
            if len(fields) > 1 and fields[1] == "00000000":
                return not fields[0].startswith(self.METERED_INTERFACES)
        return True


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _number(path: Path, default: float) -> float:
    try:
        return float(_text(path).split()[0])
    except (ValueError, IndexError):
        return default
