"""Bugs planted into the real code, to show that the simulator finds them. Each is one that somebody could write."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any
from unittest.mock import patch

from flsys_ray.cloud import recovery as recovery_module
from flsys_ray.cloud.batches import Ready
from flsys_ray.cloud.credentials import Ticket
from flsys_ray.cloud.journal import Entry, Journal
from flsys_ray.cloud.meter import NO_METER, UPLOAD_S, Stages
from flsys_ray.cloud.updates import Updates
from flsys_ray.core.types import Rejected
from flsys_ray.errors import AlreadyExists, Late
from flsys_ray.storage import local as local_module
from flsys_ray.wire.schemas import UpdateReply


@contextmanager
def a_skipped_fsync() -> Iterator[None]:
    """The folder of a new object is not synced: its name may be gone after a power cut."""
    with patch.object(local_module, "_sync_folder", lambda folder: None):
        yield


@contextmanager
def counted_before_the_write() -> Iterator[None]:
    """An update is counted first and made durable afterwards."""

    async def take_in(self: Any, ticket: Ticket, body: bytes) -> UpdateReply:
        ready = Ready(self._decode(ticket, body), ticket.plan_sha256, fresh=True)
        outcome = await self._doors.send(ticket.assignment.model, ready)
        if isinstance(outcome, Rejected):
            raise Late(outcome.reason)
        with suppress(Late):  # it counts already
            await asyncio.to_thread(self._make_durable, ticket, body, Stages(NO_METER, UPLOAD_S))
        return UpdateReply(duplicate=outcome.duplicate)

    with patch.object(Updates, "_take_in", take_in):
        yield


@contextmanager
def a_forgotten_fence() -> Iterator[None]:
    """Nobody looks whether another owner has come before "counted" is said."""
    with patch.object(Journal, "check_fence", lambda self: None):
        yield


@contextmanager
def a_log_that_can_be_written_over() -> Iterator[None]:
    """The next entry is written wherever this owner believes that the log ends."""
    append = Journal.append

    def overwriting(self: Journal, *args: Any, **kwargs: Any) -> Entry:
        put_new = self.store.put_new

        def put(key: str, body: bytes) -> str:
            try:
                return put_new(key, body)
            except AlreadyExists:
                return self.store.swap(key, body, self.store.get(key).etag)

        with patch.object(self.store, "put_new", put):
            return append(self, *args, **kwargs)

    with patch.object(Journal, "append", overwriting):
        yield


@contextmanager
def a_recovery_that_forgets() -> Iterator[None]:
    """Who takes a model over does not look for the updates of the open round."""
    with patch.object(recovery_module, "refold", lambda journal, coordinator, now: None):
        yield


PLANTS = {
    "a skipped fsync": a_skipped_fsync,
    "counted before the write": counted_before_the_write,
    "a forgotten fence": a_forgotten_fence,
    "a log that can be written over": a_log_that_can_be_written_over,
    "a recovery that forgets": a_recovery_that_forgets,
}
