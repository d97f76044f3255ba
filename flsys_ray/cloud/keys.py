"""The keys that sign tokens: several at once, one of them signs, and they are replaced without a pause.

`secrets/signing.json` is made once. It holds the root, from which device ids and app keys are derived and which never
changes, and signing key number one. A store of before there was rotation has one key there, which is both. Once keys
have been rotated, `secrets/keys.json` lists those in use and is replaced as a whole: after a crash there is the old
list or the new one.

A new key signs `LEAD_S` after it was made, when every replica knows it. An old one verifies until no token that it
signed can be valid any more, or until it is retired by hand.
"""

import base64
import json
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from flsys_ray.cloud import places, tokens
from flsys_ray.errors import AlreadyExists, Conflict, Missing, NotFound
from flsys_ray.storage.base import ObjectStore, exchange

FRESH_S = 2.0
AGAIN_S = 1.0
LEAD_S = 10.0
TOKEN_LIFE_S = 30 * 86400.0
KEEP_S = TOKEN_LIFE_S + 86400.0
MAX_KEYS = 50
FIRST = "1"


class _Key(BaseModel):
    model_config = ConfigDict(frozen=True)

    kid: str
    secret: str | None = Field(None, repr=False)  # base64; None: it is the one in `signing.json`
    since: float


class _Ring(BaseModel):
    model_config = ConfigDict(frozen=True)

    made: int = 1
    keys: tuple[_Key, ...] = (_Key(kid=FIRST, since=0.0),)


@dataclass(frozen=True, slots=True)
class KeyLife:
    """One signing key: it signs from `since` until the next one does, and verifies until `until` (None: open)."""

    kid: str
    since: float
    until: float | None


class SigningKeys:
    """The signing keys of a store. Thread-safe. What it knows is at most `FRESH_S` old once `look` was called."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self.root, self._first = _made_once(store)
        self._ring = _Ring(keys=())
        self._headers: dict[bytes, bytes] = {}
        self._read_at, self._next_end = float("-inf"), float("-inf")

    def is_fresh(self, now: float) -> bool:
        """Return whether `look` would not read."""
        return 0 <= now - self._read_at < FRESH_S

    def knows(self, token: str, now: float) -> bool:
        """Return whether the key that a token names is known, or it is too early to look for it again."""
        return tokens.header_of(token) in self._headers or 0 <= now - self._read_at < AGAIN_S

    def look(self, now: float) -> None:
        """Read which keys there are, unless that is known freshly."""
        if not self.is_fresh(now):
            self._use(self._read()[0], now)

    def look_again(self, now: float) -> None:
        """Read which keys there are."""
        self._use(self._read()[0], now)

    def by_header(self, now: float) -> Mapping[bytes, bytes]:
        """Return the keys that verify now, by the header of their tokens."""
        self._look_once(now)
        if now >= self._next_end:
            self._use(self._ring, self._read_at, now)
        return self._headers

    def signer(self, now: float) -> tuple[str, bytes]:
        """Return the id and the secret of the key that signs now: the newest that has begun to."""
        self._look_once(now)
        begun = [key for key in self._ring.keys if key.since <= now]
        key = begun[-1] if begun else self._ring.keys[0]
        return key.kid, self._secret(key)

    def lives(self, now: float) -> list[KeyLife]:
        """Return the keys in use, oldest first, as the store tells it now."""
        self.look_again(now)
        return [life for life in _lives(self._ring.keys) if _verifies(life, now)]

    def rotate(self, now: float, *, retire_old: bool) -> list[KeyLife]:
        """Make a new key; with `retire_old` it signs at once, and no other one verifies any more. Returns the keys.

        Raises `Conflict` where so many keys are in use that one must be retired first.
        """

        def rotated(ring: _Ring) -> _Ring:
            kept = () if retire_old else _kept(ring.keys, now)
            if len(kept) >= MAX_KEYS:
                raise Conflict(f"{len(kept)} signing keys are in use: retire some of them first")
            fresh = _Key(
                kid=str(ring.made + 1),
                secret=base64.b64encode(secrets.token_bytes(32)).decode(),
                since=now if retire_old else max(now + LEAD_S, *(key.since for key in kept)),
            )
            return _Ring(made=ring.made + 1, keys=(*kept, fresh))

        return self._change(rotated, now)

    def retire(self, kid: str, now: float) -> list[KeyLife]:
        """Have a key verify nothing any more. Raises `NotFound`, and `Conflict` for the one that signs or will."""

        def without(ring: _Ring) -> _Ring:
            kept = _kept(ring.keys, now)
            if kid not in {key.kid for key in kept}:
                raise NotFound(f"there is no signing key {kid!r}")
            if kid == kept[-1].kid:
                raise Conflict(f"signing key {kid!r} is the newest: rotate first, and retire it then")
            return _Ring(made=ring.made, keys=tuple(key for key in kept if key.kid != kid))

        return self._change(without, now)

    def _look_once(self, now: float) -> None:
        if not self._ring.keys:
            self.look_again(now)

    def _change(self, changed: Callable[[_Ring], _Ring], now: float) -> list[KeyLife]:
        while True:
            ring, etag = self._read()
            new = changed(ring)
            if exchange(self._store, places.SIGNING_KEYS, new.model_dump_json().encode(), etag) is not None:
                self._use(new, now)
                return [life for life in _lives(new.keys) if _verifies(life, now)]

    def _read(self) -> tuple[_Ring, str]:
        try:
            found = self._store.get(places.SIGNING_KEYS)
        except Missing:
            return _Ring(), ""
        return _Ring.model_validate_json(found.body), found.etag

    def _use(self, ring: _Ring, read_at: float, now: float | None = None) -> None:
        at = read_at if now is None else now
        valid = {life.kid for life in _lives(ring.keys) if _verifies(life, at)}
        headers = {tokens.header(key.kid): self._secret(key) for key in ring.keys if key.kid in valid}
        if FIRST in valid:
            headers[tokens.HEADER_OF_BEFORE] = headers[tokens.header(FIRST)]
        ends = [life.until for life in _lives(ring.keys) if life.until is not None and life.kid in valid]
        with self._lock:
            self._ring, self._headers, self._read_at = ring, headers, read_at
            self._next_end = min(ends, default=float("inf"))

    def _secret(self, key: _Key) -> bytes:
        return self._first if key.secret is None else base64.b64decode(key.secret)


def _lives(keys: Sequence[_Key]) -> list[KeyLife]:
    ends = [later.since + KEEP_S for later in keys[1:]]
    return [KeyLife(key.kid, key.since, until) for key, until in zip(keys, [*ends, None], strict=True)]


def _verifies(life: KeyLife, now: float) -> bool:
    return life.until is None or now < life.until


def _kept(keys: Sequence[_Key], now: float) -> tuple[_Key, ...]:
    valid = {life.kid for life in _lives(keys) if _verifies(life, now)}
    return tuple(key for key in keys if key.kid in valid)


def _made_once(store: ObjectStore) -> tuple[bytes, bytes]:
    """Return the store's root and its first signing key, made by whoever comes first."""
    root, key = (base64.b64encode(secrets.token_bytes(32)).decode() for _ in range(2))
    body = json.dumps({"root": root, "key": key}).encode()
    try:
        store.put_new(places.SIGNING_KEY, body)
    except AlreadyExists:
        body = store.get(places.SIGNING_KEY).body
    found = json.loads(body)
    return base64.b64decode(found.get("root", found["key"])), base64.b64decode(found["key"])
