"""The leak detector: what must not be in two parts of a split.

A test accuracy means something only if the test windows are news. Three ways to lose that are looked for: a user in
two parts, windows of one recording that share time, and examples with identical content (a recording that is in the
data twice, under another name perhaps; a text that was passed on).
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from flsys_ray.data.schema import Examples
from flsys_ray.errors import DataLeak

TOUCHING_S = 1e-6  # windows that only touch share no sample; UNIX seconds in float64 are exact to 2.4e-7 s


def check_user_split(parts: Mapping[str, Sequence[str]]) -> None:
    """Refuse a split by user in which a user is in two parts.

    Raises:
        DataLeak: it names the parts and the users.
    """
    for (one, users), (other, others) in combinations(parts.items(), 2):
        if shared := sorted(set(users) & set(others)):
            raise DataLeak(f"{len(shared)} users are in {one} and in {other}: {_some(shared)}")


def check_no_leak(parts: Mapping[str, Iterable[Examples]], *, users_may_repeat: bool = False) -> None:
    """Refuse a split that leaks.

    Args:
        parts: the examples of each named part, user by user. Content is kept as 16 bytes a window.
        users_may_repeat: for splits within each device, where both parts are the same user's. Windows may still
            neither overlap nor repeat.

    Raises:
        DataLeak: it names the parts, and the users or windows concerned.
    """
    seen = {name: _Seen(examples) for name, examples in parts.items()}
    if not users_may_repeat:
        check_user_split({name: sorted(part.spans) for name, part in seen.items()})
    for (one, here), (other, there) in combinations(seen.items(), 2):
        for user in sorted(here.spans.keys() & there.spans.keys()):
            _check_overlap(one, here.spans[user], other, there.spans[user])
        if twins := sorted(here.content.keys() & there.content.keys()):
            a, b = here.content[twins[0]], there.content[twins[0]]
            raise DataLeak(f"{len(twins)} examples of {one} are in {other} as well, bit for bit: {a} is {b}")


def overlaps_any(examples: Examples, others: Examples) -> NDArray[np.bool_]:
    """Return for each window `[N]` whether it shares time with any of the other windows of its user and session."""
    found = np.zeros(len(examples), dtype=np.bool_)
    if examples.user != others.user:
        return found
    for session in np.intersect1d(examples.session, others.session):
        rows = np.flatnonzero(examples.session == session)
        there = others.session == session
        starts, ends = np.sort(others.start_s[there]), np.sort(others.end_s[there])
        begun = np.searchsorted(starts, examples.end_s[rows] - TOUCHING_S, side="left")
        over = np.searchsorted(ends, examples.start_s[rows] + TOUCHING_S, side="right")
        found[rows] = begun > over  # more of them have begun before its end than were over at its start
    return found


def digests(examples: Examples) -> list[bytes]:
    """Return 16 bytes for each window that stand for its content."""
    return [hashlib.blake2b(x.tobytes(), digest_size=16).digest() for x in np.ascontiguousarray(examples.x)]


class _Seen:
    """One part: when each user's windows were, and what they hold."""

    def __init__(self, examples: Iterable[Examples]) -> None:
        self.spans: dict[str, list[Examples]] = {}
        self.content: dict[bytes, str] = {}
        for of_user in examples:
            self.spans.setdefault(of_user.user, []).append(replace(of_user, x=of_user.x[:0]))
            for row, digest in enumerate(digests(of_user)):
                self.content.setdefault(digest, _name(of_user, row))


def _check_overlap(one: str, here: Sequence[Examples], other: str, there: Sequence[Examples]) -> None:
    for a in here:
        for b in there:
            shared = overlaps_any(a, b)
            if shared.any():
                first = _name(a, int(np.argmax(shared)))
                raise DataLeak(f"{int(shared.sum())} windows of {one} share time with windows of {other}: {first}")


def _name(examples: Examples, row: int) -> str:
    session, start_s, end_s = examples.session[row], examples.start_s[row], examples.end_s[row]
    return f"user {examples.user!r}, session {str(session)!r}, {start_s:.2f} to {end_s:.2f} s"


def _some(names: Sequence[str], most: int = 8) -> str:
    return ", ".join(names[:most]) + (" ..." if len(names) > most else "")
