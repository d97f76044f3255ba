"""What a new owner of a model finds in the store that counts in the open round.

These are the updates of every round that may still contribute: the open one, and earlier ones as far back as the plan
lets updates be stale. Those that the log says are in a version are known from then on, and not counted again.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from flsys_ray.cloud import places
from flsys_ray.cloud.journal import Head, Journal, VersionRef
from flsys_ray.cloud.stored_updates import StoredUpdates, to_update
from flsys_ray.cloud.versions import load_plan, load_version, save_control
from flsys_ray.core.coordinator import Coordinator
from flsys_ray.core.ids import round_of
from flsys_ray.core.layout import Layout
from flsys_ray.core.ledger import Entry
from flsys_ray.core.selection.history import LINES, NO_HISTORY, VERSIONS, History
from flsys_ray.core.types import Assignment
from flsys_ray.errors import UpdateUnusable
from flsys_ray.wire.developer_schemas import UpdateLine
from flsys_ray.wire.tensors import decode_update


@dataclass(frozen=True, slots=True)
class Window:
    """The rounds that may still contribute, each with its base version, and (id, device) of what is in a version."""

    versions: dict[int, int]
    held: tuple[tuple[str, str], ...]


def reopened(journal: Journal, head: Head, ref: VersionRef, layout: Layout, now: float) -> Coordinator:
    """Return the coordinator of the head's open round, with whatever counts in it that is in the store."""
    store, model = journal.store, journal.model
    plan = load_plan(store, model, head.round_plan_sha256)
    version = load_version(store, model, ref, layout.size, plan)
    if version.control is not None and ref.control_sha256 is None:
        save_control(store, model, version.control)  # the first round of a rule that carries one: phones fetch it
    coordinator = Coordinator(
        model,
        layout,
        plan,
        version,
        round_=head.round,
        opened_at=head.opened_at,
        updates=StoredUpdates(store, model),
        history=_history(journal) if plan.selection.reads_history else NO_HISTORY,
    )
    refold(journal, coordinator, now)
    return coordinator


def _history(journal: Journal) -> History:
    """Return what the log says of devices: the last versions, and as many lines as a history holds."""
    newest: list[tuple[int, tuple[UpdateLine, ...]]] = []
    lines = 0
    for entry in journal.closed_backwards():
        closed = entry.head.last_round
        if entry.kind == "closed" and closed is not None and closed.committed is not None:
            newest.append((closed.round, entry.updates))
            lines += len(entry.updates)
        if len(newest) >= VERSIONS or lines >= LINES:
            break
    history = NO_HISTORY
    for round_, updates in reversed(newest):
        history = history.after(round_, updates)
    return history


def refold(journal: Journal, coordinator: Coordinator, now: float) -> None:
    """Give a coordinator that starts anew all that is durable, in assignment order."""
    window = _window(journal, coordinator)
    for assignment_id, device_id in window.held:
        coordinator.settle(Entry(_work(coordinator, window, assignment_id, device_id, now), "counted"))
    known = {assignment_id for assignment_id, _ in window.held}
    for key in _stored(journal, window):
        assignment_id, device_id = places.owner_of(key)
        if assignment_id not in known:
            _take(journal, coordinator, key, _work(coordinator, window, assignment_id, device_id, now))


def _take(journal: Journal, coordinator: Coordinator, key: str, work: Assignment) -> None:
    body = journal.store.get(key).body
    if not body and work.round == coordinator.round:
        coordinator.give_back(work, work.deadline)
    elif not body:
        coordinator.settle(Entry(work, "given-back"))
    else:
        try:
            limit, control = coordinator.plan.limits.max_abs_delta, coordinator.plan.aggregation.carries_control
            decoded = decode_update(body, coordinator.layout, limit, control=control)
        except UpdateUnusable:
            return  # refused when it came, and refused again
        coordinator.submit(to_update(work, decoded, body), work.deadline)


def _window(journal: Journal, coordinator: Coordinator) -> Window:
    staleness = coordinator.plan.pacing.staleness
    versions = {coordinator.round: coordinator.version.number}
    held: list[tuple[str, str]] = []
    for entry in journal.closed_backwards() if staleness is not None else ():
        closed = entry.head.last_round
        if entry.kind == "restored":
            break  # what came before it belongs to versions that were given up
        if closed is None or staleness is None or coordinator.version.number - closed.version > staleness.max_staleness:
            break
        versions[closed.round] = closed.version
        held += [(line.assignment_id, line.device_id) for line in entry.updates]
    return Window(versions, tuple(pair for pair in held if round_of(pair[0]) in versions))


def _stored(journal: Journal, window: Window) -> Iterator[str]:
    for round_ in sorted(window.versions):
        yield from journal.store.list(places.updates(journal.model, round_))


def _work(coordinator: Coordinator, window: Window, assignment_id: str, device_id: str, now: float) -> Assignment:
    round_ = round_of(assignment_id)
    return Assignment(assignment_id, coordinator.model, round_, window.versions[round_], device_id, now)
