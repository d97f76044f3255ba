"""Laws of splits, partitions and the leak detector, against brute force."""

import contextlib
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flsys_ray.data.leaks import check_no_leak, check_user_split, overlaps_any
from flsys_ray.data.schema import Examples
from flsys_ray.data.splits import dirichlet_partition, held_out_part, split_users, user_folds
from flsys_ray.errors import DataInvalid, DataLeak

names = st.lists(st.text("abcdef0123", min_size=1, max_size=4), min_size=2, max_size=30, unique=True)
seeds = st.integers(0, 2**32)


@st.composite
def windows(draw, user="ada"):
    """Windows of one user in a few sessions, with overlaps within them, in any order."""
    rng = np.random.default_rng([*user.encode(), draw(st.integers(0, 2**32 - 1))])
    count = draw(st.integers(1, 60))
    start_s = rng.integers(0, 80, count) * 0.5
    return Examples(
        user=user,
        x=rng.normal(size=(count, 4, 3)).astype(np.float32),
        y=rng.integers(0, 3, count).astype(np.int32),
        start_s=start_s,
        end_s=start_s + draw(st.sampled_from([0.5, 1.0, 2.5])),
        session=np.array([f"s{i}" for i in rng.integers(0, 3, count)], dtype=np.str_),
    )


def share_time(a, i, b, j):
    return a.session[i] == b.session[j] and a.start_s[i] < b.end_s[j] and b.start_s[j] < a.end_s[i]


@given(names, st.floats(0.01, 0.99), seeds)
def test_a_split_of_users_is_one_and_the_same_for_any_order(users, fraction, seed):
    train, held_out = split_users(users, fraction, seed)
    assert sorted((*train, *held_out)) == sorted(users)
    assert train
    assert held_out
    assert abs(len(held_out) - fraction * len(users)) <= 1
    assert split_users(users[::-1], fraction, seed) == (train, held_out)
    check_user_split({"train": train, "held out": held_out})


def test_seeds_split_differently():
    users = [f"u{i}" for i in range(30)]
    assert len({split_users(users, 0.3, seed) for seed in range(20)}) == 20


@given(names, st.integers(2, 6), seeds)
def test_each_user_is_held_out_in_exactly_one_fold(users, folds, seed):
    if len(users) < folds:
        with pytest.raises(DataInvalid):
            user_folds(users, folds, seed)
        return
    parts = user_folds(users, folds, seed)
    assert sorted(user for _, held_out in parts for user in held_out) == sorted(users)
    sizes = [len(held_out) for _, held_out in parts]
    assert max(sizes) - min(sizes) <= 1
    for train, held_out in parts:
        assert sorted((*train, *held_out)) == sorted(users)


@settings(deadline=None)
@given(windows(), windows())
def test_overlap_equals_brute_force(a, b):
    expected = [any(share_time(a, i, b, j) for j in range(len(b))) for i in range(len(a))]
    assert overlaps_any(a, b).tolist() == expected


@settings(deadline=None)
@given(windows(), st.floats(0.05, 0.95), seeds)
def test_a_held_out_part_shares_no_time_and_loses_only_what_would(examples, fraction, seed):
    train, held_out = held_out_part(examples, fraction, seed)
    check_no_leak({"train": [train], "held out": [held_out]}, users_may_repeat=True)
    kept = {x.tobytes() for x in (*train.x, *held_out.x)}
    for i in range(len(examples)):
        assert examples.x[i].tobytes() in kept or any(
            share_time(examples, i, held_out, j) for j in range(len(held_out))
        )
    again = held_out_part(examples, fraction, seed)
    assert np.array_equal(again[1].x, held_out.x)


@pytest.mark.parametrize("seed", range(10))
def test_a_recording_that_is_there_twice_is_not_in_both_parts(seed):
    """As user 01 of MotionSense, whose trial sit_13 is a copy of sit_5."""
    x = np.random.default_rng(0).normal(size=(40, 4, 3)).astype(np.float32)
    starts = np.tile(np.arange(40) * 5.0, 2)
    sessions = np.repeat(np.array(["sit_5", "sit_13"]), 40)
    twice = Examples("01", np.concatenate([x, x]), np.zeros(80, np.int32), starts, starts + 5.0, sessions)
    train, held_out = held_out_part(twice, 0.25, seed)
    check_no_leak({"train": [train], "held out": [held_out]}, users_may_repeat=True)
    assert len(held_out) > 10
    assert len(train) > 30


def test_a_held_out_part_has_the_fraction_on_average():
    rng = np.random.default_rng(0)
    count = 400
    starts = np.arange(count) * 5.0
    sessions = np.array([f"s{i // 100}" for i in range(count)], dtype=np.str_)
    x = rng.normal(size=(count, 4, 3)).astype(np.float32)
    y = (np.arange(count) // 33 % 3).astype(np.int32)
    examples = Examples("ada", x, y, starts, starts + 5.0, sessions)
    parts = [held_out_part(examples, 0.2, seed) for seed in range(50)]
    assert np.mean([len(held_out) for _, held_out in parts]) == pytest.approx(80, abs=3)
    assert all(len(train) + len(held_out) == count for train, held_out in parts)  # windows that only touch
    assert all(set(held_out.y.tolist()) == {0, 1, 2} for _, held_out in parts)
    assert len({held_out.start_s.tobytes() for _, held_out in parts}) > 40


@settings(deadline=None)
@given(windows(), windows())
def test_the_detector_finds_every_overlap(a, b):
    due = any(share_time(a, i, b, j) for i, j in itertools.product(range(len(a)), range(len(b))))
    with pytest.raises(DataLeak) if due else contextlib.nullcontext():
        check_no_leak({"train": [a], "test": [b]}, users_may_repeat=True)


@settings(deadline=None)
@given(windows(), windows("bob"), seeds)
def test_the_detector_finds_a_copied_window_under_another_name(a, b, seed):
    check_no_leak({"train": [a], "test": [b]})
    rng = np.random.default_rng(seed)
    b.x[rng.integers(len(b))] = a.x[rng.integers(len(a))]
    with pytest.raises(DataLeak, match=r"1 examples of train are in test as well.*'ada'.*'bob'"):
        check_no_leak({"train": [a], "test": [b]})


def test_the_detector_names_users_that_are_in_two_parts():
    with pytest.raises(DataLeak, match="2 users are in train and in test: ada, bob"):
        check_user_split({"train": ["ada", "bob", "eve"], "test": ["bob", "ada"]})
    one = Examples(
        "ada", np.ones((1, 4, 3), np.float32), np.zeros(1, np.int32), *np.array([[0.0], [5.0]]), np.array(["s"])
    )
    two = Examples(
        "ada", np.zeros((1, 4, 3), np.float32), np.zeros(1, np.int32), *np.array([[9.0], [14.0]]), np.array(["s"])
    )
    check_no_leak({"train": [one], "test": [two]}, users_may_repeat=True)
    with pytest.raises(DataLeak, match="1 users are in train and in test: ada"):
        check_no_leak({"train": [one], "test": [two]})


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.integers(0, 4), min_size=10, max_size=200),
    st.integers(1, 10),
    st.sampled_from([0.01, 1.0, 100.0]),
    seeds,
)
def test_a_dirichlet_partition_deals_every_example_once(labels, devices, concentration, seed):
    parts = dirichlet_partition(labels, devices, concentration, seed)
    assert sorted(i for part in parts for i in part.tolist()) == list(range(len(labels)))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    again = dirichlet_partition(labels, devices, concentration, seed)
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))


def test_concentration_sets_how_one_sided_devices_are():
    """Expected share of the largest class: near 1 for a tiny concentration, near 1/5 for a huge one."""
    labels = np.repeat(np.arange(5), 400)

    def largest_share(concentration):
        parts = dirichlet_partition(labels, 20, concentration, seed=1)
        return np.mean([np.bincount(labels[part], minlength=5).max() / len(part) for part in parts])

    assert largest_share(0.05) > 0.85
    assert largest_share(1000.0) < 0.30
    assert largest_share(0.05) > largest_share(2.0) > largest_share(1000.0)


@pytest.mark.parametrize("fraction", [0.0, 1.0, -1.0, float("nan")])
def test_fractions_outside_are_refused(fraction):
    with pytest.raises(DataInvalid):
        split_users(["a", "b"], fraction, 0)
