"""Randomness is a function of its arguments, uniform, and independent between purposes, rounds, devices and seeds."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flsys_ray.core import rng
from flsys_ray.core.rng import generator, unit

arguments = st.tuples(st.integers(0, 2**31 - 1), st.text(max_size=10), st.integers(0, 10**6), st.text(max_size=20))


@given(arguments)
def test_the_same_arguments_give_the_same_draw(args):
    assert unit(*args) == unit(*args)
    assert generator(*args).random(4).tolist() == generator(*args).random(4).tolist()


@given(arguments)
def test_a_unit_is_in_the_half_open_interval(args):
    assert 0.0 <= unit(*args) < 1.0


@pytest.mark.parametrize("byte", [b"\x00", b"\xff"])
def test_a_unit_is_in_the_half_open_interval_for_every_hash(byte, monkeypatch):
    monkeypatch.setattr(rng, "_digest", lambda *_: byte * 16)
    assert 0.0 <= unit(0, "edge") < 1.0


def kolmogorov_smirnov(sample):
    """Return sqrt(n) times the largest distance to the uniform distribution; above 1.95 in one of 1000 samples."""
    ordered = sorted(sample)
    n = len(ordered)
    return math.sqrt(n) * max(max((i + 1) / n - x, x - i / n) for i, x in enumerate(ordered))


@pytest.mark.parametrize("varied", ["seed", "purpose", "round_", "device_id"])
def test_units_are_uniform_whatever_varies(varied):
    fixed = {"seed": 3, "purpose": "selection", "round_": 5, "device_id": "phone-1"}
    text = varied in ("purpose", "device_id")
    sample = [unit(**(fixed | {varied: f"x{i}" if text else i})) for i in range(5000)]
    assert kolmogorov_smirnov(sample) < 1.95


def test_first_draws_of_generators_are_uniform():
    assert kolmogorov_smirnov([generator(0, "p", i).random() for i in range(3000)]) < 1.95


def test_the_distance_finds_what_is_not_uniform():
    assert kolmogorov_smirnov([unit(0, "p", i) ** 1.2 for i in range(5000)]) > 1.95


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"purpose": "selection"}, {"purpose": "candidate"}),
        ({"seed": 0}, {"seed": 1}),
        ({"round_": 1}, {"round_": 2}),
    ],
)
def test_draws_for_different_ends_are_independent(one, other):
    base = {"seed": 7, "purpose": "selection", "round_": 0}
    left = [unit(**(base | one), device_id=f"p{i}") for i in range(4000)]
    right = [unit(**(base | other), device_id=f"p{i}") for i in range(4000)]
    assert abs(np.corrcoef(left, right)[0, 1]) < 4 / math.sqrt(4000)
    table = np.histogram2d(left, right, bins=5, range=[[0, 1], [0, 1]])[0]
    statistic = ((table - 160) ** 2 / 160).sum()
    assert statistic < 54.9  # 0.9995 quantile of chi-square with 24 degrees of freedom is 51.2; 54.9 leaves 3 in 10,000


def test_no_two_argument_lists_run_into_one_another():
    ends = [(1, "2", 3, ""), (12, "", 3, ""), (1, "", 23, ""), (1, "23", 0, ""), (1, "2", 0, "3"), (1, "", 2, "3")]
    assert all(unit(*left) != unit(*right) for left, right in itertools.combinations(ends, 2))
