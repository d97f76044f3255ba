"""What a model's log says of the past: which entry made a version, and whether an old update is in one."""

from itertools import islice

from flsys_ray.cloud import places
from flsys_ray.cloud.journal import Journal, VersionRef
from flsys_ray.core.ids import model_name
from flsys_ray.core.types import Assignment
from flsys_ray.errors import Missing, NotFound, StoreUnavailable
from flsys_ray.storage.base import put_same
from flsys_ray.wire.developer_schemas import VersionInfo

RECENT_ROUNDS = 100


def finish_commit(journal: Journal, ref: VersionRef) -> None:
    """Write the manifest of the newest version, unless it is there: an owner may have died before it could.

    The entry of the log is the commit. The manifest repeats it under the version's number, for readers.

    Raises:
        StoreUnavailable: there is a manifest of another history under that number: a store that was restored in parts.
    """
    key = places.version(journal.model, ref.number)
    try:
        present = VersionInfo.model_validate_json(journal.store.get(key).body)
    except Missing:
        body = _manifest(journal, ref).model_dump_json().encode()
        put_same(journal.store, key, body)
        return
    if present.weights_sha256 != ref.weights_sha256:
        raise StoreUnavailable(
            f"model {journal.model!r}: version {ref.number} in the store is not the one that its log names: was a copy "
            "restored over another one?"
        )


def was_counted(journal: Journal, assignment: Assignment) -> bool:
    """Return whether an update of a round that is over is in a version: that round's, or a later one's.

    Only the last rounds are searched: an answer that a device still waits for is not older.
    """
    for ended in islice(journal.ended_backwards(), RECENT_ROUNDS):
        if ended.round_after <= assignment.round:
            return False
        if assignment.assignment_id in ended.assignments:
            return True
    return False


def base_of(journal: Journal, newest: VersionRef, number: int) -> VersionRef | VersionInfo:
    """Return where a version's numbers are: an assignment may be about an older one than the newest."""
    return newest if number == newest.number else _info(journal, number)


def _manifest(journal: Journal, ref: VersionRef) -> VersionInfo:
    made = journal.entry(ref.entry)
    round_ = made.head.last_round.round if made.kind == "closed" and made.head.last_round else None
    return VersionInfo(
        model=journal.model,
        version=ref.number,
        weights_sha256=ref.weights_sha256,
        optimizer_sha256=ref.optimizer_sha256,
        optimizer_step=ref.optimizer_step,
        program_sha256=str(made.head.program_sha256),
        plan_sha256=ref.plan_sha256,
        round=round_,
        committed_at=made.at,
        updates=list(made.updates),
        restored_from=ref.restored_from,
        control_sha256=ref.control_sha256,
        shared_sha256=ref.shared_sha256,
        public=ref.public,
    )


def restored(journal: Journal, newest: VersionRef, number: int) -> VersionRef:
    """Return the version after the newest one, with the numbers of version `number`. Raises `NotFound`."""
    if number > newest.number:
        raise NotFound(f"model {model_name(journal.model)!r} has no version {number}")
    old = _info(journal, number)
    return VersionRef(
        number=newest.number + 1,
        entry=journal.next_entry,
        plan_sha256=old.plan_sha256,
        weights_sha256=old.weights_sha256,
        optimizer_sha256=old.optimizer_sha256,
        optimizer_step=old.optimizer_step,
        restored_from=number,
        control_sha256=old.control_sha256,
        shared_sha256=old.shared_sha256,
        public=old.public,
    )


def _info(journal: Journal, number: int) -> VersionInfo:
    return VersionInfo.model_validate_json(journal.store.get(places.version(journal.model, number)).body)
