"""Exact sums: no overflow at the very edge, a proven error bound, and the same bits in any order.

The reference is Python's integers, which have no edge.
"""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given, reject
from hypothesis import strategies as st

from flsys_ray.core.exact import MAX_FRACTION_BITS, MIN_FRACTION_BITS, ExactSum, FixedPoint
from flsys_ray.errors import EmptyCohort, PlanInvalid

INT64_MAX = 2**63 - 1

limits = st.tuples(
    st.integers(0, 24).flatmap(lambda bits: st.integers(1, 2**bits)),
    st.integers(0, 24).flatmap(lambda bits: st.integers(1, 2**bits)),
    st.one_of(st.floats(1e-6, 2.0**36), st.integers(0, 36).map(lambda e: 2.0**e)),
)


def constructed(max_updates, max_weight, max_abs):
    """Return the scale, or skip the example when the limits leave too few bits."""
    try:
        return FixedPoint(max_updates, max_weight, max_abs)
    except PlanInvalid:
        reject()


def largest_float32(max_abs):
    """Return the largest float32 that an update within `max_abs` can hold."""
    value = np.float32(max_abs)
    return value if float(value) <= max_abs else np.nextafter(value, np.float32(0))


@given(limits)
def test_a_full_cohort_at_the_limits_is_exact_at_both_ends(limit):
    """By hand: `n - 1` equal updates are one integer product; the sum then takes the last one itself."""
    scale = constructed(*limit)
    edge = largest_float32(scale.max_abs)
    values = np.array([edge, -edge], dtype=np.float32)
    encoded = [int(v) for v in scale.encode(values)]
    before = scale.max_updates - 1
    total = np.array([before * scale.max_weight * v for v in encoded], dtype=np.int64)  # numpy refuses what overflows
    full = ExactSum(scale, total, before * scale.max_weight, before).add(values, scale.max_weight)
    assert [int(v) for v in full.total] == [scale.max_updates * scale.max_weight * v for v in encoded]
    assert all(abs(int(v)) <= INT64_MAX for v in full.total)
    assert full.count == scale.max_updates
    assert full.weight == scale.max_updates * scale.max_weight
    assert np.abs(full.mean() - values).max() <= 2.0 ** -(scale.fraction_bits + 1)


@given(limits)
def test_merging_halves_at_the_limits_is_exact(limit):
    scale = constructed(*limit)
    assume(scale.max_updates >= 2)
    edge = np.array([largest_float32(scale.max_abs)], dtype=np.float32)
    (encoded,) = (int(v) for v in scale.encode(edge))
    halves = []
    for count in (scale.max_updates // 2, scale.max_updates - scale.max_updates // 2):
        weight = count * scale.max_weight
        halves.append(ExactSum(scale, np.array([weight * encoded], dtype=np.int64), weight, count))
    assert int(halves[0].merge(halves[1]).total[0]) == scale.max_updates * scale.max_weight * encoded


@given(
    st.integers(1, 40),
    st.integers(1, 2**20),
    st.one_of(st.floats(1e-3, 2.0**20), st.just(1024.0)),
    st.sampled_from([1, -1]),
)
def test_adding_a_whole_cohort_one_by_one_is_exact(max_updates, max_weight, max_abs, sign):
    scale = constructed(max_updates, max_weight, max_abs)
    values = np.full(3, sign * largest_float32(max_abs), dtype=np.float32)
    state = ExactSum.zero(scale, 3)
    for _ in range(max_updates):
        state = state.add(values, max_weight)
    expected = max_updates * max_weight * int(scale.encode(values)[0])
    assert [int(v) for v in state.total] == [expected] * 3


@given(limits)
def test_one_bit_more_would_break_a_promise(limit):
    """The scale is as fine as its rule allows, for limits that are whole numbers."""
    scale = constructed(limit[0], limit[1], float(math.ceil(limit[2])))
    bits = scale.fraction_bits
    assert MIN_FRACTION_BITS <= bits <= MAX_FRACTION_BITS
    scaled = int(scale.max_abs) << (bits + 1)
    overflows = scale.max_updates * scale.max_weight * (scaled + 1) > INT64_MAX
    assert bits == MAX_FRACTION_BITS or overflows or scaled > 2**52


@pytest.mark.parametrize(
    ("max_updates", "max_weight", "max_abs"),
    [(100_000, 10_000, 2.0**20), (1, 1, 2.0**37), (2**40, 2**10, 1.0), (10**9, 10**9, 1e-9)],
)
def test_fewer_than_16_bits_are_refused(max_updates, max_weight, max_abs):
    with pytest.raises(PlanInvalid, match="at least 16 are needed") as caught:
        FixedPoint(max_updates, max_weight, max_abs)
    assert caught.value.fields == ("pacing", "limits.max_examples", "limits.max_abs_delta")
    assert str(max_updates) in caught.value.message


@pytest.mark.parametrize(("max_weight", "refused"), [(2**47 - 2**31, False), (2**47, True)])
def test_the_refusal_starts_exactly_where_16_bits_end(max_weight, refused):
    """With max_abs 1, a value takes up to 2**16 + 1/2 at 16 bits: 2**63 / 2**47 is 2**16."""
    if refused:
        with pytest.raises(PlanInvalid):
            FixedPoint(1, max_weight, 1.0)
    else:
        assert FixedPoint(1, max_weight, 1.0).fraction_bits == MIN_FRACTION_BITS


@given(st.integers(1, 1000), st.integers(1, 10_000), st.floats(0.5, 4096.0), st.data())
def test_one_value_is_off_by_half_a_unit_at_most(max_updates, max_weight, max_abs, data):
    scale = constructed(max_updates, max_weight, max_abs)
    top = float(largest_float32(max_abs))
    values = np.array(data.draw(st.lists(st.floats(-top, top, width=32), min_size=1, max_size=8)), dtype=np.float32)
    bound = Fraction(1, 2 ** (scale.fraction_bits + 1))
    for value, encoded in zip(values, scale.encode(values), strict=True):
        assert abs(Fraction(int(encoded), 2**scale.fraction_bits) - Fraction(float(value))) <= bound


@given(st.data(), st.integers(2, 8), st.randoms(use_true_random=False))
def test_any_permutation_and_any_tree_of_merges_gives_the_same_bits(data, count, random):
    scale = FixedPoint(count, 10_000, 1024.0)
    floats = st.floats(-1024.0, 1024.0, width=32)
    cohort = [
        (
            np.array(data.draw(st.lists(floats, min_size=3, max_size=3)), dtype=np.float32),
            data.draw(st.integers(1, 10_000)),
        )
        for _ in range(count)
    ]
    straight = ExactSum.zero(scale, 3)
    for values, weight in cohort:
        straight = straight.add(values, weight)
    random.shuffle(cohort)
    parts = [ExactSum.zero(scale, 3).add(values, weight) for values, weight in cohort]
    while len(parts) > 1:
        left, right = parts.pop(random.randrange(len(parts))), parts.pop(random.randrange(len(parts)))
        parts.append(left.merge(right))
    assert parts[0].total.tobytes() == straight.total.tobytes()
    assert (parts[0].weight, parts[0].count) == (straight.weight, straight.count)
    assert parts[0].mean().tobytes() == straight.mean().tobytes()


@given(limits, st.integers(1, 7), st.integers(1, 7))
def test_the_mean_depends_on_the_ratio_only(limit, weight, factor):
    scale = constructed(limit[0], limit[1] * 49, limit[2])
    values = np.array([largest_float32(scale.max_abs), 0.0, -0.3 * scale.max_abs], dtype=np.float32)
    one = ExactSum.zero(scale, 3).add(values, weight)
    scaled = ExactSum.zero(scale, 3).add(values, weight * factor)
    assert one.mean().tobytes() == scaled.mean().tobytes()


def test_the_mean_depends_on_the_ratio_only_where_totals_have_more_bits_than_a_float():
    """Dividing such a total in one go would round twice, and differently for each factor."""
    scale = FixedPoint(max_updates=64, max_weight=1024, max_abs=64.0)
    draw = np.random.default_rng(0)
    weight = 977
    totals = draw.integers(-(2**59), 2**59, 100_000)
    one = ExactSum(scale, totals, weight, 2).mean()
    for factor in (3, 7, 15):
        assert ExactSum(scale, totals * factor, weight * factor, 2).mean().tobytes() == one.tobytes()
    for total, found in zip(totals[:500].tolist(), one[:500].tolist(), strict=True):
        exact = Fraction(total, weight) / 2**scale.fraction_bits
        assert abs(Fraction(found) - exact) <= Fraction(math.ulp(found))


def test_an_empty_sum_has_no_mean():
    with pytest.raises(EmptyCohort):
        ExactSum.zero(FixedPoint(1, 1, 1.0), 3).mean()


def test_floating_point_sums_do_depend_on_order():
    """Why integers: the same three updates, two orders, two results in float32 and one here."""
    vectors = [np.array([v], dtype=np.float32) for v in (1000.0, 0.1, -1000.0)]
    scale = FixedPoint(3, 1, 1024.0)
    floats, exact = set(), set()
    for order in ((0, 1, 2), (0, 2, 1)):
        total, state = np.zeros(1, dtype=np.float32), ExactSum.zero(scale, 1)
        for index in order:
            total, state = total + vectors[index], state.add(vectors[index], 1)
        floats.add(float(total[0]))
        exact.add(float(state.mean()[0]))
    assert len(floats) == 2
    assert len(exact) == 1
