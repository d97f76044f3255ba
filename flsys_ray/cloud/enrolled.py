"""How many devices an app has, and how fast it gets new ones: bounds on devices that one person makes up.

One small object an app, swapped for each new device. It is no exact account: where the cloud dies between counting a
device and noting that it was counted, that device is counted twice.
"""

import threading
from collections.abc import Callable

from pydantic import BaseModel, ConfigDict

from flsys_ray.cloud import places
from flsys_ray.errors import Missing, QuotaExceeded
from flsys_ray.storage.base import ObjectStore, check_key, exchange
from flsys_ray.wire.developer_schemas import Quotas

FULL_RETRY_S = 3600.0
HOUR_S = 3600.0


class _Enrolled(BaseModel):
    model_config = ConfigDict(frozen=True)

    total: int = 0
    used: float = 0.0  # of the hour's share at `at`; it comes back evenly, all of it in an hour
    at: float = 0.0


class EnrolledDevices:
    """Counts the devices of apps. Thread-safe."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._lock = threading.Lock()  # threads of one replica would only make each other repeat

    def add(self, app_id: str, quotas: Quotas, now: float) -> None:
        """Count a new device. Raises `QuotaExceeded` if an app has as many as it may, or too many of the last hour."""
        with self._lock:
            while not self._swap(app_id, lambda found: _one_more(app_id, found, quotas, now)):
                continue

    def take_back(self, app_id: str) -> None:
        """Count a device no longer that turned out to be counted twice."""
        with self._lock:
            while not self._swap(app_id, _one_less):
                continue

    def _swap(self, app_id: str, change: Callable[[_Enrolled], _Enrolled]) -> bool:
        key = check_key(places.enrolled(app_id))
        try:
            present = self._store.get(key)
            found, etag = _Enrolled.model_validate_json(present.body), present.etag
        except Missing:
            found, etag = _Enrolled(), ""
        return exchange(self._store, key, change(found).model_dump_json().encode(), etag) is not None


def _one_more(app_id: str, found: _Enrolled, quotas: Quotas, now: float) -> _Enrolled:
    if found.total >= quotas.devices:
        raise QuotaExceeded(f"app {app_id!r} has its {quotas.devices} devices: ask the operator", FULL_RETRY_S)
    share = quotas.devices_per_hour
    used = max(0.0, found.used - max(0.0, now - found.at) * share / HOUR_S)
    if used + 1 > share:
        wait_s = (used + 1 - share) * HOUR_S / share
        raise QuotaExceeded(f"app {app_id!r} enrols more than {share} new devices an hour", max(1.0, wait_s))
    return _Enrolled(total=found.total + 1, used=used + 1, at=now)


def _one_less(found: _Enrolled) -> _Enrolled:
    return _Enrolled(total=max(0, found.total - 1), used=max(0.0, found.used - 1), at=found.at)
