"""What one app may use: models, stored bytes, check-ins, uploads. The operator sets it; every replica holds apps to it.

Quotas keep one app from using the cloud up. They are no exact account: two creations at the same instant may both
pass, and each replica counts the check-ins and uploads that come to it.

An app that has uploaded too much is refused at check-ins, so that no device works for nothing, and at uploads before
their bodies are read. What was given out is not lost by that: the phone keeps its update and comes back in time.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from flsys_ray.cloud.apps import AppRecord, AppRecords
from flsys_ray.cloud.journal import Head
from flsys_ray.cloud.looks import Looks
from flsys_ray.cloud.standing import Standings
from flsys_ray.errors import NotFound, QuotaExceeded
from flsys_ray.wire.developer_schemas import Quotas

FRESH_S = 10.0
CHECK_IN_RETRY_S = 30.0
USED_UP_RETRY_S = 3600.0


@dataclass(slots=True)
class _Bucket:
    """What an app may still use of something that it may use so much of a minute: at most a minute's share."""

    tokens: float
    filled_at: float

    def fill(self, per_min: float, now: float) -> float:
        """Let time pass, and return what is there."""
        self.tokens = min(per_min, self.tokens + max(0.0, now - self.filled_at) * per_min / 60)
        self.filled_at = now
        return self.tokens


@dataclass(slots=True)
class _Known:
    """What a replica knows of an app."""

    quotas: Quotas
    stored_bytes: int
    read_at: float
    checkins: _Bucket
    uploads: _Bucket


class AppQuotas:
    """Holds apps to their quotas. Thread-safe. `models` gives the ids of an app's models."""

    def __init__(
        self,
        apps: AppRecords,
        standings: Standings,
        models: Callable[[str], Sequence[str]],
        clock: Callable[[], float],
    ) -> None:
        self._apps = apps
        self._standings = standings
        self._models = models
        self._clock = clock
        self._lock = threading.Lock()
        self._known: dict[str, _Known] = {}
        self._looks: Looks[None] = Looks()

    def register(self, app_id: str, quotas: Quotas | None) -> AppRecord:
        """Make an app's record, or give it other quotas; None leaves those that it has. Returns it. Repeatable."""

        def changed(record: AppRecord) -> AppRecord:
            return record if quotas is None else record.model_copy(update={"quotas": quotas})

        kept = self._apps.register(app_id, changed)
        if quotas is not None and (known := self._known.get(app_id)) is not None:
            known.read_at = float("-inf")
        return kept

    def admit_model(self, app_id: str) -> None:
        """Raises `QuotaExceeded` if an app has as many models as it may; archived ones do not count."""
        limit, held = self._read(app_id).models, self._heads(app_id)
        if sum(head.state != "archived" for head in held) >= limit:
            raise QuotaExceeded(
                f"app {app_id!r} has its {limit} models: archive one, or ask the operator", USED_UP_RETRY_S
            )

    def admit_bytes(self, app_id: str, more: int) -> None:
        """Raises `QuotaExceeded` if an app's programs, sets and counted updates would take more bytes than they may."""
        limit = self._read(app_id).stored_bytes
        used = sum(head.stored_bytes for head in self._heads(app_id))
        if used + more > limit:
            raise QuotaExceeded(_full(app_id, used, limit), USED_UP_RETRY_S)

    async def ready(self, app_id: str) -> None:
        """Know what an app may use, and has used some seconds ago: `admit_check_in` and `admit_upload` go by that.

        A look at the store is made in a thread, one for all calls that wait for it.
        """
        known = self._known.get(app_id)
        if known is None or not 0 <= self._clock() - known.read_at < FRESH_S:
            await self._looks.share(app_id, lambda: self._look(app_id))

    def admit_check_in(self, app_id: str) -> None:
        """Take one check-in off what an app may make at this replica (a token bucket, a minute deep).

        Raises:
            QuotaExceeded: there is none left now, the app's updates have used its bytes up, or it uploads too much.
        """
        now = self._clock()
        with self._lock:
            known = self._known[app_id]
            limit = known.quotas.checkins_per_min
            enough = known.checkins.fill(limit, now) >= 1
            known.checkins.tokens -= enough
        self._check_uploads(app_id, now)
        if known.stored_bytes >= known.quotas.stored_bytes:
            raise QuotaExceeded(_full(app_id, known.stored_bytes, known.quotas.stored_bytes), USED_UP_RETRY_S)
        if not enough:
            raise QuotaExceeded(f"app {app_id!r} checks in more than {limit} times a minute", CHECK_IN_RETRY_S)

    def admit_upload(self, app_id: str) -> None:
        """Raises `QuotaExceeded` if an app's uploads were more than its share: nothing of this one was read yet.

        Whoever comes while something of the share is left may send a whole update: `count_upload` may overdraw it.
        """
        self._check_uploads(app_id, self._clock())

    def count_upload(self, app_id: str, size: int) -> None:
        """Take the bytes of an upload off what an app may send to this replica."""
        with self._lock:
            self._known[app_id].uploads.tokens -= size

    def _check_uploads(self, app_id: str, now: float) -> None:
        with self._lock:
            known = self._known[app_id]
            limit = known.quotas.upload_bytes_per_min
            left = known.uploads.fill(limit, now)
        if left <= 0:
            wait_s = max(1.0, (1 - left) * 60 / limit)
            raise QuotaExceeded(f"app {app_id!r} uploads more than {limit} bytes a minute", wait_s)

    def _look(self, app_id: str) -> None:
        """Look at the store: what may the app use, and what has it used?"""
        quotas, used = self._read(app_id), sum(head.stored_bytes for head in self._heads(app_id))
        now = self._clock()
        with self._lock:
            checkins, uploads = _Bucket(quotas.checkins_per_min, now), _Bucket(quotas.upload_bytes_per_min, now)
            known = self._known.setdefault(app_id, _Known(quotas, used, now, checkins, uploads))
            known.quotas, known.stored_bytes, known.read_at = quotas, used, now

    def _read(self, app_id: str) -> Quotas:
        try:
            return self._apps.read(app_id).quotas
        except NotFound:
            return Quotas()

    def _heads(self, app_id: str) -> list[Head]:
        found = []
        for model in self._models(app_id):
            try:
                found.append(self._standings.read(model).head)
            except NotFound:
                continue  # its name is taken, and its log not written yet
        return found


def _full(app_id: str, used: int, limit: int) -> str:
    return f"app {app_id!r} has stored {used} of its {limit} bytes: ask the operator for more"
