"""How an update is taken in: checked, made durable, counted - in this order, and repeatable at every point."""

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import ParamSpec, TypeVar

from flsys_ray.cloud import places
from flsys_ray.cloud.batches import Batch, OpenRound, Ready, batch_of, in_order
from flsys_ray.cloud.credentials import Ticket
from flsys_ray.cloud.hosts import Hosts
from flsys_ray.cloud.mailbox import Mailboxes
from flsys_ray.cloud.meter import NO_METER, UPDATE_BYTES, UPDATES, UPLOAD_S, Meter, Stages
from flsys_ray.cloud.sent import Sent
from flsys_ray.cloud.stored_updates import to_update
from flsys_ray.core.flaws import flaw_of_norm
from flsys_ray.core.ids import is_evaluation, model_name
from flsys_ray.core.plan import TrainingPlan
from flsys_ray.core.types import Counted, Rejected, Update
from flsys_ray.errors import AlreadyExists, Conflict, FlsysError, Late, Missing, UpdateUnusable
from flsys_ray.programs.manifest import Manifest
from flsys_ray.storage.base import ObjectStore
from flsys_ray.wire.schemas import UpdateReply
from flsys_ray.wire.tensors import decode_update, max_update_bytes

P = ParamSpec("P")
T = TypeVar("T")
THREADS = 16  # that write updates, at a replica: syncs of several files share one commit of the file system's journal
WAITING = 1_000  # durable updates of one model that wait to be counted
TOGETHER = 64
KEPT_MODELS = 10_000
_OUTCOMES: dict[type[FlsysError], str] = {Late: "late", UpdateUnusable: "unusable"}


class Updates:
    """Takes updates in. `manifest` and `plan` read (and cache) what an update is checked against.

    Models are told with their updates how much of their versions was `sent`.
    """

    def __init__(
        self,
        store: ObjectStore,
        hosts: Hosts,
        clock: Callable[[], float],
        manifest: Callable[[str, str], Manifest],
        plan: Callable[[str, str], TrainingPlan],
        meter: Meter = NO_METER,
    ) -> None:
        self._store = store
        self._hosts = hosts
        self._clock = clock
        self._manifest = manifest
        self._plan = plan
        self._meter = meter
        self.sent = Sent()
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="updates")
        self._doors: Mailboxes[Ready, Counted | Rejected]
        self._doors = Mailboxes(self._submit, limit=WAITING, at_once=TOGETHER, together=lambda ready: ready.kind)
        self._open: OrderedDict[str, OpenRound] = OrderedDict()

    def max_bytes(self, ticket: Ticket) -> int:
        """Return the most bytes that the update of an assignment may have."""
        model = ticket.assignment.model
        plan = self._plan(model, ticket.plan_sha256)
        parameters = self._manifest(model, ticket.program_sha256).parameters
        return max_update_bytes(parameters, control=plan.aggregation.carries_control, encoding=plan.compression)

    def stored(self, ticket: Ticket) -> bytes:
        """Return what is stored for an assignment: nothing if it was given back. Raises `Missing`."""
        return self._store.get(_key(ticket)).body

    async def take_in(self, ticket: Ticket, body: bytes) -> UpdateReply:
        """Count an update once, however often it comes.

        The first bytes that were stored for an assignment are its update: a repeat counts those, not its own.

        Raises:
            UpdateUnusable: its form, or a value in it.
            Late: the round is over, the deadline has passed, or the assignment was given back.
            Conflict: the assignment is for evaluation.
        """
        model = ticket.assignment.model
        if is_evaluation(ticket.assignment.assignment_id):
            raise Conflict(f"assignment {ticket.assignment.assignment_id} is for evaluation: it takes no update")
        self._meter.record(UPDATE_BYTES, len(body), model)
        try:
            reply = await self._take_in(ticket, body)
        except FlsysError as error:
            self._meter.record(UPDATES, 1, model, _OUTCOMES.get(type(error), "failed"))
            raise
        self._meter.record(UPDATES, 1, model, "duplicate" if reply.duplicate else "counted")
        return reply

    async def _take_in(self, ticket: Ticket, body: bytes) -> UpdateReply:
        stages = Stages(self._meter, UPLOAD_S)
        ready = await self._in_thread(self._make_durable, ticket, body, stages)
        outcome = await self._doors.send(ticket.assignment.model, ready)
        stages.done("count")
        if not isinstance(outcome, Rejected):
            return UpdateReply(duplicate=outcome.duplicate or not ready.fresh)
        if outcome.reason == "unusable":
            raise UpdateUnusable(f"update for {model_name(ticket.assignment.model)}: {outcome.detail}")
        raise _late(ticket, outcome.reason)

    async def _submit(self, model: str, ready: Sequence[Ready]) -> list[Counted | Rejected]:
        """Have a model count what has gathered. What is folded here it needs only to add."""
        batch = await self._in_thread(self._fold, model, ready)
        answer = await self._hosts.model(model).submit_many(batch)
        self._note_open(model, answer.open)
        return in_order(ready, answer.outcomes)

    def _fold(self, model: str, ready: Sequence[Ready]) -> Batch:
        size = ready[0].update.delta.size
        batch = batch_of(ready, self._plan(model, ready[0].plan_sha256), size, self._open.get(model))
        return replace(batch, sent_bytes=self.sent.take(model))

    def _note_open(self, model: str, now_open: OpenRound | None) -> None:
        if now_open is None:
            self._open.pop(model, None)
            return
        self._open[model] = now_open
        self._open.move_to_end(model)
        while len(self._open) > KEPT_MODELS:
            self._open.popitem(last=False)

    async def _in_thread(self, use: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(use, *args, **kwargs))

    def _make_durable(self, ticket: Ticket, body: bytes, stages: Stages) -> Ready:
        update = self._decode(ticket, body)
        stages.done("check")
        if self._clock() <= ticket.assignment.deadline:
            try:
                self._store.put_new(_key(ticket), body)
                stages.done("store")
                return Ready(update, ticket.plan_sha256, fresh=True)
            except AlreadyExists:
                pass
        try:
            stored = self.stored(ticket)
        except Missing:
            raise _late(ticket, "deadline-passed") from None
        if not stored:
            raise _late(ticket, "given-back")
        kept = update if stored == body else self._decode(ticket, stored)
        return Ready(kept, ticket.plan_sha256, fresh=False)

    def _decode(self, ticket: Ticket, body: bytes) -> Update:
        work = ticket.assignment
        manifest = self._manifest(work.model, ticket.program_sha256)
        plan = self._plan(work.model, ticket.plan_sha256)
        try:
            control, accepted = plan.aggregation.carries_control, (plan.compression,)
            layout, limit = manifest.to_layout(), plan.limits.max_abs_delta
            decoded = decode_update(body, layout, limit, control=control, accepted=accepted)
            if flaw := flaw_of_norm(decoded.delta, plan) or _flaw_of_labels(decoded.labels, len(manifest.classes)):
                raise UpdateUnusable(flaw)
        except UpdateUnusable as error:
            raise UpdateUnusable(f"update for {model_name(work.model)} v{work.version}: {error.message}") from None
        return to_update(work, decoded, body)


def _key(ticket: Ticket) -> str:
    work = ticket.assignment
    return places.update(work.model, work.round, work.assignment_id, work.device_id)


def _flaw_of_labels(labels: tuple[int, ...] | None, classes: int) -> str:
    if labels is None or len(labels) == classes:
        return ""
    return f"metadata 'labels' has {len(labels)} counts, the program has {classes} classes"


def _late(ticket: Ticket, reason: str) -> Late:
    return Late(f"assignment {ticket.assignment.assignment_id} of {model_name(ticket.assignment.model)}: {reason}")
