"""Take away the updates that only old versions were made of. Versions, manifests, plans and the log stay.

An update of an old version is looked at by nobody any more but a replay: no owner reads it, and no phone repeats it. So
this needs no owner's consent, may run beside a cloud that is up, be cut short at any point, and be run again.

What is kept: every update that is in one of the newest versions, whatever round it was given out in; and the rounds of
which an update may still come to count.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from flsys_ray.cloud import places
from flsys_ray.cloud.journal import Head, Journal
from flsys_ray.cloud.versions import load_plan
from flsys_ray.errors import InvalidInput
from flsys_ray.storage.base import ObjectStore


@dataclass(frozen=True, slots=True)
class Pruning:
    """What can go: objects of rounds up to `last_round` that are in no kept version. `oldest_kept`: the first one."""

    last_round: int
    oldest_kept: int
    in_kept: frozenset[str]


@dataclass(frozen=True, slots=True)
class Pruned:
    """One object that went, or would go: an update, or an empty one of work that was given back."""

    key: str
    size: int


def plan_pruning(store: ObjectStore, model: str, keep_versions: int) -> Pruning | None:
    """Return what can go if the updates of the newest `keep_versions` versions stay; None if nothing can.

    More versions are kept where the plan lets updates be older than that. Raises `NotFound`, `InvalidInput`.
    """
    if keep_versions < 1:
        raise InvalidInput(f"keep_versions: at least the newest version keeps its updates, not {keep_versions}")
    journal = Journal(store, model)
    head = journal.read_tail().head
    if head.version is None:
        return None
    oldest_kept = head.version.number - max(keep_versions, _versions_that_count(store, model, head)) + 1
    in_kept: set[str] = set()
    for entry in journal.closed_backwards():
        number, closed = entry.head.version.number if entry.head.version else 0, entry.head.last_round
        if number < oldest_kept and closed is not None:
            return Pruning(closed.round, oldest_kept, frozenset(in_kept))
        in_kept.update(line.assignment_id for line in entry.updates)
    return None


def prune(store: ObjectStore, model: str, pruning: Pruning, *, dry_run: bool) -> Iterator[Pruned]:
    """Remove what can go, oldest first, and yield each object; with `dry_run`, only yield it."""
    for key in store.list(places.rounds(model)):
        if places.round_in(key) > pruning.last_round:
            return
        name = places.owner_of(key)[0]
        if not places.is_update(key) or name in pruning.in_kept:
            continue
        size = store.get(key, 0, 0).size
        if not dry_run:
            store.remove(key)
        yield Pruned(key, size)


def _versions_that_count(store: ObjectStore, model: str, head: Head) -> int:
    """Return of how many of the newest versions an update may still count, under the plans in force."""
    plans = [load_plan(store, model, digest) for digest in {head.plan_sha256, head.round_plan_sha256}]
    ages = [plan.pacing.staleness.max_staleness for plan in plans if plan.pacing.staleness is not None]
    return max(ages, default=0) + 1
