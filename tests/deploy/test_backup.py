"""Copies of a store that is in use: which order of copying gives one that recovers, and which does not.

A scripted session is played once, and every write is noted. Copies that take one part of the store when `i` writes
were done, and the rest when `j` were, are then made for every `i` and many `j >= i`; a new owner starts on each and
trains on.
"""

import os
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from cloud_fakes import SIZE, Clock, FaultyStore, fake_initial, fake_program

from flsys_ray.cloud import places
from flsys_ray.cloud.creation import create_model
from flsys_ray.cloud.journal import Entry, Journal
from flsys_ray.cloud.model import DurableModel
from flsys_ray.cloud.offers import Offer
from flsys_ray.cloud.stored_updates import to_update
from flsys_ray.cloud.versions import sha256
from flsys_ray.core.plan import parse_plan
from flsys_ray.core.types import Counted
from flsys_ray.errors import AlreadyExists, Missing, StoreUnavailable
from flsys_ray.storage.base import ObjectStore, put_same
from flsys_ray.storage.local import LocalStore
from flsys_ray.storage.memory import MemoryStore
from flsys_ray.wire.developer_schemas import VersionInfo
from flsys_ray.wire.tensors import decode_update, encode_update

MODEL = "acme/har"
SCRIPT = Path(__file__).parents[2] / "deploy/backup.sh"
PLAN = parse_plan(
    {
        "pacing": {"name": "rounds", "cohort": 2, "quorum": 2, "over_selection": 2, "deadline_s": 60},
        "selection": "first_come",
        "server_optimizer": {"name": "adam", "learning_rate": 0.1},
    }
)


@dataclass
class Session:
    """Writes, oldest first, and (key of an update, writes until it was acknowledged)."""

    writes: list[tuple[str, bytes]] = field(default_factory=list)
    counted: list[tuple[str, int]] = field(default_factory=list)

    def play(self, store: ObjectStore) -> None:
        """Three versions, a rollback and an open round, with a restart of the owner in between."""
        noted = FaultyStore(store, after=lambda verb, key: self._note(store, verb, key))
        clock = Clock()
        program = fake_program()
        create_model(noted, MODEL, "acme", PLAN, clock())
        put_same(noted, places.program(MODEL, sha256(program)), program)
        model = DurableModel(noted, MODEL, clock)
        model.put_program(sha256(program))
        model.start(fake_initial)
        for round_ in range(4):
            works = [assigned(model, f"d-{round_}-{name}") for name in "abc"]
            for number, work in enumerate(works[: 1 if round_ == 3 else 2]):
                key = upload(noted, model, work, 0.1 * (number + 1 + round_))
                self.counted.append((key, len(self.writes)))
            if round_ == 1:
                model = DurableModel(noted, MODEL, clock)
            if round_ == 2:
                model.rollback(1)
                model.give_back(assigned(model, "d-lazy"))

    def _note(self, store: ObjectStore, verb: str, key: str) -> None:
        if verb == "put_new":
            self.writes.append((key, store.get(key).body))


def assigned(model: DurableModel, device: str):
    outcome = model.check_in(device).outcome
    assert isinstance(outcome, Offer), outcome
    return outcome.assignment


def upload(store: ObjectStore, model: DurableModel, work, value: float) -> str:
    body = encode_update(np.full(SIZE, value, dtype=np.float32), 3, 0.5)
    key = places.update(MODEL, work.round, work.assignment_id, work.device_id)
    put_same(store, key, body)
    decoded = decode_update(body, model._coordinator.layout, PLAN.limits.max_abs_delta)
    assert isinstance(model.submit(to_update(work, decoded, body)), Counted)
    return key


def recover_and_go_on(store: ObjectStore) -> int:
    """Start a new owner on a copy and make two more versions. Returns the version that it found. May raise."""
    clock = Clock()
    model = DurableModel(store, MODEL, clock)
    found = model.info().version
    clock.advance(61)
    for number in range(2):
        for name in "xy":
            work = assigned(model, f"d-after-{number}-{name}")
            upload(store, model, work, 0.7)
    again = DurableModel(store, MODEL, clock)
    assert again.info().version >= (found or 0) + 2
    for entry in Journal(store, MODEL).entries():
        check_references(store, entry)
    return int(found or 0)


def check_references(store: ObjectStore, entry: Entry) -> None:
    """Look for everything that an entry names. Raises `Missing`."""
    version = entry.head.version
    if version is not None:
        store.get(places.weights(MODEL, version.weights_sha256))
        manifest = VersionInfo.model_validate_json(store.get(places.version(MODEL, version.number)).body)
        assert manifest.weights_sha256 == version.weights_sha256, "the manifest is of another version"
        store.get(places.optimizer(MODEL, version.optimizer_sha256))
        store.get(places.program(MODEL, str(entry.head.program_sha256)))
    for line in entry.updates:
        round_ = entry.head.last_round.round if entry.head.last_round else 0
        store.get(places.update(MODEL, round_, line.assignment_id, line.device_id))


@pytest.fixture(scope="module")
def session() -> Session:
    played = Session()
    played.play(MemoryStore())
    return played


Part = Callable[[str], bool]


def is_log(key: str) -> bool:
    return key.startswith(places.log(MODEL))


def copies(session: Session, first: Part) -> Iterator[tuple[int, int, MemoryStore]]:
    """Yield (i, j, copy): the copy takes keys of `first` after `i` writes, the others after `j`. Every third `j`."""
    started = next(n for n, (key, body) in enumerate(session.writes, 1) if is_log(key) and b'"started"' in body)
    for i in range(started, len(session.writes) + 1):
        for j in range(i, len(session.writes) + 1, 3):
            copy = MemoryStore()
            for key, body in [w for w in session.writes[:i] if first(w[0])] + [
                w for w in session.writes[:j] if not first(w[0])
            ]:
                copy.put_new(key, body)
            yield i, j, copy


def outcome(copy: ObjectStore) -> str:
    try:
        recover_and_go_on(copy)
    except (Missing, AlreadyExists, StoreUnavailable) as error:
        return type(error).__name__
    return "recovered"


def test_what_was_written_up_to_an_instant_recovers_whatever_the_instant(session: Session) -> None:
    seen = 0
    for i, j, copy in copies(session, is_log):
        if i == j:
            for key, acknowledged_at in session.counted:
                assert acknowledged_at > i or copy.get(key).body, "an acknowledged update is in the copy"
            recover_and_go_on(copy)
            seen += 1
    assert seen > 20


def test_a_copy_that_takes_the_log_last_may_lack_what_the_log_names(session: Session) -> None:
    outcomes = [outcome(copy) for _, _, copy in copies(session, lambda key: not is_log(key))]
    assert "Missing" in outcomes
    assert "recovered" in outcomes, "it is often right, and so easily believed"


def test_a_copy_that_takes_the_log_first_lacks_nothing_but_may_hold_a_future_of_its_own(session: Session) -> None:
    """Manifests of versions that the copied log does not have: a version that gets such a number is refused."""
    outcomes = {outcome(copy) for _, _, copy in copies(session, is_log)}
    assert outcomes == {"recovered", "StoreUnavailable"}


def test_log_first_and_of_the_rest_what_the_log_knows_recovers(session: Session) -> None:
    for _, _, copy in copies(session, is_log):
        head = Journal(copy, MODEL).read_tail().head
        recover_and_go_on(pruned(copy, head.round, head.version.number if head.version else 0))


def pruned(copy: ObjectStore, round_: int, version: int) -> MemoryStore:
    """Return a copy without the rounds and versions behind those of its log."""
    kept = MemoryStore()
    last_round, last_version = places.updates(MODEL, round_ + 1), places.version(MODEL, version)
    rounds, versions = places.updates(MODEL, 0).partition("rounds/")[0] + "rounds/", places.versions(MODEL)
    for key in copy.list(""):
        future = (key.startswith(rounds) and key >= last_round) or (key.startswith(versions) and key > last_version)
        if not future:
            kept.put_new(key, copy.get(key).body)
    return kept


# The script --------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(session: Session, tmp_path: Path) -> Path:
    """The store of the session, all of it."""
    store = LocalStore(tmp_path / "store")
    store.put_new("secrets/signing.json", b"{}")
    for key, body in session.writes:
        store.put_new(key, body)
    return store.folder


def backup(folder: Path, archive: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(SCRIPT), str(folder), str(archive)], capture_output=True, text=True, timeout=60)


def restored(archive: Path, to: Path) -> LocalStore:
    to.mkdir()
    subprocess.run(["tar", "--extract", "--file", str(archive), "--directory", str(to)], check=True, timeout=60)
    return LocalStore(to)


def test_the_script_takes_what_was_written_up_to_its_instant(session: Session, folder: Path, tmp_path: Path) -> None:
    """For several instants: writes before it are an hour old, those after it carry a time to come."""
    hour_ago, soon = time.time() - 3600, time.time() + 3600
    for done in range(len(session.writes) // 2, len(session.writes) + 1, 7):
        for number, (key, _) in enumerate(session.writes):
            when = hour_ago + number if number < done else soon
            os.utime(folder / key, (when, when))
        archive = tmp_path / f"{done}.tar"
        assert backup(folder, archive).returncode == 0
        store = restored(archive, tmp_path / f"restored-{done}")
        keys = set(store.list(""))
        assert keys == {"secrets/signing.json", *(key for key, _ in session.writes[:done])}
        recover_and_go_on(store)


def test_the_script_leaves_locks_and_half_written_files(folder: Path, tmp_path: Path) -> None:
    for name in (".locks/abc", "models/.new-123"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
        os.utime(folder / name, (1, 1))
    assert backup(folder, tmp_path / "out.tar").returncode == 0
    assert not list(restored(tmp_path / "out.tar", tmp_path / "restored").folder.rglob(".[a-z]*"))


def test_the_script_takes_records_that_may_change_as_they_are(folder: Path, tmp_path: Path) -> None:
    """They were replaced this moment, after the instant: without them revoked devices would be let in again."""
    store = LocalStore(folder)
    changing = [
        places.app("acme"), places.SIGNING_KEYS, places.OPERATOR_KEY, places.enrolled("acme"), places.revoked("acme"),
        places.device("acme", "d-0"),
    ]  # fmt: skip
    for key in changing:
        store.put_new(key, b"first")
        store.swap(key, b"second", store.get(key).etag)
    assert backup(folder, tmp_path / "out.tar").returncode == 0
    found = restored(tmp_path / "out.tar", tmp_path / "restored")
    assert {found.get(key).body for key in changing} == {b"second"}


def test_the_script_refuses_what_is_no_store(tmp_path: Path) -> None:
    assert "no store" in backup(tmp_path, tmp_path / "out.tar").stderr
    assert "usage" in subprocess.run([str(SCRIPT)], capture_output=True, text=True, timeout=60).stderr
    assert not (tmp_path / "out.tar").exists()
