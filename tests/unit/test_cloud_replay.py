"""Replays: what made a version is in the store, and gives the same bits; what is not as it was is named."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cloud_fakes import SIZE, Clock, fake_initial, fake_program
from typer.testing import CliRunner

from flsys_ray import cli
from flsys_ray.cloud import places
from flsys_ray.cloud.creation import create_model
from flsys_ray.cloud.model import DurableModel
from flsys_ray.cloud.offers import Offer
from flsys_ray.cloud.replay import Replayed, replay
from flsys_ray.cloud.stored_updates import to_update
from flsys_ray.cloud.versions import load_plan, load_version, sha256
from flsys_ray.core.plan import TrainingPlan, parse_plan
from flsys_ray.core.types import Assignment, Counted
from flsys_ray.errors import NotFound
from flsys_ray.programs.manifest import read_manifest
from flsys_ray.storage.base import ObjectStore
from flsys_ray.storage.local import LocalStore
from flsys_ray.storage.memory import MemoryStore
from flsys_ray.wire.tensors import decode_update, encode_update

MODEL = "acme/har"
LAYOUT = read_manifest(fake_program()).to_layout()
ROUNDS = {"name": "rounds", "cohort": 2, "quorum": 1, "over_selection": 2, "deadline_s": 60}
BUFFERED = {"name": "buffered", "buffer": 2, "concurrency": 4, "deadline_s": 600, "weight": "polynomial"}
ADAM = {"name": "adam", "learning_rate": 0.1}
SCAFFOLD = {"name": "scaffold", "devices": 10}


def plan(pacing: object = ROUNDS, **changes: object) -> TrainingPlan:
    return parse_plan({"pacing": pacing, "selection": "first_come"} | changes)


class Session:
    """One model, and devices that train it."""

    def __init__(self, store: ObjectStore, how: TrainingPlan) -> None:
        self.store, self.clock = store, Clock()
        create_model(store, MODEL, "acme", how, self.clock())
        self.model = DurableModel(store, MODEL, self.clock)
        store.put_new(places.program(MODEL, sha256(fake_program())), fake_program())
        self.model.put_program(sha256(fake_program()))
        self.model.start(fake_initial)
        self.rng = np.random.default_rng(11)

    def work(self, device: str) -> Assignment:
        outcome = self.model.check_in(device).outcome
        assert isinstance(outcome, Offer)
        return outcome.assignment

    def upload(self, work: Assignment) -> None:
        delta, examples = self.rng.normal(0, 0.3, SIZE).astype(np.float32), int(self.rng.integers(1, 90))
        carries = load_plan(self.store, MODEL, self.model._head.round_plan_sha256).aggregation.carries_control
        control = self.rng.normal(0, 3, SIZE).astype(np.float32) if carries else None
        body = encode_update(delta, examples, 0.5, control=control)
        self.store.put_new(places.update(MODEL, work.round, work.assignment_id, work.device_id), body)
        update = to_update(work, decode_update(body, LAYOUT, 1024.0, control=carries), body)
        assert self.model.submit(update) == Counted(duplicate=False)

    def rounds(self, number: int) -> None:
        for _ in range(number):
            for work in [self.work("a"), self.work("b")]:
                self.upload(work)

    def restart(self) -> None:
        self.model = DurableModel(self.store, MODEL, self.clock)


def synchronous(session: Session) -> None:
    session.rounds(3)
    session.upload(session.work("a"))
    session.clock.advance(61)
    session.model.tick()  # by the deadline, of one update
    session.restart()
    session.rounds(1)


def asynchronous(session: Session) -> None:
    slow = session.work("slow")
    for turn in range(3):
        session.upload(session.work("fast"))
        session.upload(session.work("fast"))
        if turn == 1:
            session.restart()
    session.upload(slow)  # three versions old
    session.upload(session.work("fast"))


def changing(session: Session) -> None:
    session.rounds(2)
    session.model.put_plan(plan(server_optimizer=ADAM))
    session.rounds(2)
    session.model.put_plan(plan(BUFFERED, server_optimizer=ADAM | {"learning_rate": 0.3}))
    session.rounds(1)
    asynchronous(session)
    session.model.put_plan(plan(server_optimizer="yogi"))
    session.upload(session.work("a"))
    session.upload(session.work("a"))  # the buffer that was open
    session.rounds(1)


def controlled_for_a_while(session: Session) -> None:
    session.rounds(1)
    session.model.put_plan(plan(aggregation=SCAFFOLD))
    session.rounds(3)
    session.model.rollback(3)
    session.rounds(2)
    session.restart()
    session.rounds(1)
    session.model.rollback(1)  # a version from before there were controls
    session.rounds(1)
    session.model.put_plan(plan())
    session.rounds(2)
    session.model.put_plan(plan(aggregation=SCAFFOLD))
    session.rounds(2)


@pytest.mark.parametrize(
    ("how", "play"),
    [
        (plan(), synchronous),
        (plan(server_optimizer=ADAM), synchronous),
        (plan(ROUNDS | {"quorum": 1}, aggregation="coordinate_median"), synchronous),
        (plan(BUFFERED, server_optimizer=ADAM), asynchronous),
        (plan(BUFFERED | {"weight": {"name": "hinge", "a": 2.0, "b": 0}}), asynchronous),
        (plan(), changing),
        (plan(aggregation=SCAFFOLD), synchronous),
        (plan(server_optimizer=ADAM), controlled_for_a_while),
    ],
    ids=[
        "sgd",
        "adam",
        "median",
        "buffered adam",
        "buffered hinge",
        "plan changes",
        "scaffold",
        "scaffold comes, goes",
    ],
)
def test_a_replay_gives_the_same_bits(how: TrainingPlan, play: Callable[[Session], None]) -> None:
    session = Session(MemoryStore(), how)
    play(session)
    found = [*replay(session.store, MODEL)]
    assert [one.verdict for one in found] == ["equal"] * len(found), found
    assert [one.version for one in found] == list(range(session.model.info().version + 1))
    assert len(found) > 4


def test_going_back_goes_on_from_the_older_versions_control() -> None:
    session = Session(MemoryStore(), plan(aggregation=SCAFFOLD))
    session.rounds(3)
    session.model.rollback(1)
    head = session.model._head
    infos = [json.loads(session.store.get(places.version(MODEL, number)).body) for number in range(5)]
    assert head.version.control_sha256 == infos[4]["control_sha256"] == infos[1]["control_sha256"]
    assert len({info["control_sha256"] for info in infos}) == 4
    loaded = load_version(session.store, MODEL, head.version, SIZE, plan(aggregation=SCAFFOLD))
    assert session.model._coordinator.version.control.tobytes() == loaded.control.tobytes()
    assert session.model.check_in("c").outcome.control_sha256 == infos[1]["control_sha256"]


def test_a_control_that_is_not_as_it_was_is_named() -> None:
    session = Session(MemoryStore(), plan(aggregation=SCAFFOLD))
    session.rounds(2)
    key = places.control(MODEL, session.model._head.version.control_sha256)
    session.store.swap(key, b"other", session.store.get(key).etag)
    found = [*replay(session.store, MODEL)]
    assert [one.verdict for one in found] == ["equal", "equal", "changed"]
    assert "controls/" in found[-1].detail


# What is not as it was -------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    session = Session(LocalStore(tmp_path), plan(BUFFERED, server_optimizer=ADAM))
    asynchronous(session)
    return tmp_path


def verdicts(folder: Path) -> list[str]:
    return [one.verdict for one in replay(LocalStore(folder), MODEL)]


def updates_of(folder: Path, version: int) -> list[str]:
    info = json.loads(LocalStore(folder).get(places.version(MODEL, version)).body)
    keys = [(line["assignment_id"], line["device_id"]) for line in info["updates"]]
    return [places.update(MODEL, int(aid[:8]), aid, device) for aid, device in keys]


def rewrite(folder: Path, key: str, change: Callable[[bytes], bytes]) -> None:
    """Change an object as a broken disk does, or somebody with access to it."""
    store = LocalStore(folder)
    present = store.get(key)
    store.swap(key, change(present.body), present.etag)


def other_last_byte(body: bytes) -> bytes:
    return body[:-1] + bytes([body[-1] ^ 1])


def test_an_update_that_was_changed_is_named_and_the_versions_after_it_are_checked_all_the_same(folder: Path) -> None:
    key = updates_of(folder, 2)[0]
    rewrite(folder, key, other_last_byte)
    found = [*replay(LocalStore(folder), MODEL)]
    assert [one.verdict for one in found] == ["equal", "equal", "changed", "equal", "equal"]
    assert key in found[2].detail


def test_an_update_that_is_gone_is_named(folder: Path) -> None:
    key = updates_of(folder, 4)[0]
    (gone,) = [path for path in folder.rglob("*") if str(path).endswith(key)]
    gone.unlink()
    found = [*replay(LocalStore(folder), MODEL)]
    assert [one.verdict for one in found] == ["equal"] * 4 + ["missing"]
    assert key in found[4].detail


@pytest.mark.parametrize("version", [0, 3])
def test_parameters_that_were_changed_in_the_store_are_named(folder: Path, version: int) -> None:
    info = json.loads(LocalStore(folder).get(places.version(MODEL, version)).body)
    rewrite(folder, places.weights(MODEL, info["weights_sha256"]), other_last_byte)
    found = [*replay(LocalStore(folder), MODEL)]
    assert found[version].verdict == "changed"
    assert info["weights_sha256"] in found[version].detail


def test_a_log_that_says_another_weight_gives_other_bits_and_the_leaf_is_named(folder: Path) -> None:
    def heavier(body: bytes) -> bytes:
        entry = json.loads(body)
        if entry["updates"] and entry["head"]["version"]["number"] == 2:
            entry["updates"][0]["weight"] += 1000
        return json.dumps(entry).encode()

    for key in LocalStore(folder).list(places.log(MODEL)):
        rewrite(folder, key, heavier)
    found = [*replay(LocalStore(folder), MODEL)]
    assert [one.verdict for one in found] == ["equal", "equal", "differs", "equal", "equal"]
    assert "'dense/kernel' at its element 0" in found[2].detail


def test_lines_of_before_weights_were_written_down_stand_for_their_examples() -> None:
    session = Session(store := MemoryStore(), plan())
    session.rounds(2)
    for key in [*store.list(places.log(MODEL))]:
        present = store.get(key)
        entry = json.loads(present.body)
        for line in entry["updates"]:
            assert line.pop("weight") == line["num_examples"]
            del line["staleness"]
        store.swap(key, json.dumps(entry).encode(), present.etag)
    assert [one.verdict for one in replay(store, MODEL)] == ["equal"] * 3


def test_a_model_that_is_not_there_and_one_that_has_not_started() -> None:
    with pytest.raises(NotFound):
        [*replay(MemoryStore(), MODEL)]
    store = MemoryStore()
    create_model(store, MODEL, "acme", plan(), 0.0)
    assert [*replay(store, MODEL)] == []


# The command -----------------------------------------------------------------------------------------------------


def test_the_command_says_which_version_is_broken_and_exits_with_1(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    LocalStore(folder).put_new(places.listed(MODEL), b"")
    done = CliRunner().invoke(cli.app, ["replay", "har", "--store", str(folder)], catch_exceptions=False)
    assert (done.exit_code, done.stdout.count("equal")) == (0, 5)
    rewrite(folder, updates_of(folder, 3)[1], other_last_byte)
    monkeypatch.setattr("sys.argv", ["flsys", "replay", MODEL, "--store", str(folder), "--json"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    printed = capfd.readouterr()
    assert ended.value.code == 1
    assert "version 3" in printed.err
    report = json.loads(printed.out)
    assert not report["equal"]
    assert Replayed(**report["versions"][1]) == replace(
        next(replay(LocalStore(folder), MODEL)), version=1, round=0, updates=2
    )
