"""Deliver what an assignment left: the update, the evaluation, or the assignment itself.

Each call may have reached the cloud before a kill or a broken connection, so each is simply made again: the cloud
takes a repeat as a duplicate. The bytes of an update come from the journal and never change.
"""

from typing import Literal

from flsys_ray.device.identity import Identity
from flsys_ray.device.journal import Journal, OpenAssignment
from flsys_ray.device.outcome import Kind, Outcome
from flsys_ray.device.staged import send_update
from flsys_ray.errors import Conflict, FlsysError, Late, TryLater, Unauthenticated
from flsys_ray.wire.schemas import EvaluationRequest, GiveBackRequest


def deliver(item: OpenAssignment, identity: Identity, journal: Journal, now: float) -> Outcome:
    """Make the next delivery of a trained or returning assignment, and write down how it went.

    Raises:
        TryLater: the cloud could not take it now.
        Unauthenticated: the app key is not valid (any more).
    """
    if item.evaluation is not None:
        return _report(item, item.evaluation, identity, journal, now)
    if item.delta is None:
        return _return(item, identity, journal, now)
    return _upload(item, item.delta, identity, journal, now)


def _upload(item: OpenAssignment, delta: bytes, identity: Identity, journal: Journal, now: float) -> Outcome:
    limit = item.message.upload.max_bytes
    if len(delta) > limit:
        journal.settle(item.id, "refused", now, f"the update has {len(delta)} bytes, the assignment takes {limit}")
        return _outcome("refused", item, now, "too large")
    try:
        reply = identity.call(lambda token: send_update(identity.client, token, item.message, delta))
    except (TryLater, Unauthenticated):
        raise
    except FlsysError as error:
        ending: Literal["late", "refused"] = "late" if isinstance(error, Late) else "refused"
        journal.settle(item.id, ending, now, error.message)
        return _outcome(ending, item, now, error.message)
    journal.counted(item.id, now)
    return _outcome("uploaded", item, now, "duplicate" if reply.duplicate else "")


def _report(
    item: OpenAssignment, evaluation: EvaluationRequest, identity: Identity, journal: Journal, now: float
) -> Outcome:
    detail = ""
    ending: Literal["done", "late", "refused"] = "done"
    try:
        identity.call(lambda token: identity.client.evaluation(token, item.message, evaluation))
    except (TryLater, Unauthenticated):
        raise
    except FlsysError as error:  # a figure less; whether the update is still wanted its own call will tell
        detail, ending = error.message, "late" if isinstance(error, Late) else "refused"
    if item.message.kind == "evaluate":
        journal.settle(item.id, ending, now, detail)
        return _outcome("evaluated" if ending == "done" else ending, item, now, detail)
    journal.evaluated(item.id)
    return _outcome("evaluated", item, now, detail)


def _return(item: OpenAssignment, identity: Identity, journal: Journal, now: float) -> Outcome:
    request = GiveBackRequest(reason=item.reason)
    detail: str = item.reason
    try:
        identity.call(lambda token: identity.client.give_back(token, item.message, request))
    except (TryLater, Unauthenticated):
        raise
    except Conflict as error:  # an upload whose answer was lost is counted
        detail = f"{item.reason}; {error.message}"
        journal.counted(item.id, now, detail)
    except FlsysError as error:  # over: the cloud waits for nothing
        detail = f"{item.reason}; {error.message}"
    journal.settle(item.id, "given-back", now, detail)
    return _outcome("given-back", item, now, detail)


def _outcome(kind: Kind, item: OpenAssignment, now: float, detail: str) -> Outcome:
    return Outcome(kind, now, now, item.message.model, item.id, detail)
