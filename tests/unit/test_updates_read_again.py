"""Reading updates again: from memory, from the store, and what a coordinator holds when nobody reads for it."""

import tracemalloc

import numpy as np
import pytest

from flsys_ray.cloud import places
from flsys_ray.cloud.stored_updates import StoredUpdates
from flsys_ray.core.aggregation.base import RULES
from flsys_ray.core.coordinator import Coordinator, assignment_id
from flsys_ray.core.exact import FixedPoint
from flsys_ray.core.layout import Layout
from flsys_ray.core.plan import parse_plan
from flsys_ray.core.rng import generator
from flsys_ray.core.types import Assignment, Contribution, Counted, Update, Version
from flsys_ray.core.updates import BLOCK_BYTES, CHUNK, HeldUpdates, blocks
from flsys_ray.storage.local import LocalStore
from flsys_ray.storage.memory import MemoryStore
from flsys_ray.wire.tensors import encode_update

MODEL = "steps"


def key_of(number, round_=0):
    return assignment_id(MODEL, round_, f"phone-{number}")


def stored(store, rows, round_=0):
    for number, row in enumerate(rows):
        device = f"phone-{number}"
        body = encode_update(row, number + 1, 10.0**-number, 10**number)  # headers of several lengths
        store.put_new(places.update(MODEL, round_, assignment_id(MODEL, round_, device), device), body)
    return [key_of(number, round_) for number in range(len(rows))]


class CountingStore(MemoryStore):
    def __init__(self):
        super().__init__()
        self.gets, self.lists = [], 0

    def get(self, key, start=0, end=None):
        self.gets.append((start, end))
        return super().get(key, start, end)

    def list(self, prefix, after=""):
        self.lists += 1
        return super().list(prefix, after)


def test_stored_and_held_updates_give_the_same_columns():
    rows = generator(0, "rows").normal(0, 1, (5, 300)).astype(np.float32)
    store, held = CountingStore(), HeldUpdates()
    keys = stored(store, rows)
    for key, row in zip(keys, rows, strict=True):
        held.hold(key, row)
    store.put_new(places.update(MODEL, 0, key_of(9), "phone-9"), b"")  # given back: nobody asks for it
    updates = StoredUpdates(store, MODEL)
    for start, stop in [(0, 300), (0, 1), (299, 300), (17, 170)]:
        for wanted in (keys, keys[::-1], keys[2:3]):
            expected = rows[[keys.index(key) for key in wanted], start:stop]
            assert updates.block(wanted, start, stop).tobytes() == expected.tobytes()
            assert held.block(wanted, start, stop).tobytes() == expected.tobytes()
    assert store.lists == 1
    assert store.gets.count((0, 8)) == len(rows)
    assert all(end - start <= 1200 for start, end in store.gets)


def test_updates_of_several_rounds_and_of_the_next_cohort_are_found():
    store = MemoryStore()
    first, second = np.full((2, 4), 1, np.float32), np.full((2, 4), 2, np.float32)
    keys = stored(store, first, 3), stored(store, second, 4)
    updates = StoredUpdates(store, MODEL)
    assert updates.block([*keys[0], *keys[1]], 0, 1).ravel().tolist() == [1, 1, 2, 2]
    third = stored(store, np.full((1, 4), 3, np.float32), 5)
    assert updates.block(third, 3, 4).tolist() == [[3]]
    with pytest.raises(KeyError):
        updates.block([key_of(0, 6)], 0, 1)


def test_blocks_cover_everything_once_within_the_budget():
    held = HeldUpdates()
    for number in range(600):
        held.hold(str(number), np.arange(20_000, dtype=np.float32))
    slices = []
    for where, rows in blocks(held, [str(number) for number in range(600)], 20_000):
        assert rows.nbytes <= BLOCK_BYTES
        assert where.start % CHUNK == 0
        assert rows[0].tolist() == list(range(where.start, where.stop))
        slices.append(where)
    assert [s.start for s in slices] == [0, *(s.stop for s in slices[:-1])]
    assert slices[-1].stop == 20_000


def open_round(rule, version=None):
    plan = parse_plan({"pacing": {"name": "rounds", "cohort": 3, "quorum": 3}, "aggregation": rule})
    start = version or Version(0, np.zeros(2, np.float32), plan.server_optimizer.init(2))
    layout = Layout.of([("w", (2,), True)])
    return Coordinator(MODEL, layout, plan, start, round_=0, opened_at=0.0)


def send(coordinator, number, values, now=1.0):
    work = coordinator.check_in(f"phone-{number}", now)
    assert isinstance(work, Assignment)
    delta = np.array(values, dtype=np.float32)
    assert coordinator.submit(Update(work, delta, 1, 0.5), now) == Counted(duplicate=False)
    delta[:] = 99.0  # the caller's array is the caller's again


def test_a_snapshot_goes_on_alone():
    coordinator = open_round("coordinate_median")
    send(coordinator, 0, [1.0, 5.0])
    send(coordinator, 1, [2.0, 7.0])
    snapshot = coordinator.snapshot()
    other = Coordinator.restore(MODEL, coordinator.layout, coordinator.plan, snapshot)
    for one, last in ((coordinator, [3.0, 6.0]), (other, [0.0, 9.0])):
        send(one, 2, last)
        one.tick(2.0)
    assert coordinator.version.parameters.tolist() == [2.0, 6.0]
    assert other.version.parameters.tolist() == [1.0, 7.0]
    again = Coordinator.restore(MODEL, coordinator.layout, coordinator.plan, snapshot)
    send(again, 2, [3.0, 6.0])
    assert again.tick(2.0).commit.version.parameters.tolist() == [2.0, 6.0]


def test_a_rule_that_reads_nothing_has_nothing_held_for_it():
    for rule, kept in (("weighted_mean", 0), ("clipping", 0), ("krum", 2)):
        coordinator = open_round(rule if rule != "krum" else {"name": "krum", "f": 0})
        send(coordinator, 0, [1.0, 5.0])
        send(coordinator, 1, [2.0, 7.0])
        assert len(coordinator.snapshot().held) == kept
        send(coordinator, 2, [2.0, 7.0])
        coordinator.tick(2.0)
        assert coordinator.snapshot().held == ()


READING = {name: kind() for name, kind in RULES.classes.items() if kind().reads_updates}


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """A store with 40 updates of 200,000 parameters: 32 MB."""
    store = LocalStore(tmp_path_factory.mktemp("store"))
    rng = generator(0, "many")
    members = []
    for number in range(40):
        row = rng.normal(0, 1, 200_000).astype(np.float32)
        (key,) = stored_as(store, number, row)
        members.append(Contribution(key, row[:0], 1))
    return store, members


def stored_as(store, number, row):
    device = f"phone-{number}"
    store.put_new(places.update(MODEL, 0, key_of(number), device), encode_update(row, 1, 0.5))
    return [key_of(number)]


def peak_of(use):
    """Return the most bytes that were held at once meanwhile."""
    tracemalloc.start()
    try:
        use()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("rule", READING.values(), ids=READING)
def test_memory_stays_bounded_by_the_block(rule, many, monkeypatch):
    """A few blocks and a few vectors: less than the updates together by far."""
    budget = 2**19
    monkeypatch.setattr("flsys_ray.core.updates.BLOCK_BYTES", budget)
    store, members = many
    if rule.name == "geometric_median":
        rule = rule.model_copy(update={"iterations": 2})
    state = rule.init(FixedPoint(1000, 1000, 1024.0), 200_000)
    for contribution in members:
        state = rule.add(state, contribution)
    # Python's table of interned names (parts of paths) may grow in one of the runs, by more than all that is measured.
    peak = min(peak_of(lambda: rule.finish(state, StoredUpdates(store, MODEL))) for _ in range(2))
    vector, everything = 8 * 200_000, 4 * 200_000 * len(members)
    assert peak <= 10 * budget + 2 * vector < everything / 3
