import sqlite3
import stat

import numpy as np
import pytest
from device_fakes import CLASSES, SHAPE, START
from hypothesis import given, settings
from hypothesis import strategies as st

from flsys_ray.device.database import Database
from flsys_ray.device.examples import BLOCK_S, ROW_OVERHEAD_BYTES, Example, ExampleStore
from flsys_ray.errors import Conflict, InvalidInput

ROW = 300 * 4 + ROW_OVERHEAD_BYTES


@pytest.fixture
def database(tmp_path):
    database = Database(tmp_path / "phone.db")
    yield database
    database.close()


def example(number: float, **changes) -> Example:
    given = {"x": np.full(SHAPE, number, np.float32), "y": 0, "start_s": START + 2.5 * number, "duration_s": 5.0}
    return Example(**{**given, **changes})


def test_the_file_is_the_owners_only(tmp_path, database):
    database.set_settings({"a": 1})
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path.name
    assert database.row("PRAGMA journal_mode") == ("wal",)
    assert database.row("PRAGMA synchronous") == (2,)


def test_a_transaction_is_all_or_nothing(database):
    def broken() -> None:
        with database.transaction():
            database.set_settings({"a": 1})
            with database.transaction():
                database.set_settings({"b": 1})
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        broken()
    assert database.rows("SELECT * FROM settings") == []
    database.set_settings({"a": 1})
    assert database.setting("a") == 1


def test_a_database_of_a_newer_program_is_left_alone(tmp_path):
    connection = sqlite3.connect(tmp_path / "phone.db")
    connection.execute("PRAGMA user_version=99")
    connection.close()
    with pytest.raises(Conflict, match="format 99"):
        Database(tmp_path / "phone.db")


def test_the_oldest_examples_go_first(database):
    store = ExampleStore(database, cap_bytes=10 * ROW + 5)
    for number in range(25):
        store.add("a" if number % 2 else "b", [example(number, start_s=None)], now=number)
    assert store.total_bytes() == 10 * ROW
    assert [row[0] for row in database.rows("SELECT created_at FROM examples ORDER BY id")] == list(range(15, 25))


def test_the_file_stays_near_the_cap(tmp_path, database):
    store = ExampleStore(database, cap_bytes=100 * ROW)
    for number in range(0, 2000, 100):
        store.add("a", [example(number + i) for i in range(100)], now=number)
    database.shrink()
    assert (tmp_path / "phone.db").stat().st_size < 2 * 100 * ROW + 100_000


def test_an_example_larger_than_the_cap(database):
    with pytest.raises(InvalidInput, match="exceed the database's cap"):
        ExampleStore(database, cap_bytes=1000).add("a", [example(1)], now=0)


@given(starts=st.lists(st.floats(0, 2000), min_size=1, max_size=80), duration=st.sampled_from([0.5, 5.0, 40.0]))
@settings(max_examples=25, deadline=None)
def test_training_and_held_out_examples_share_no_sample(tmp_path_factory, starts, duration):
    database = Database(tmp_path_factory.mktemp("held") / "phone.db")
    store = ExampleStore(database, cap_bytes=10**9)
    store.add("a", [example(0, start_s=start, duration_s=duration) for start in starts], now=0)
    parts = [
        [float(row[0]) for row in database.rows("SELECT start_s FROM examples WHERE held_out = ?", (part,))]
        for part in (0, 1)
    ]
    database.close()
    for training in parts[0]:
        for held_out in parts[1]:
            assert abs(training - held_out) >= duration - 1e-9


def test_a_fifth_is_held_out_and_stays_so(database):
    store = ExampleStore(database, cap_bytes=10**9)
    store.add("a", [example(number) for number in range(1200)], now=0)
    counts = store.counts("a")
    assert counts.training + counts.held_out > 0.95 * 1200
    assert 0.17 < counts.held_out / (counts.training + counts.held_out) < 0.23
    store.add("a", [example(number) for number in range(1200)], now=1)
    again = store.counts("a")
    assert (again.training, again.held_out) == (2 * counts.training, 2 * counts.held_out)


def test_a_window_that_ends_on_a_border_belongs_to_its_block(database):
    store = ExampleStore(database, cap_bytes=10**9)
    start = 4 * BLOCK_S
    store.add("a", [example(0, start_s=block * BLOCK_S, duration_s=1) for block in range(6)], now=0)
    store.add("a", [example(0, start_s=start + BLOCK_S - 5), example(0, start_s=start - 2)], now=0)
    held = [row[0] for row in database.rows("SELECT held_out FROM examples ORDER BY id")]
    assert held == [0, 0, 0, 0, 1, 0, 1, None]


def test_the_same_text_twice_is_on_one_side(database):
    store = ExampleStore(database, cap_bytes=10**9)
    texts = [Example(np.full(8, number, np.int32), y=1) for number in range(200)]
    store.add("a", texts, now=0)
    store.add("a", texts, now=1)
    counts = store.counts("a")
    assert counts.training + counts.held_out == 400
    assert 40 < counts.held_out < 120
    sides = database.rows("SELECT count(DISTINCT held_out) FROM examples GROUP BY x")
    assert {row[0] for row in sides} == {1}


def test_a_batch_has_what_the_program_can_take(database):
    store = ExampleStore(database, cap_bytes=10**9)
    items = [example(1, y=2), example(2, y=None, label="walking"), example(3, y=None, label="flying"),
             example(4, y=7), example(5, y=None), Example(np.zeros(4, np.float32), 1, start_s=START)]  # fmt: skip
    store.add("a", items, now=0)
    batch = store.batch("a", "training", CLASSES, SHAPE)
    assert (batch.x[:, 0, 0].tolist(), batch.y.tolist()) == ([1, 2], [2, 1])
    assert (batch.x.dtype, batch.y.dtype) == (np.float32, np.int32)
    assert store.batch("b", "training", CLASSES, SHAPE) is None
    assert store.counts("a").unlabelled == 1
    store.erase("a")
    assert store.total_bytes() == 0
