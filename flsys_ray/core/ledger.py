"""Who was given what, and what became of it: the book that a coordinator keeps of the open round."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Literal

from flsys_ray.core.types import Assignment, Counters, UpdateRef

Outcome = Literal["pending", "counted", "given-back", "late"]
_COUNTER: dict[Outcome, str] = {
    "pending": "pending",
    "counted": "counted",
    "given-back": "given_back",
    "late": "late",
}


@dataclass(frozen=True, slots=True)
class Entry:
    """One assignment, what became of it, and the update's line once it is counted."""

    assignment: Assignment
    outcome: Outcome
    ref: UpdateRef | None = None
    loss: float = 0.0
    num_bytes: int = 0

    @property
    def key(self) -> str:
        """The assignment's id."""
        return self.assignment.assignment_id


def moved(counters: Counters, before: Outcome | None, after: Outcome) -> Counters:
    """Return the counters when an assignment's outcome changes; None before: it was not known."""
    amounts = {name: getattr(counters, name) for name in Counters.__slots__}
    amounts["assigned"] += before is None
    if before is not None:
        amounts[_COUNTER[before]] -= 1
    amounts[_COUNTER[after]] += 1
    return Counters(**amounts)


class Ledger:
    """The entries of the open round, its counters, and how earlier assignments ended that may be heard of again."""

    def __init__(self) -> None:
        self.counters = Counters()
        self._entries: dict[str, Entry] = {}
        self._settled: dict[str, Entry] = {}
        self._in_hand: dict[str, str] = {}
        self._soonest = float("inf")

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Those of the open round, in the order of their first event."""
        return tuple(self._entries.values())

    @property
    def settled(self) -> tuple[Entry, ...]:
        """Those that ended in an earlier round."""
        return tuple(self._settled.values())

    def entry(self, key: str) -> Entry | None:
        """Return an assignment's entry in the open round, or None."""
        return self._entries.get(key)

    def outcome(self, key: str) -> Outcome | None:
        """Return what became of an assignment, of an earlier round too; None if it is not known."""
        entry = self._entries.get(key) or self._settled.get(key)
        return entry.outcome if entry is not None else None

    def in_hand(self, device_id: str) -> Entry | None:
        """Return the entry of the work that a device was given last and has not done, or None."""
        entry = self._entries.get(self._in_hand.get(device_id, ""))
        return entry if entry is not None and entry.outcome == "pending" else None

    def counted(self) -> Iterable[Entry]:
        """Yield the counted entries in assignment order."""
        return (entry for _, entry in sorted(self._entries.items()) if entry.outcome == "counted")

    def record(self, entry: Entry) -> None:
        """Set what became of an assignment, and move it between the counters."""
        before = self._entries.get(entry.key)
        self._entries[entry.key] = entry
        if entry.outcome == "pending":
            self._in_hand[entry.assignment.device_id] = entry.key
            self._soonest = min(self._soonest, entry.assignment.deadline)
        self.counters = moved(self.counters, before.outcome if before is not None else None, entry.outcome)

    def settle(self, entry: Entry) -> None:
        """Remember how an assignment of an earlier round ended. It is in no counter."""
        self._settled[entry.key] = entry

    def expire(self, now: float) -> None:
        """Work whose deadline has passed is late from now on."""
        if now <= self._soonest:
            return
        pending = [entry for entry in self._entries.values() if entry.outcome == "pending"]
        for entry in pending:
            if now > entry.assignment.deadline:
                self.record(replace(entry, outcome="late"))
        left = (entry.assignment.deadline for entry in pending if now <= entry.assignment.deadline)
        self._soonest = min(left, default=float("inf"))

    def following(self, keeps: Callable[[Entry], bool], remembers: Callable[[Assignment], bool]) -> "Ledger":
        """Return the next round's: with the entries that it keeps, and the end of those that may be heard of again."""
        ledger = Ledger()
        ledger._settled = {entry.key: entry for entry in self.settled if remembers(entry.assignment)}
        for entry in self.entries:
            if keeps(entry):
                ledger.record(entry)
            elif entry.outcome in ("counted", "given-back") and remembers(entry.assignment):
                ledger.settle(entry)
        return ledger
