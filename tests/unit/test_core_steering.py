"""Pace steering: however devices come, they come back one after the other, and a small fleet is not held up."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flsys_ray.core.pacing.base import RoundView
from flsys_ray.core.pacing.buffered import Buffered
from flsys_ray.core.pacing.deadline import Rounds
from flsys_ray.core.pacing.steering import (
    BUSY_S,
    LONGEST_S,
    SOON_S,
    Steering,
    busy_retry_s,
    retry_after_s,
    round_over_in_s,
)
from flsys_ray.core.types import Counters


def test_all_at_once_come_back_one_after_the_other():
    steering = Steering(per_s=50, longest_s=1000)
    free_at, waits = steering.take(0.0, 100.0, np.full(5000, 0.5))
    assert waits == pytest.approx(np.arange(1, 5001) / 50)
    assert free_at == pytest.approx(200.0)
    _, next_waits = steering.take(free_at, 110.0, np.full(1, 0.5))
    assert next_waits[0] == pytest.approx(90 + 1 / 50), "behind those that were told before"


@given(groups=st.lists(st.integers(1, 20), min_size=1, max_size=10), now=st.floats(0, 1e6))
def test_one_by_one_or_together_is_the_same(groups, now):
    steering = Steering(per_s=10, longest_s=1e6)
    lots = np.random.default_rng(0).random(sum(groups))
    free_at, waits, start = 0.0, [], 0
    for size in groups:
        free_at, some = steering.take(free_at, now, lots[start : start + size])
        waits += [*some]
        start += size
    together_at, together = steering.take(0.0, now, lots)
    assert waits == pytest.approx(together, rel=1e-6, abs=1e-6)
    assert free_at == pytest.approx(together_at)


def test_a_queue_that_nobody_adds_to_empties_itself():
    steering = Steering(per_s=10, longest_s=1000)
    free_at, _ = steering.take(0.0, 0.0, np.full(100, 0.5))
    _, waits = steering.take(free_at, 60.0, np.full(1, 0.5))
    assert waits[0] == pytest.approx(0.1)


@given(count=st.integers(1, 500), free_at=st.floats(0, 5000), now=st.floats(0, 5000), seed=st.integers(0, 100))
def test_nobody_waits_longer_than_the_longest_nor_comes_sooner_than_its_moment_by_more_than_a_tenth(
    count, free_at, now, seed
):
    steering = Steering(per_s=1, longest_s=300)
    after, waits = steering.take(free_at, now, np.random.default_rng(seed).random(count))
    assert (waits > 0).all()
    assert (waits <= 300 * 1.1).all()
    assert now <= after <= now + 300
    begin = max(free_at, now) - now
    planned = np.minimum(begin + np.arange(1, count + 1), 300)
    assert (waits >= 0.5 * planned - 1e-9).all()


def test_a_fleet_that_is_too_large_for_the_longest_wait_is_spread_over_half_of_it():
    steering = Steering(per_s=1, longest_s=100)
    _, waits = steering.take(0.0, 0.0, np.random.default_rng(0).random(10_000))
    told = np.sort(waits[200:])
    assert told[0] == pytest.approx(50, abs=1)
    assert told[-1] == pytest.approx(100, abs=1)
    assert np.histogram(told, bins=10, range=(50, 100))[0] == pytest.approx(980, rel=0.15)


@pytest.mark.parametrize(
    ("refused", "served", "longest"),
    [(1, 1000, BUSY_S), (900, 100, 90.0), (10_000, 0, LONGEST_S), (0, 0, BUSY_S)],
)
def test_who_was_refused_comes_back_within_the_time_that_it_takes_to_serve_the_crowd(refused, served, longest):
    assert busy_retry_s(refused, served, 10.0, 0.0) == SOON_S
    assert busy_retry_s(refused, served, 10.0, 0.999) == pytest.approx(SOON_S + 0.999 * longest)


def test_of_a_first_buffer_nothing_is_known_but_how_long_it_has_been_filling():
    """Half of an assignment's deadline would be a long time for a phone to wait: a place may be free at any moment."""
    pacing, started = Buffered(deadline_s=3600), 1000.0
    now, waits = started, []
    while now < started + 600:
        waits.append(retry_after_s(round_over_in_s(pacing, RoundView(started, Counters(), now), None), 0.5))
        now += waits[-1]
    assert waits[0] == SOON_S
    assert waits == sorted(waits)
    assert len(waits) < 20, "the longer it takes, the seldomer they ask"
    view = RoundView(started, Counters(), started + 100)
    assert round_over_in_s(pacing, view, None) == 100
    assert round_over_in_s(Buffered(deadline_s=60), view, None) == 60
    assert round_over_in_s(pacing, view, 130.0) == 30, "once a buffer was filled, that is known"
    assert round_over_in_s(Rounds(deadline_s=3600), view, None) == 3500, "a round ends at its deadline"
