"""Updates of old versions can go: what is kept can still be replayed, and whoever trains on notices nothing."""

import copy
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cloud_fakes import Crash, FaultyStore
from test_cloud_replay import BUFFERED, MODEL, Session, asynchronous, changing, plan, synchronous
from typer.testing import CliRunner

from flsys_ray import cli
from flsys_ray.cloud import places
from flsys_ray.cloud.journal import Journal
from flsys_ray.cloud.pruning import Pruned, plan_pruning, prune
from flsys_ray.cloud.replay import replay
from flsys_ray.core.plan import TrainingPlan
from flsys_ray.errors import InvalidInput, NotFound
from flsys_ray.storage.base import ObjectStore
from flsys_ray.storage.local import LocalStore
from flsys_ray.storage.memory import MemoryStore

LATE = {"name": "rounds", "cohort": 2, "quorum": 1, "deadline_s": 60, "late": {"max_staleness": 1}}
PLAYS = [
    pytest.param(plan(), synchronous, id="rounds"),
    pytest.param(plan(BUFFERED | {"max_staleness": 3}), asynchronous, id="buffered"),
    pytest.param(plan(LATE), synchronous, id="late"),
    pytest.param(plan(), changing, id="changing"),
]


def copied(store: MemoryStore) -> MemoryStore:
    twin = MemoryStore()
    twin._objects = dict(store._objects)
    return twin


def pruned(store: ObjectStore, keep: int, *, dry_run: bool = False) -> list[Pruned]:
    pruning = plan_pruning(store, MODEL, keep)
    return [] if pruning is None else [*prune(store, MODEL, pruning, dry_run=dry_run)]


def updates_of(store: ObjectStore) -> dict[int, set[str]]:
    """Return the assignments in each version, as the log says."""
    found = {}
    for entry in Journal(store, MODEL).entries():
        if entry.kind == "closed" and entry.updates and entry.head.version:
            found[entry.head.version.number] = {line.assignment_id for line in entry.updates}
    return found


def stored(store: ObjectStore) -> set[str]:
    return {places.owner_of(key)[0] for key in store.list(places.rounds(MODEL)) if places.is_update(key)}


@pytest.mark.parametrize(("how", "play"), PLAYS)
@pytest.mark.parametrize("keep", [1, 2, 3, 100])
def test_kept_versions_are_replayed_and_training_goes_on_as_if_nothing_had_gone(
    how: TrainingPlan, play: Callable[[Session], None], keep: int
) -> None:
    session = Session(MemoryStore(), how)
    play(session)
    newest, made_of = session.model.info().version, updates_of(session.store)
    verdicts = {one.version: one.verdict for one in replay(session.store, MODEL)}
    assert set(verdicts.values()) == {"equal"}
    twin = copied(session.store)
    pruned(session.store, keep)
    for version, ids in made_of.items():
        if version > newest - keep:
            assert ids <= stored(session.store)
    left = {one.version: one.verdict for one in replay(session.store, MODEL)}
    assert all(left[version] == "equal" for version in left if version > newest - keep)
    ends = []
    for store in (session.store, twin):
        again = copy.copy(session)
        again.store, again.rng = store, copy.deepcopy(session.rng)
        again.restart()
        again.rounds(3)
        ends.append(again.model.info().model_dump(exclude={"open_round"}))
        ends.append(store.get(places.version(MODEL, newest + 1)).body)
    assert ends[0] == ends[2]
    assert json.loads(ends[1])["weights_sha256"] == json.loads(ends[3])["weights_sha256"]


def test_what_goes_is_what_older_versions_were_made_of_and_what_no_version_is_made_of() -> None:
    session = Session(MemoryStore(), plan())
    idle = session.work("idle")
    session.model.give_back(idle)
    session.rounds(4)
    before, made_of = {*session.store.list("")}, updates_of(session.store)
    gone = pruned(session.store, 2)
    assert {places.owner_of(one.key)[0] for one in gone} == made_of[1] | made_of[2] | {idle.assignment_id}
    assert sum(one.size == 0 for one in gone) == 1
    assert before - {*session.store.list("")} == {one.key for one in gone}
    assert all("/updates/" in one.key for one in gone)
    assert [one.verdict for one in replay(session.store, MODEL)] == ["equal", "missing", "missing", "equal", "equal"]


def test_a_slow_phones_update_stays_with_the_version_that_it_came_to_be_in() -> None:
    session = Session(MemoryStore(), plan(BUFFERED | {"max_staleness": 3}))
    asynchronous(session)
    session.rounds(3)  # the versions after it
    newest = session.model.info().version
    slow = next(iter(updates_of(session.store)[4] - {i for i in updates_of(session.store)[4] if "00000003" in i}))
    assert slow.startswith("00000000")
    pruned(session.store, newest - 3)
    assert slow in stored(session.store)
    pruned(session.store, 1)
    assert slow in stored(session.store)  # an update may be 3 versions old here, so 4 versions stay whatever is asked
    session.rounds(2)
    pruned(session.store, 1)
    assert slow not in stored(session.store)


def dying(removals: int) -> Callable[[str, str], None]:
    """Return a fault that kills the process when it wants to remove more than so many."""
    seen: list[str] = []

    def before(verb: str, key: str) -> None:
        if verb == "remove":
            seen.append(key)
            if len(seen) > removals:
                raise Crash

    return before


def test_it_may_be_cut_short_anywhere_and_repeated() -> None:
    session = Session(MemoryStore(), plan())
    session.rounds(5)
    expected = copied(session.store)
    total = len(pruned(expected, 2))
    assert total == 6
    for left in range(total, 0, -1):  # each time it dies before its second removal
        store = FaultyStore(session.store, before=dying(removals=1))
        if left > 1:
            with pytest.raises(Crash):
                pruned(store, 2)
    pruned(session.store, 2)
    assert [*session.store.list("")] == [*expected.list("")]
    assert pruned(session.store, 2) == []


def test_a_dry_run_names_the_same_objects_and_removes_none() -> None:
    session = Session(MemoryStore(), plan())
    session.rounds(3)
    before = {*session.store.list("")}
    would = pruned(session.store, 1, dry_run=True)
    assert {*session.store.list("")} == before
    assert pruned(session.store, 1) == would != []


def test_a_model_without_versions_or_with_few_keeps_everything() -> None:
    session = Session(MemoryStore(), plan())
    assert pruned(session.store, 1) == []
    session.rounds(2)
    assert pruned(session.store, 3) == []
    with pytest.raises(InvalidInput, match="keep_versions"):
        plan_pruning(session.store, MODEL, 0)
    with pytest.raises(NotFound):
        plan_pruning(session.store, "acme/none", 1)


def test_the_command(tmp_path: Path) -> None:
    session = Session(LocalStore(tmp_path), plan())
    session.store.put_new(places.listed(MODEL), b"")
    session.rounds(3)
    before = {*session.store.list("")}

    def flsys(*words: str) -> str:
        words = ("models", "prune", "har", "--store", str(tmp_path), *words)
        done = CliRunner().invoke(cli.app, words, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout

    told = json.loads(flsys("--keep-versions", "2", "--dry-run", "--json"))
    assert (told["model"], told["dry_run"], told["objects"], told["oldest_kept"]) == (MODEL, True, 2, 2)
    assert told["bytes"] > 0
    assert {*session.store.list("")} == before
    assert f"2 objects of {told['bytes']} bytes removed; from version 2 on all stay" in flsys("--keep-versions", "2")
    assert len(before) - len([*session.store.list("")]) == 2
    assert "0 objects of 0 bytes removed" in flsys("--keep-versions", "2")
    assert "nothing to remove" in flsys("--keep-versions", "9")
    missing = CliRunner().invoke(cli.app, ["models", "prune", "har", "--store", str(tmp_path)])
    assert missing.exit_code == 2
    assert "--keep-versions" in missing.stderr
