"""Traces and the agenda, against what brute force finds."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flsys_ray.errors import DataInvalid
from flsys_ray.simulation.agenda import SLICE, Agenda
from flsys_ray.simulation.traces import DAY_S, Traces, always_there, read_traces, synthetic_traces, write_traces

HOUR = 3600.0


def one_device(*windows, battery=1.0, period_s=DAY_S):
    ones, count = np.ones(1, np.float32), np.array([0, len(windows)])
    starts, ends = (np.array([window[i] for window in windows], np.float32) for i in (0, 1))
    battery_fraction = ones * np.float32(battery)
    return Traces(ones, ones, ones, 0 * ones, 0 * ones, 0 * ones, battery_fraction, count, starts, ends, period_s)


@pytest.mark.parametrize(
    ("now", "expected"),
    [
        (0.0, (0.0, 5 * HOUR)),  # the window of the night before reaches into this day
        (4 * HOUR, (4 * HOUR, 5 * HOUR)),
        (5 * HOUR, (12 * HOUR, 13 * HOUR)),
        (12.5 * HOUR, (12.5 * HOUR, 13 * HOUR)),
        (13 * HOUR, (23 * HOUR, 29 * HOUR)),
        (29 * HOUR, (36 * HOUR, 37 * HOUR)),
    ],
)
def test_the_next_stretch_of_a_device(now, expected):
    traces = one_device((12 * HOUR, 13 * HOUR), (23 * HOUR, 29 * HOUR))
    assert traces.eligible(0, now, 0.3) == expected


def test_windows_that_overlap_or_touch_are_one_stretch():
    hours = ((12, 13), (11, 12.7), (13, 14), (15, 16))
    traces = one_device(*((begin * HOUR, end * HOUR) for begin, end in hours))
    assert traces.eligible(0, 12.5 * HOUR, 0.3) == (12.5 * HOUR, 14 * HOUR)
    assert traces.eligible(0, 11.5 * HOUR, 0.3) == (11.5 * HOUR, 14 * HOUR)
    assert traces.eligible(0, 14.5 * HOUR, 0.3) == (15 * HOUR, 16 * HOUR)


def test_a_device_that_is_always_there_is_there_over_midnight():
    begin, end = always_there(1).eligible(0, DAY_S - 1, 0.3)
    assert (begin, end >= 2 * DAY_S - 1) == (DAY_S - 1, True)


def test_a_device_waits_until_its_battery_is_charged():
    traces = one_device((12 * HOUR, 14 * HOUR), battery=0.1)
    begin, end = traces.eligible(0, 0.0, 0.6)  # half of the capacity an hour: an hour for 0.5
    assert begin == pytest.approx(13 * HOUR, abs=0.01)
    assert end == 14 * HOUR
    assert traces.eligible(0, 0.0, 1.2) is None  # the window is too short


def test_a_device_without_windows_never_comes():
    traces = one_device()
    assert traces.eligible(0, 5.0, 0.3) is None
    assert traces.first_visits(0.3, np.zeros(1)) == [np.inf]


def test_first_visits_are_the_first_stretches():
    traces = synthetic_traces(300, seed=4)
    visits = traces.first_visits(0.3, np.zeros(300))
    stretches = [traces.eligible(device, 0.0, 0.3) for device in range(300)]
    begins = [np.inf if stretch is None else stretch[0] for stretch in stretches]
    assert visits.tolist() == pytest.approx(begins)


def test_made_up_traces_are_what_is_published_of_real_ones():
    traces = synthetic_traces(20_000, seed=0)
    hours = np.arange(24) * HOUR
    there = [sum(traces.eligible(d, hour, 0.0)[0] == hour for d in range(0, 20_000, 20)) for hour in hours]
    assert 3 <= max(there) / min(there) <= 6  # Bonawitz et al. 2019: about 4
    assert np.argmax(there) in (0, 1, 2, 3, 4)
    lost = traces.loss_before + traces.loss_during + traces.loss_after
    assert 0.06 <= lost.mean() <= 0.11  # the same: 6 to 10 %
    slow, fast = np.quantile(traces.speed, [0.05, 0.95])
    assert fast / slow > 10


def test_the_same_seed_gives_the_same_traces():
    one, same, other = (synthetic_traces(50, seed) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(vars(one).values(), vars(same).values(), strict=True))
    assert not np.array_equal(one.speed, other.speed)


def test_traces_survive_a_file(tmp_path):
    traces = synthetic_traces(100, seed=3)
    write_traces(traces, tmp_path / "traces.parquet")
    read = read_traces(tmp_path / "traces.parquet")
    assert all(np.array_equal(a, b) for a, b in zip(vars(traces).values(), vars(read).values(), strict=True))


@pytest.mark.parametrize(
    ("column", "values"),
    [
        ("speed", [0.0]),
        ("speed", [float("nan")]),
        ("loss_after", [1.5]),
        ("battery_fraction", [-0.1]),
        ("starts_s", [[DAY_S]]),
        ("ends_s", [[1.0]]),
        ("ends_s", [[1.0, 2.0]]),
        ("speed", ["fast"]),
    ],
)
def test_a_file_that_cannot_be_is_refused(tmp_path, column, values):
    path = tmp_path / "traces.parquet"
    write_traces(one_device((10.0, 20.0)), path)
    table = pq.read_table(path)
    place = table.column_names.index(column)
    pq.write_table(table.set_column(place, column, pa.array(values)), path)
    with pytest.raises(DataInvalid):
        read_traces(path)


def test_what_is_no_file_of_traces_is_refused_by_name(tmp_path):
    path = tmp_path / "traces.parquet"
    with pytest.raises(DataInvalid, match=r"traces\.parquet is no Parquet file"):
        read_traces(path)
    path.write_text("a: 1")
    with pytest.raises(DataInvalid, match=r"traces\.parquet is no Parquet file"):
        read_traces(path)
    write_traces(always_there(2), path)
    pq.write_table(pq.read_table(path).replace_schema_metadata({"period_s": "a day"}), path)
    with pytest.raises(DataInvalid, match=r"traces\.parquet: .*a day"):
        read_traces(path)


def test_a_file_without_a_column_is_refused(tmp_path):
    write_traces(always_there(2), tmp_path / "traces.parquet")
    pq.write_table(pq.read_table(tmp_path / "traces.parquet").drop_columns(["speed"]), tmp_path / "traces.parquet")
    with pytest.raises(DataInvalid, match="lacks speed"):
        read_traces(tmp_path / "traces.parquet")


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 30)), max_size=60), st.integers(0, 2**16))
def test_an_agenda_is_a_sorted_list(changes, seed):
    start = np.random.default_rng(seed).integers(0, 20, 6).astype(float)
    agenda, plain, now = Agenda(start), dict(enumerate(start)), 0.0
    for device, wait in changes:
        at, first = agenda.pop()
        assert (at, first) == min((at, d) for d, at in plain.items())
        now, plain[first] = at, now
        plain[first] = now + 1
        agenda.set(first, now + 1)
        plain[device] = now + wait
        agenda.set(device, now + wait)
        assert agenda.next_at() == min(plain.values())


def test_an_agenda_of_many_takes_slices():
    visits = np.random.default_rng(0).random(3 * SLICE)
    agenda = Agenda(visits)
    order = [agenda.pop()[1] for _ in visits]
    assert order == np.argsort(visits).tolist()
    with pytest.raises(IndexError):
        agenda.pop()
