"""Which devices an app has, and which of their tokens are refused.

A device's record says whether it is revoked, and how often it was: its generation. A token carries the generation of
its device, and one of an older generation is refused. So what a revocation refuses does not depend on anybody's
clock. What replicas must know at every call is one small object an app: the devices that were revoked lately, and the
instant before which no token is good. A revocation is left out of it when every token that it refuses has expired.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict

from flsys_ray.cloud import places
from flsys_ray.cloud.keys import FRESH_S, KEEP_S
from flsys_ray.errors import Conflict, Missing
from flsys_ray.storage.base import ObjectStore, check_key, exchange

KEPT_APPS = 10_000
MAX_REVOKED = 10_000
SKEW_S = 3600.0  # clocks of replicas differ by less


class DeviceRecord(BaseModel):
    """What the store keeps of a device. `attested_at` is when the newest nonce was made that was accepted of it."""

    model_config = ConfigDict(frozen=True)

    generation: int = 0
    revoked: bool = False
    attested_at: float = 0.0


class _Revoked(BaseModel):
    model_config = ConfigDict(frozen=True)

    issued_before: float = 0.0
    devices: dict[str, tuple[int, float]] = {}  # the least generation that is good, and when that was said


@dataclass(slots=True)
class _Known:
    revoked: _Revoked
    etag: str
    read_at: float


class Revocations:
    """Answers whether a token is refused, from memory that is at most `FRESH_S` old. Thread-safe."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._lock = threading.Lock()
        self._known: OrderedDict[str, _Known] = OrderedDict()

    def is_fresh(self, app_id: str, now: float) -> bool:
        """Return whether `refuses` would answer without a look at the store, and so from no old memory."""
        known = self._known.get(app_id)
        return known is not None and 0 <= now - known.read_at < FRESH_S

    def refuses(self, app_id: str, device_id: str, generation: int, issued_at: float, now: float) -> bool:
        """Return whether a token of this generation, made at `issued_at`, is refused."""
        if not self.is_fresh(app_id, now):
            self.look(app_id, now)
        return self.refuses_as_known(app_id, device_id, generation, issued_at)

    def refuses_as_known(self, app_id: str, device_id: str, generation: int, issued_at: float) -> bool:
        """Return what `refuses` does, as the last look at the store said, however long ago that was."""
        known = self._known.get(app_id)
        revoked = known.revoked if known is not None else self._read(check_key(places.revoked(app_id)))[0]
        least, _ = revoked.devices.get(device_id, (0, 0.0))
        return generation < least or issued_at < revoked.issued_before

    def add(self, app_id: str, device_id: str, generation: int, now: float) -> None:
        """Refuse a device's tokens of generations before this one. Raises `Conflict` if there are too many devices."""

        def added(revoked: _Revoked) -> _Revoked:
            least, _ = revoked.devices.get(device_id, (0, 0.0))
            if least >= generation:
                return revoked
            kept = {name: entry for name, entry in revoked.devices.items() if _matters(entry[1], revoked, now)}
            if len(kept) >= MAX_REVOKED:
                raise Conflict(
                    f"{len(kept)} devices of app {app_id!r} were revoked lately, and no more can be: "
                    "revoke every token that was issued before now"
                )
            return _Revoked(issued_before=revoked.issued_before, devices=kept | {device_id: (generation, now)})

        self._change(app_id, added, now)

    def add_all(self, app_id: str, issued_before: float, now: float) -> float:
        """Refuse all tokens of an app that were born before an instant; return the latest such instant."""

        def added(revoked: _Revoked) -> _Revoked:
            if issued_before <= revoked.issued_before:
                return revoked
            return _Revoked(issued_before=issued_before, devices=revoked.devices)

        return self._change(app_id, added, now).issued_before

    def _change(self, app_id: str, changed: Callable[[_Revoked], _Revoked], now: float) -> _Revoked:
        key = check_key(places.revoked(app_id))
        while True:
            revoked, etag = self._read(key)
            new = changed(revoked)
            if new == revoked:
                return new
            made = exchange(self._store, key, new.model_dump_json().encode(), etag)
            if made is not None:
                self._keep(app_id, _Known(new, made, now))
                return new

    def look(self, app_id: str, now: float) -> None:
        """Read what of an app is revoked: only whether it has changed, where it is known."""
        key, known = check_key(places.revoked(app_id)), self._known.get(app_id)
        try:
            unchanged = known is not None and known.etag == self._store.get(key, 0, 0).etag
        except Missing:
            unchanged = known is not None and not known.etag
        if known is not None and unchanged:
            found = _Known(known.revoked, known.etag, now)
        else:
            found = _Known(*self._read(key), now)
        self._keep(app_id, found)

    def _keep(self, app_id: str, known: _Known) -> None:
        with self._lock:
            self._known[app_id] = known
            self._known.move_to_end(app_id)
            while len(self._known) > KEPT_APPS:
                self._known.popitem(last=False)

    def _read(self, key: str) -> tuple[_Revoked, str]:
        try:
            found = self._store.get(key)
        except Missing:
            return _Revoked(), ""
        return _Revoked.model_validate_json(found.body), found.etag


def _matters(said_at: float, revoked: _Revoked, now: float) -> bool:
    """Return whether a token may still be good but for the revocation of a device at `said_at`."""
    return now < said_at + KEEP_S and said_at + SKEW_S >= revoked.issued_before


class DeviceRecords:
    """Reads and changes records of devices; None stands for a device that has none yet."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def read(self, app_id: str, device_id: str) -> tuple[DeviceRecord | None, str]:
        """Return a device's record and its etag."""
        try:
            found = self._store.get(check_key(places.device(app_id, device_id)))
        except Missing:
            return None, ""
        return DeviceRecord.model_validate_json(found.body), found.etag

    def write(self, app_id: str, device_id: str, record: DeviceRecord, etag: str) -> bool:
        """Make a record, or replace the one that was read. Returns whether nobody else did meanwhile."""
        key = check_key(places.device(app_id, device_id))
        return exchange(self._store, key, record.model_dump_json().encode(), etag) is not None
