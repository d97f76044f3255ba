"""A cloud that dies, or whose store fails, at every single call of the store: what was acknowledged is never lost.

One scripted session of a model is played once without a fault. Then it is played again for every call of the store,
with a fault before or after that call: the process dies (everything in memory is gone, a new one starts on the same
store), or the store does not answer (and may have done it all the same). The script repeats the call that failed, as
a phone does. In the end the versions must be the same, to the bit.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from cloud_fakes import SIZE, Clock, Crash, FaultyStore, fake_initial, fake_program

from flsys_ray.cloud import places
from flsys_ray.cloud.credentials import Device
from flsys_ray.cloud.hosts import LocalHosts
from flsys_ray.cloud.model import DurableModel
from flsys_ray.cloud.service import Cloud
from flsys_ray.cloud.versions import sha256
from flsys_ray.core.plan import TrainingPlan, parse_plan
from flsys_ray.errors import FlsysError, Late, StoreFull, StoreUnavailable
from flsys_ray.storage.base import ObjectStore, put_same
from flsys_ray.storage.memory import MemoryStore
from flsys_ray.wire.developer_schemas import ModelInfo, VersionInfo
from flsys_ray.wire.schemas import CheckInRequest, EvaluationRequest, ModelCandidacy
from flsys_ray.wire.tensors import encode_update

NAME, MODEL = "har", "acme/har"
WRITES, READS = ("put_new", "swap"), ("get", "list")
CHECK_IN = CheckInRequest(models=[ModelCandidacy(model=NAME, examples=5)])


def plan(**changes: object) -> TrainingPlan:
    pacing = {"name": "rounds", "cohort": 2, "quorum": 2, "over_selection": 2, "deadline_s": 60}
    optimizer = {"name": "adam", "learning_rate": 0.1}
    return parse_plan({"pacing": pacing, "selection": "first_come", "server_optimizer": optimizer} | changes)


@dataclass
class Play:
    """A session that survives the death of the cloud it talks to."""

    store: ObjectStore
    runner: asyncio.Runner
    clock: Clock = field(default_factory=Clock)
    counted: list[str] = field(default_factory=list)
    works: dict[str, Any] = field(default_factory=dict)
    deaths: int = 0
    patience: int = 5
    controls: bool = False  # train with the rule that carries one

    def plan(self, **changes: object) -> TrainingPlan:
        rule = {"aggregation": {"name": "scaffold", "devices": 4}} if self.controls else {}
        return plan(**rule, **changes)

    def __post_init__(self) -> None:
        self.start_process()

    def start_process(self) -> None:
        self.hosts = LocalHosts(self.store, self.clock)
        self.cloud = Cloud(self.store, self.hosts, self.clock)

    def restart(self) -> None:
        """Start again until a start survives."""
        for _ in range(self.patience):
            try:
                return self.start_process()
            except Crash:
                self.deaths += 1
        raise AssertionError(f"{self.patience} starts in a row failed")

    def do(self, call: Callable[[], Any]) -> Any:
        """Call until it is answered."""
        for _ in range(self.patience):
            try:
                return self.runner.run(call())
            except StoreUnavailable:
                continue
            except FlsysError as error:
                if error.status != 503:
                    raise
            except Crash:
                self.deaths += 1
                self.restart()
        raise AssertionError(f"{self.patience} calls in a row failed")

    def host(self, use: Callable[[DurableModel], Any]) -> None:
        """Call the model itself: for what needs LiteRT behind the front door."""
        self.do(lambda: asyncio.to_thread(self.hosts.host(MODEL).call, use))

    def put_program(self) -> None:
        program = fake_program()

        async def call() -> None:
            put_same(self.store, places.program(MODEL, sha256(program)), program)
            await self.hosts.model(MODEL).put_program(sha256(program))

        self.do(call)

    def check_in(self, *names: str) -> None:
        for name in names:
            for _ in range(self.patience):
                reply = self.do(lambda name=name: self.cloud.check_in(Device(f"d-{name}", "acme"), CHECK_IN))
                if [rejection.reason for rejection in reply.rejections] != ["unavailable"]:
                    break
            assert len(reply.assignments) == 1, reply
            message = reply.assignments[0]
            device = Device(f"d-{name}", "acme")
            ticket = self.cloud.credentials.check_assignment(message.token, device, message.assignment_id)
            self.works[name] = ticket

    def upload(self, name: str, value: float) -> None:
        ticket = self.works[name]
        control = np.full(SIZE, 3 * value, dtype=np.float32) if self.controls else None
        body = encode_update(np.full(SIZE, value, dtype=np.float32), 3, 0.5, control=control)
        self.do(lambda: self.cloud.updates.take_in(ticket, body))
        self.counted.append(ticket.assignment.assignment_id)

    def late(self, name: str) -> None:
        zeros = np.zeros(SIZE, dtype=np.float32)
        body = encode_update(zeros, 3, 0.5, control=zeros if self.controls else None)
        with pytest.raises(Late):
            self.do(lambda: self.cloud.updates.take_in(self.works[name], body))

    def evaluate(self, name: str) -> None:
        metrics = EvaluationRequest(loss_sum=1.5, correct=1, count=2)
        self.do(lambda: self.cloud.evaluate(self.works[name], metrics))

    def give_back(self, name: str) -> None:
        self.do(lambda: self.cloud.give_back(self.works[name]))

    def until_the_round_is_over(self) -> None:
        """Let time pass. A restart gives the open round its whole time anew, so it may take more than one deadline."""
        first = self.info().open_round.round
        for _ in range(8):
            self.clock.advance(61)
            if self.info().open_round.round > first:
                return
        raise AssertionError("the round does not end")

    def info(self) -> ModelInfo:
        return self.do(lambda: self.hosts.model(MODEL).info())


def session(play: Play) -> None:
    """All that can happen to a model: rounds that fill, that end by their deadline, that miss their quorum."""
    play.do(lambda: play.cloud.put_model("acme", NAME, play.plan()))
    play.put_program()
    play.host(lambda model: model.start(fake_initial))
    play.check_in("a", "b", "c")
    play.evaluate("a")
    play.upload("a", 0.5)
    play.give_back("c")
    play.upload("b", -0.25)  # fills the round: version 1
    play.late("c")
    play.do(lambda: play.cloud.put_model("acme", NAME, play.plan(local={"epochs": 7})))
    play.check_in("a", "b")
    play.upload("a", 1.0)
    play.until_the_round_is_over()  # one update of two: round 1 misses its quorum, and has the plan of before
    play.check_in("b", "c", "a")
    play.evaluate("c")
    play.upload("c", 0.125)
    play.host(DurableModel.pause)
    play.upload("b", 2.0)  # version 2, under the new plan, while paused
    play.upload("b", 2.0)  # and a phone that did not hear the answer
    play.host(lambda model: model.start(fake_initial))
    play.check_in("d", "e")
    play.upload("e", -1.0)
    play.upload("d", 0.75)  # version 3
    play.check_in("a")
    play.upload("a", 0.0625)  # stays in the open round
    play.host(DurableModel.stop)


def manifests(store: ObjectStore) -> list[VersionInfo]:
    return [VersionInfo.model_validate_json(store.get(key).body) for key in store.list(places.versions(MODEL))]


def what_lasts(store: ObjectStore) -> list[tuple[object, ...]]:
    """Return what must be the same with and without faults: every version, what made it, and its bits."""
    return [
        (
            info.version,
            info.round,
            info.weights_sha256,
            info.optimizer_sha256,
            info.plan_sha256,
            tuple(info.updates),
            info.control_sha256,
        )
        for info in manifests(store)
    ]


def check(play: Play, store: ObjectStore, expected: list[tuple[object, ...]]) -> None:
    assert what_lasts(store) == expected
    found = manifests(store)
    assert [info.version for info in found] == list(range(len(found)))
    held = Counter(line.assignment_id for info in found for line in info.updates)
    assert max(held.values()) == 1
    stored = {places.owner_of(key)[0] for key in store.list(places.MODELS) if "/updates/" in key}
    unheld_rounds = {"00000001", "00000004"}  # the one without a quorum, and the one that the stop left open
    for assignment_id in play.counted:
        assert assignment_id in stored
        assert held[assignment_id] == 1 or assignment_id[:8] in unheld_rounds
    fresh = DurableModel(store, MODEL, play.clock)
    assert (fresh.info().state, fresh.info().version) == ("finished", 3)
    closed = [(info.round, info.committed, info.evaluation and info.evaluation.devices) for info in fresh.rounds()]
    assert closed == [(0, 1, 1), (1, None, None), (2, 2, 1), (3, 3, None)]


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as one:
        yield one


@pytest.fixture(scope="module")
def undisturbed(runner) -> tuple[list[tuple[str, str]], list[tuple[object, ...]]]:
    """The session without a fault: its calls of the store, and what it leaves behind."""
    store = FaultyStore(MemoryStore())
    play = Play(store, runner)
    session(play)
    return store.calls, what_lasts(store.inner)


def test_the_session_without_a_fault_is_what_the_tests_below_take_it_for(undisturbed, runner):
    calls, lasting = undisturbed
    assert [row[0] for row in lasting] == [0, 1, 2, 3]
    assert [row[1] for row in lasting] == [None, 0, 2, 3]
    assert [len(row[5]) for row in lasting] == [0, 2, 2, 2]
    assert lasting[1][4] != lasting[2][4] == lasting[3][4]  # the plan that made each
    store = MemoryStore()
    play = Play(store, runner)
    session(play)
    assert play.deaths == 0
    check(play, store, lasting)
    assert sum(verb == "put_new" for verb, _ in calls) > 40


def faults(kind: str, when: str, at: int) -> tuple[FaultyStore, ObjectStore]:
    inner = MemoryStore()
    store = FaultyStore(inner)
    error = {"crash": Crash(), "unavailable": StoreUnavailable("store: gone", 0.0), "full": StoreFull("store: full")}

    def strike(verb: str, key: str) -> None:
        if len(store.calls) == at + 1:
            raise error[kind]

    setattr(store, when, strike)
    return store, inner


def every(calls: list[tuple[str, str]], verbs: tuple[str, ...]) -> Iterator[int]:
    return (at for at, (verb, _) in enumerate(calls) if verb in verbs)


def struck_at_each(
    calls: list[tuple[str, str]],
    fault: tuple[str, str, tuple[str, ...]],
    runner: asyncio.Runner,
    session: Callable[[Play], None],
    check: Callable[[Play, ObjectStore], None],
) -> int:
    """Play a session once for each of its calls, with a fault (kind, when, verbs) there; return how many struck."""
    kind, when, verbs = fault
    struck = 0
    for at in every(calls, verbs):
        store, inner = faults(kind, when, at)
        try:
            play = Play(store, runner)
            session(play)
        except (Crash, StoreUnavailable):  # in the constructor: the process did not even start
            assert at == 0
            continue
        struck += 1
        try:
            check(play, inner)
        except AssertionError as error:
            raise AssertionError(f"{kind} {when} call {at}: {calls[at]}") from error
    return struck


def played_among_deaths(seed: int, runner: asyncio.Runner, session: Callable[[Play], None]) -> tuple[Play, ObjectStore]:
    """Play a session of which every call of the store, those of a restart too, kills with 4 in 100."""
    store, chance, play = FaultyStore(MemoryStore()), random.Random(seed), None

    def strike(verb: str, key: str) -> None:
        if chance.random() < 0.04 and play is not None:
            raise Crash

    store.before = store.after = strike
    play = Play(store, runner, patience=50)
    session(play)
    store.before = store.after = lambda verb, key: None
    return play, store.inner


@pytest.mark.parametrize(
    ("kind", "when", "verbs"),
    [
        ("crash", "before", WRITES),
        ("crash", "after", WRITES),
        ("unavailable", "before", WRITES),
        ("unavailable", "after", WRITES),
        ("full", "before", WRITES),
        ("crash", "before", READS),
        ("unavailable", "before", READS),
    ],
)
def test_a_fault_at_any_call_of_the_store_changes_nothing_that_lasts(undisturbed, runner, kind, when, verbs):
    calls, expected = undisturbed
    assert struck_at_each(calls, (kind, when, verbs), runner, session, lambda *end: check(*end, expected)) > 30


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_crash_at_any_write_changes_no_control(runner, when):
    quiet = FaultyStore(MemoryStore())
    session(Play(quiet, runner, controls=True))
    expected = what_lasts(quiet.inner)
    assert len({row[6] for row in expected}) == 4
    assert all(quiet.inner.get(places.control(MODEL, row[6])).size > 4 * SIZE for row in expected)
    for at in every(quiet.calls, WRITES):
        store, inner = faults("crash", when, at)
        try:
            play = Play(store, runner, controls=True)
        except Crash:
            assert at == 0
            continue
        session(play)
        check(play, inner, expected)


def test_nothing_in_the_store_is_ever_replaced(undisturbed):
    calls, _ = undisturbed
    assert not [key for verb, key in calls if verb == "swap"]


@pytest.mark.parametrize("seed", range(220))
def test_a_process_that_dies_over_and_over_still_gets_there(undisturbed, runner, seed):
    _, expected = undisturbed
    play, inner = played_among_deaths(seed, runner, session)
    assert play.deaths > 5
    check(play, inner, expected)


def test_an_owner_that_comes_after_a_hundred_asks_no_more_of_the_store_than_the_first(runner):
    """Or owners that die while they take a model over make it ever harder for the next one."""
    store = FaultyStore(MemoryStore())
    play = Play(store, runner)
    play.do(lambda: play.cloud.put_model("acme", NAME, plan()))
    play.put_program()
    play.host(lambda model: model.start(fake_initial))
    play.check_in("a", "b")
    play.upload("a", 0.5)

    def dies_before_the_manifest(verb: str, key: str) -> None:
        if verb == "put_new" and key.startswith(places.versions(MODEL)):
            raise Crash

    store.before = dies_before_the_manifest
    body = encode_update(np.zeros(SIZE, dtype=np.float32), 3, 0.5)
    with pytest.raises(Crash):
        runner.run(play.cloud.updates.take_in(play.works["b"], body))
    asked = []
    for _ in range(100):
        store.calls.clear()
        with pytest.raises(Crash):
            DurableModel(store, MODEL, play.clock)
        asked.append(len(store.calls))
    assert set(asked) == {asked[0]}
    store.before = lambda verb, key: None
    assert DurableModel(store, MODEL, play.clock).info().version == 1
