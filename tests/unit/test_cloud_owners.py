"""Two that believe to own one model: acknowledged work is never lost, one writes, the other stops.

Hypothesis draws what the two do, and at which call of the store of one the other cuts in: between reading the log and
writing to it, between storing an update and counting it, between counting it and looking at the fence.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count, pairwise
from typing import Any

import numpy as np
import pytest
from cloud_fakes import SIZE, Clock, FaultyStore, fake_initial, fake_program
from hypothesis import event, given, settings
from hypothesis import strategies as st

from flsys_ray.cloud import places
from flsys_ray.cloud.creation import create_model
from flsys_ray.cloud.hosts import ModelHost
from flsys_ray.cloud.journal import Journal
from flsys_ray.cloud.model import DurableModel
from flsys_ray.cloud.offers import Offer
from flsys_ray.cloud.versions import load_parameters, load_plan, sha256
from flsys_ray.core.coordinator import Coordinator
from flsys_ray.core.plan import TrainingPlan, parse_plan
from flsys_ray.core.types import Assignment, Counted, GivenBack, OptimizerState, Rejected, Update, Version
from flsys_ray.errors import AlreadyExists, OwnershipLost, StoreUnavailable
from flsys_ray.programs.manifest import read_manifest
from flsys_ray.storage.base import ObjectStore
from flsys_ray.storage.memory import MemoryStore
from flsys_ray.wire.developer_schemas import VersionInfo
from flsys_ray.wire.schemas import EvaluationRequest
from flsys_ray.wire.tensors import decode_update, encode_update

MODEL = "acme/har"
LAYOUT = read_manifest(fake_program()).to_layout()
DEVICES = tuple("abcde")


def plan(epochs: int = 1) -> TrainingPlan:
    pacing = {"name": "rounds", "cohort": 2, "quorum": 1, "over_selection": 3, "deadline_s": 60}
    return parse_plan({"pacing": pacing, "selection": "first_come", "local": {"epochs": epochs}})


def trained_model(store: ObjectStore, clock: Clock) -> DurableModel:
    """Return the owner of a model that trains."""
    create_model(store, MODEL, "acme", plan(), clock())
    model = DurableModel(store, MODEL, clock)
    program = fake_program()
    store.put_new(places.program(MODEL, sha256(program)), program)
    model.put_program(sha256(program))
    model.start(fake_initial)
    return model


def body_of(device: str) -> bytes:
    return encode_update(np.full(SIZE, (DEVICES.index(device) + 1) / 8, dtype=np.float32), 3, 0.5)


def upload(store: ObjectStore, model: DurableModel, work: Assignment, device: str) -> Counted | Rejected:
    """Make an update durable and have it counted, as `cloud.updates` does."""
    body = body_of(device)
    key = places.update(MODEL, work.round, work.assignment_id, work.device_id)
    try:
        store.put_new(key, body)
    except AlreadyExists:
        if not store.get(key).body:
            return Rejected("given-back", 1.0)
    decoded = decode_update(body, LAYOUT, 1024.0)
    return model.submit(Update(work, decoded.delta, decoded.num_examples, decoded.loss, sha256(body)))


@dataclass
class Rivals:
    """Two owners on one store."""

    store: MemoryStore = field(default_factory=MemoryStore)
    clock: Clock = field(default_factory=Clock)
    works: dict[str, Assignment] = field(default_factory=dict)
    counted: set[str] = field(default_factory=set)
    given_back: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        trained_model(self.store, self.clock)
        self.views = [FaultyStore(self.store), FaultyStore(self.store)]
        self.models = [DurableModel(view, MODEL, self.clock) for view in self.views]
        self.lost = [False, False]

    def act(self, who: int, verb: str, device: str) -> None:
        """Let one owner act; it may learn that it lost."""
        model = self.models[who]
        if verb == "wait":
            self.clock.advance(61)
        elif verb == "activate":
            self.models[who] = DurableModel(self.views[who], MODEL, self.clock)
            self.lost[who] = False
        elif self.lost[who]:
            assert_stays_broken(model)
        else:
            try:
                self._call(model, self.views[who], verb, device)
            except OwnershipLost:
                event("lost")
                assert model.broken
                self.lost[who] = True

    def _call(self, model: DurableModel, store: ObjectStore, verb: str, device: str) -> None:
        if verb in ("check_in", "work"):
            answer = model.check_in(f"d-{device}").outcome
            if isinstance(answer, Offer):
                self.works[device] = answer.assignment
        work = self.works.get(device)
        if verb == "tick":
            model.tick()
        elif verb == "plan":
            model.put_plan(plan(epochs=DEVICES.index(device) + 1))
        elif work is not None and verb in ("upload", "work"):
            if isinstance(upload(store, model, work, device), Counted):
                self.counted.add(work.assignment_id)
        elif work is not None and verb == "give_back" and isinstance(model.give_back(work), GivenBack):
            self.given_back.add(work.assignment_id)

    def act_cut(self, who: int, verb: str, device: str, at: int, cut: tuple[str, str]) -> None:
        """Let the other owner cut in just before the `at`-th call of the store that this one makes."""
        calls = count()

        def before(_verb: str, _key: str) -> None:
            if next(calls) == at:
                self.views[who].before = lambda verb, key: None
                self.act(1 - who, *cut)

        self.views[who].before = before
        self.act(who, verb, device)
        self.views[who].before = lambda verb, key: None


def assert_stays_broken(model: DurableModel) -> None:
    work = Assignment("00000000-" + "0" * 20, MODEL, 0, 0, "d-a", 0.0)
    calls: list[Callable[[], Any]] = [
        model.tick,
        lambda: model.check_in("d-a"),
        lambda: model.submit(Update(work, np.zeros(SIZE, np.float32), 1, 0.0)),
        lambda: model.give_back(work),
        lambda: model.evaluate(work, EvaluationRequest(loss_sum=1, correct=1, count=1)),
        lambda: model.put_plan(plan(9)),
        lambda: model.put_program("0" * 64),
        lambda: model.start(fake_initial),
        model.pause,
        model.stop,
        model.info,
    ]
    for call in calls:
        with pytest.raises(OwnershipLost):
            call()


def verify(rivals: Rivals) -> None:
    """Close the open round, and look at all that was ever committed."""
    last = DurableModel(rivals.store, MODEL, rivals.clock)
    rivals.clock.advance(1000)
    last.tick()
    store = rivals.store
    infos = [VersionInfo.model_validate_json(store.get(key).body) for key in store.list(places.versions(MODEL))]
    assert [info.version for info in infos] == list(range(last.info().version + 1))
    held = Counter(line.assignment_id for info in infos for line in info.updates)
    assert set(held.values()) <= {1}
    assert rivals.counted <= set(held)
    assert not rivals.given_back & set(held)
    entries = [*Journal(store, MODEL).entries()]
    assert [entry.seq for entry in entries] == list(range(len(entries)))
    for before, info in pairwise(infos):
        assert load_parameters(store, MODEL, info.weights_sha256, SIZE).tobytes() == computed(store, before, info)
    event(f"versions {min(len(infos), 6)}")


def computed(store: ObjectStore, before: VersionInfo, info: VersionInfo) -> bytes:
    """Return the parameters that a bare coordinator makes of the updates that a manifest lists."""
    base = Version(before.version, load_parameters(store, MODEL, before.weights_sha256, SIZE), OptimizerState())
    made_by = load_plan(store, MODEL, info.plan_sha256)
    start = Version(base.number, base.parameters, made_by.server_optimizer.init(SIZE))
    assert info.round is not None
    coordinator = Coordinator(MODEL, LAYOUT, made_by, start, round_=info.round, opened_at=0.0)
    for line in info.updates:
        body = store.get(places.update(MODEL, info.round, line.assignment_id, line.device_id)).body
        decoded = decode_update(body, LAYOUT, 1024.0)
        work = Assignment(line.assignment_id, MODEL, info.round, base.number, line.device_id, 1.0)
        assert coordinator.submit(Update(work, decoded.delta, line.num_examples, 0.5), 0.0) == Counted(duplicate=False)
    summary = coordinator.tick(1000.0)
    assert summary is not None
    assert summary.commit is not None
    return summary.commit.version.parameters.tobytes()


VERBS = st.sampled_from(
    ["work"] * 8
    + ["check_in", "check_in", "upload", "upload", "give_back", "tick", "wait", "activate", "activate", "plan"]
)
DEVICE = st.sampled_from(DEVICES)
STEP = st.tuples(st.integers(0, 1), VERBS, DEVICE, st.none() | st.tuples(st.integers(0, 8), st.tuples(VERBS, DEVICE)))


@given(st.lists(STEP, max_size=30))
@settings(max_examples=250)
def test_whatever_two_owners_do_what_was_acknowledged_is_in_one_version(steps):
    rivals = Rivals()
    for who, verb, device, cut in steps:
        if cut is None:
            rivals.act(who, verb, device)
        else:
            rivals.act_cut(who, verb, device, *cut)
    verify(rivals)


# By name -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def offer(model: DurableModel, device: str) -> Assignment:
    outcome = model.check_in(f"d-{device}").outcome
    assert isinstance(outcome, Offer)
    return outcome.assignment


def test_the_first_owner_learns_at_its_next_acknowledgement_that_it_lost(store, clock):
    old = trained_model(store, clock)
    work = offer(old, "a")
    new = DurableModel(store, MODEL, clock)
    with pytest.raises(OwnershipLost):
        upload(store, old, work, "a")
    assert_stays_broken(old)
    assert upload(store, new, work, "a") == Counted(duplicate=False)


def test_a_host_that_was_ousted_does_not_take_the_model_back_by_its_clock(store, clock):
    """Several that did would each begin the round's time anew, and none would ever end it."""
    trained_model(store, clock)
    hosts = [ModelHost(store, MODEL, clock) for _ in range(3)]
    hosts[0].call(lambda model: upload(store, model, offer(model, "a"), "a"))
    for host, device in zip(hosts[1:], "bc", strict=True):
        clock.now += 10.0
        host.call(lambda model, device=device: offer(model, device))
    entries = len(list(store.list(places.log(MODEL))))
    clock.now += 52.0  # the rounds of the first two are due, that of the last one is not
    for host in hosts[:2]:
        with pytest.raises(OwnershipLost):
            host.tick(DurableModel.tick)
    assert [host.tick(lambda model: model.info()) for host in hosts[:2]] == [None, None]
    clock.now += 10.0
    assert hosts[2].tick(lambda model: model.info().version) == 1
    assert len(list(store.list(places.log(MODEL)))) == entries + 1
    assert hosts[0].call(lambda model: model.info().version) == 1
    assert hosts[0].tick(lambda model: model.info().version) == 1


def test_an_update_that_the_loser_stored_but_did_not_acknowledge_counts_when_it_is_repeated(store, clock):
    old = trained_model(store, clock)
    work = offer(old, "a")
    key = places.update(MODEL, work.round, work.assignment_id, work.device_id)
    new = DurableModel(store, MODEL, clock)
    store.put_new(key, body_of("a"))  # after the new owner listed
    with pytest.raises(OwnershipLost):
        upload(store, old, work, "a")
    assert new.info().open_round.counters.counted == 0
    assert upload(store, new, work, "a") == Counted(duplicate=False)
    assert upload(store, new, work, "a") == Counted(duplicate=True)


def test_of_two_that_commit_the_same_round_one_wins(store, clock):
    old = trained_model(store, clock)
    upload(store, old, offer(old, "a"), "a")
    new = DurableModel(store, MODEL, clock)
    clock.advance(61)
    assert [info.committed for info in new.tick()] == [1]
    with pytest.raises(OwnershipLost):
        old.tick()
    assert [info.committed for info in DurableModel(store, MODEL, clock).rounds()] == [1]


CHANGES = {
    "start": lambda model: model.start(fake_initial),
    "pause": DurableModel.pause,
    "stop": DurableModel.stop,
    "another plan": lambda model: model.put_plan(plan(5)),
    "the same plan": lambda model: model.put_plan(plan()),
    "the same program": lambda model: model.put_program(sha256(fake_program())),
}


@pytest.mark.parametrize("change", CHANGES)
def test_the_loser_cannot_say_that_a_developers_call_is_done(store, clock, change):
    """Not even when there seems to be nothing to do: the new owner may have changed it."""
    old = trained_model(store, clock)
    new = DurableModel(store, MODEL, clock)
    with pytest.raises(OwnershipLost):
        CHANGES[change](old)
    assert (new.info().state, new.info().plan) == ("training", plan())
    assert_stays_broken(old)


def test_an_evaluation_that_the_loser_stored_is_in_the_sums_when_it_is_repeated(store, clock):
    old = trained_model(store, clock)
    work = offer(old, "a")
    new = DurableModel(store, MODEL, clock)
    metrics = EvaluationRequest(loss_sum=2.0, correct=1, count=4)
    with pytest.raises(OwnershipLost):
        old.evaluate(work, metrics)
    assert new.evaluate(work, metrics) == Counted(duplicate=True)
    upload(store, new, work, "a")
    clock.advance(61)
    new.tick()
    assert new.info().last_metrics.devices == 1


def test_what_was_given_back_stays_given_back_after_a_restart(store, clock):
    old = trained_model(store, clock)
    work = offer(old, "a")
    assert old.give_back(work) == GivenBack(duplicate=False)
    new = DurableModel(store, MODEL, clock)
    assert new.info().open_round.counters.given_back == 1
    assert new.give_back(work) == GivenBack(duplicate=True)
    assert upload(store, new, work, "a").reason == "given-back"
    outcome = new.check_in("d-a").outcome
    assert isinstance(outcome, Rejected)
    assert outcome.reason == "already-contributed"


def test_a_store_that_failed_half_way_breaks_the_owner_for_good(clock):
    store = FaultyStore(MemoryStore())
    model = trained_model(store, clock)

    def gone(verb: str, key: str) -> None:
        raise StoreUnavailable("store: gone", 1.0)

    store.before = gone
    with pytest.raises(StoreUnavailable):
        model.put_plan(plan(3))
    store.before = lambda verb, key: None
    assert model.broken
    assert_stays_broken(model)
    assert DurableModel(store, MODEL, clock).info().state == "training"


def test_a_model_that_everybody_takes_over_is_given_up_with_a_retry(clock):
    """Somebody always gets in between reading the log and appending to it."""
    inner = MemoryStore()
    trained_model(inner, clock)
    store = FaultyStore(inner)

    def cut_in(verb: str, key: str) -> None:
        if verb == "put_new":
            DurableModel(inner, MODEL, clock)

    store.before = cut_in
    with pytest.raises(OwnershipLost) as caught:
        DurableModel(store, MODEL, clock)
    assert caught.value.retry_after_s > 0


def test_a_manifest_of_another_history_is_never_taken_for_this_ones(clock):
    """A copy that was restored over a store whose model had gone on: the number is taken, by other weights."""

    def train(store: MemoryStore, device: str) -> None:
        model = DurableModel(store, MODEL, clock)
        upload(store, model, offer(model, device), device)
        clock.advance(61)
        model.tick()

    store, other = MemoryStore(), MemoryStore()
    for each, device in ((store, "a"), (other, "b")):
        trained_model(each, clock)
        train(each, device)
    mixed = MemoryStore()
    for key in store.list(""):
        source = other if key == places.version(MODEL, 1) else store
        mixed.put_new(key, source.get(key).body)
    with pytest.raises(StoreUnavailable, match="version 1 in the store is not the one that its log names"):
        DurableModel(mixed, MODEL, clock)
    assert DurableModel(store, MODEL, clock).info().version == 1


def test_late_updates_of_old_rounds_make_an_owner_read_its_log_once():
    """A phone that was away for twenty rounds, and repeats: an entry of the log never changes."""
    view, clock = FaultyStore(MemoryStore()), Clock()
    model = trained_model(view, clock)
    lost = [model.check_in(f"d-{device}").outcome.assignment for device in "ab"]
    for number in range(20):
        clock.advance(61)
        for device in DEVICES[:2]:
            outcome = model.check_in(f"d-{device}{number}").outcome
            assert isinstance(outcome, Offer)
            upload(view, model, outcome.assignment, device)
    again = DurableModel(view, MODEL, clock)
    reads = []
    for work in (*lost, *lost):
        view.calls.clear()
        assert isinstance(upload(view, again, work, "a"), Rejected)
        reads.append(sum(verb == "get" and "/log/" in key for verb, key in view.calls))
    assert reads[0] >= 20
    assert set(reads[1:]) == {1}, "the fence alone"
