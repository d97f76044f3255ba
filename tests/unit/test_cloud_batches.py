"""Batches: whatever a replica puts into one, the model answers and ends up as if the updates had come one by one."""

from dataclasses import dataclass, field
from itertools import groupby

import numpy as np
import pytest
from cloud_fakes import SIZE, Clock, FaultyStore
from hypothesis import event, given, settings
from hypothesis import strategies as st
from test_cloud_asynchronous import BUFFERED, LATE, plan, trained
from test_cloud_crashes import MODEL, manifests

from flsys_ray.cloud import places
from flsys_ray.cloud.batches import OpenRound, Ready, batch_of, in_order
from flsys_ray.cloud.model import DurableModel
from flsys_ray.cloud.offers import Offer
from flsys_ray.cloud.stored_updates import to_update
from flsys_ray.core.plan import TrainingPlan
from flsys_ray.core.types import Assignment, Counted, Rejected
from flsys_ray.errors import AlreadyExists, OwnershipLost
from flsys_ray.storage.memory import MemoryStore
from flsys_ray.wire.tensors import DecodedUpdate, encode_update

ROUNDS = {"name": "rounds", "cohort": 3, "quorum": 2, "over_selection": 2, "deadline_s": 60}
KRUM = {"name": "krum", "f": 0}
PLANS = {
    "rounds": plan(ROUNDS),
    "late": plan(LATE),
    "buffered": plan(BUFFERED | {"buffer": 3}),
    "fednova": plan(ROUNDS, aggregation="fednova"),
    "krum": plan(ROUNDS | {"quorum": 3}, aggregation=KRUM),
    "clipped median": plan(ROUNDS, aggregation={"name": "clipping", "norm": 0.5, "inner": "coordinate_median"}),
}


@dataclass
class World:
    """A model, and a phone's view of it. `one_by_one` says how its replica hands updates over."""

    how: TrainingPlan
    one_by_one: bool
    store: FaultyStore = field(default_factory=lambda: FaultyStore(MemoryStore()))
    clock: Clock = field(default_factory=Clock)
    works: dict[str, Assignment] = field(default_factory=dict)
    seen: OpenRound | None = None

    def __post_init__(self) -> None:
        self.model = trained(self.store, self.clock, self.how)
        self.plan_sha256 = self.model.info().plan and self.model._head.plan_sha256

    def check_in(self, device: str) -> object:
        outcome = self.model.check_in(device).outcome
        if isinstance(outcome, Offer):
            self.works[device] = outcome.assignment
            return outcome.assignment
        return outcome

    def upload(self, sent: list[tuple[str, int]]) -> list[object]:
        """Upload what devices say, all at once. The work is the device's last one."""
        ready = [self._durable(device, value) for device, value in sent if device in self.works]
        if self.one_by_one:
            return [self.model.submit(each.update) for each in ready if each is not None]
        return self._in_batches([each for each in ready if each is not None])

    def _in_batches(self, ready: list[Ready]) -> list[object]:
        """Hand over in batches of one kind, as they come; the round that was seen may be long over."""
        outcomes: list[object] = []
        for _, group in groupby(ready, key=lambda each: (each.kind, each.fresh)):
            some = [*group]
            answer = self.model.submit_many(batch_of(some, self.how, SIZE, self.seen))
            outcomes += in_order(some, answer.outcomes)
        return outcomes

    def _durable(self, device: str, value: int) -> Ready | None:
        work = self.works[device]
        body = encode_update(np.full(SIZE, value / 8, dtype=np.float32), 1 + value % 5, 0.5, 1 + value % 3)
        key = places.update(MODEL, work.round, work.assignment_id, work.device_id)
        fresh = True
        try:
            if self.clock() > work.deadline:
                return None
            self.store.put_new(key, body)
        except AlreadyExists:
            body, fresh = self.store.get(key).body, False
        if not body:
            return None
        value = float(np.frombuffer(body[-4:], dtype="<f4")[0])
        decoded = DecodedUpdate(np.full(SIZE, value, np.float32), 1 + int(value * 8) % 5, 0.5, 1 + int(value * 8) % 3)
        return Ready(to_update(work, decoded, body), self.plan_sha256, fresh)

    def give_back(self, device: str) -> object:
        return self.model.give_back(self.works[device]) if device in self.works else None

    def lasting(self) -> object:
        """Return what must be the same: the versions' bits, what is in each, the open round's cohort."""
        self.model.tick()
        info = self.model.info()
        lines = [
            (m.version, m.weights_sha256, m.optimizer_sha256, m.round, tuple(m.updates)) for m in manifests(self.store)
        ]
        return lines, info.open_round and info.open_round.counters, self.model.rounds()


DEVICE = st.sampled_from([f"d-{n}" for n in range(6)])
STEP = st.one_of(
    st.tuples(st.just("check_in"), DEVICE),
    st.tuples(st.just("upload"), st.lists(st.tuples(DEVICE, st.integers(-8, 8)), min_size=1, max_size=8)),
    st.tuples(st.just("give_back"), DEVICE),
    st.tuples(st.just("wait"), st.sampled_from([1.0, 61.0])),
    st.tuples(st.just("see"), st.booleans()),
)


@pytest.mark.parametrize("name", PLANS)
@given(steps=st.lists(STEP, max_size=25))
@settings(max_examples=60, deadline=None)
def test_a_batch_is_what_its_updates_are_one_by_one(name, steps):
    worlds = [World(PLANS[name], one_by_one=True), World(PLANS[name], one_by_one=False)]
    for device in range(6):
        assert worlds[0].check_in(f"d-{device}") == worlds[1].check_in(f"d-{device}")
    for verb, what in steps:
        if verb == "wait":
            for world in worlds:
                world.clock.advance(what)
        elif verb == "see":
            _, now_open = [world.model.info().open_round for world in worlds]
            worlds[1].seen = OpenRound(now_open.round, now_open.version) if what else None
        else:
            said = [getattr(world, verb)(what) for world in worlds]
            assert said[0] == said[1], (verb, what)
    assert worlds[0].lasting() == worlds[1].lasting()
    event(f"versions {worlds[0].model.info().version}")


def full_round(world: World, count: int) -> list[Ready]:
    for n in range(count):
        world.check_in(f"d-{n}")
    return [ready for n in range(count) if (ready := world._durable(f"d-{n}", n + 1)) is not None]


def test_what_was_folded_elsewhere_is_merged_without_a_look_at_the_updates():
    world = World(plan(ROUNDS | {"cohort": 6}), one_by_one=False)
    ready = full_round(world, 6)
    world.store.calls.clear()
    answer = world.model.submit_many(batch_of(ready[:5], world.how, SIZE, None))
    assert answer.outcomes == (Counted(duplicate=False),) * 5
    assert answer.open == OpenRound(0, 0)
    assert [call for call in world.store.calls if "/updates/" in call[1]] == []
    assert len(world.store.calls) == 1, "one look at the fence for five updates"
    last = world.model.submit_many(batch_of(ready[5:], world.how, SIZE, answer.open))
    assert last.open == OpenRound(1, 1)


def test_a_round_that_is_full_in_the_middle_of_a_batch_is_closed_there():
    world = World(plan(ROUNDS), one_by_one=False)
    ready = full_round(world, 5)
    answer = world.model.submit_many(batch_of(ready, world.how, SIZE, None))
    assert [type(outcome) for outcome in answer.outcomes] == [Counted] * 3 + [Rejected] * 2
    assert len(manifests(world.store)[1].updates) == 3


def test_a_weight_that_the_replica_could_not_know_is_given_by_the_owner():
    world = World(plan(LATE), one_by_one=False)
    ready = full_round(world, 4)
    world.model.submit_many(batch_of(ready[:2], world.how, SIZE, None))
    late = world.model.submit_many(batch_of(ready[2:], world.how, SIZE, OpenRound(0, 0)))
    assert late.outcomes == (Counted(duplicate=False),) * 2
    assert {line.staleness for line in manifests(world.store)[2].updates} == {1}


def test_no_update_of_a_batch_is_said_to_be_counted_by_an_owner_that_lost():
    world = World(plan(ROUNDS), one_by_one=False)
    ready = full_round(world, 2)
    DurableModel(world.store, MODEL, world.clock)
    with pytest.raises(OwnershipLost):
        world.model.submit_many(batch_of(ready, world.how, SIZE, None))


def test_many_check_ins_are_what_they_are_one_by_one():
    one, many = (World(plan(ROUNDS), one_by_one=True) for _ in range(2))
    devices = [f"d-{n % 8}" for n in range(12)]
    assert [one.model.check_in(device).outcome for device in devices] == [
        answer.outcome for answer in many.model.check_in_many(devices)
    ]
