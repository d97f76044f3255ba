"""The laws of aggregation rules, for every rule that is registered: a new file is held to them unasked.

The reference is brute force on exact rationals. The laws are those of `flsys_ray.core.aggregation.base`.
"""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flsys_ray.core.aggregation.base import RULES
from flsys_ray.core.aggregation.weighted_mean import WeightedMean
from flsys_ray.core.exact import FixedPoint
from flsys_ray.errors import EmptyCohort

MAX_ABS = 8.0
MAX_WEIGHT = 1000
MOST = 6  # updates in a generated cohort
SCALE = FixedPoint(max_updates=MOST, max_weight=MAX_WEIGHT, max_abs=MAX_ABS)
every_rule = pytest.mark.parametrize("rule", [kind() for kind in RULES.classes.values()], ids=list(RULES.classes))

values = st.floats(-MAX_ABS, MAX_ABS, width=32)


@st.composite
def cohorts(draw, smallest=1, max_weight=MAX_WEIGHT):
    """Draw `[(delta, weight), ...]` of one length; each delta is read-only."""
    size = draw(st.integers(1, 5))
    vectors = draw(st.lists(st.lists(values, min_size=size, max_size=size), min_size=smallest, max_size=MOST))
    weights = draw(st.lists(st.integers(1, max_weight), min_size=len(vectors), max_size=len(vectors)))
    return [(read_only(vector), weight) for vector, weight in zip(vectors, weights, strict=True)]


def read_only(vector):
    array = np.array(vector, dtype=np.float32)
    array.flags.writeable = False
    return array


def fold(rule, cohort, size=None):
    state = rule.init(SCALE, size if size is not None else len(cohort[0][0]))
    for delta, weight in cohort:
        state = rule.add(state, delta, weight)
    return state


def result(rule, cohort):
    return rule.finish(fold(rule, cohort))


def same_bits(left, right):
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()


def test_there_are_rules_to_test():
    assert "weighted_mean" in RULES.classes


@every_rule
@given(cohort=cohorts(smallest=2), data=st.data())
def test_merge_agrees_with_add(rule, cohort, data):
    cut = data.draw(st.integers(0, len(cohort)))
    size = len(cohort[0][0])
    left, right = fold(rule, cohort[:cut], size), fold(rule, cohort[cut:], size)
    expected = result(rule, cohort)
    assert same_bits(rule.finish(rule.merge(left, right)), expected)
    assert same_bits(rule.finish(rule.merge(right, left)), expected)


@every_rule
@given(cohort=cohorts(smallest=3))
def test_merge_is_associative(rule, cohort):
    one, two, rest = (fold(rule, part) for part in (cohort[:1], cohort[1:2], cohort[2:]))
    left = rule.merge(rule.merge(one, two), rest)
    right = rule.merge(one, rule.merge(two, rest))
    assert same_bits(rule.finish(left), rule.finish(right))


@every_rule
@settings(max_examples=50)
@given(cohort=cohorts(smallest=2))
def test_order_does_not_matter_to_the_bit(rule, cohort):
    expected = result(rule, cohort)
    for order in itertools.islice(itertools.permutations(cohort), 24):
        assert same_bits(result(rule, order), expected)


@every_rule
@given(cohort=cohorts(max_weight=50), factor=st.integers(1, 20))
def test_scaling_all_weights_changes_nothing_to_the_bit(rule, cohort, factor):
    assert same_bits(result(rule, [(delta, weight * factor) for delta, weight in cohort]), result(rule, cohort))


@every_rule
@given(cohort=cohorts())
def test_finite_in_finite_out(rule, cohort):
    out = result(rule, cohort)
    assert out.dtype == np.float64
    assert out.shape == cohort[0][0].shape
    assert np.isfinite(out).all()


@given(cohort=cohorts())
def test_weighted_mean_stays_within_the_range_of_its_inputs(cohort):
    out = result(WeightedMean(), cohort)
    stacked = np.stack([delta for delta, _ in cohort]).astype(np.float64)
    slack = 2.0**-SCALE.fraction_bits
    assert (out >= stacked.min(axis=0) - slack).all()
    assert (out <= stacked.max(axis=0) + slack).all()


@every_rule
@given(cohort=cohorts())
def test_inputs_and_states_are_not_changed(rule, cohort):
    before = [(delta.tobytes(), weight) for delta, weight in cohort]
    states = [rule.init(SCALE, len(cohort[0][0]))]
    results = []
    for delta, weight in cohort:
        states.append(rule.add(states[-1], delta, weight))  # a write into a delta raises: they are read-only
        results.append(rule.finish(states[-1]))
    merged = rule.merge(states[-1], states[0])
    rule.finish(merged)[:] = 0.0
    assert [(delta.tobytes(), weight) for delta, weight in cohort] == before
    for state, earlier in zip(states[1:], results, strict=True):
        assert same_bits(rule.finish(state), earlier)


@every_rule
@pytest.mark.parametrize("size", [1, 5])
def test_an_empty_cohort_is_refused_by_name(rule, size):
    empty = rule.init(SCALE, size)
    with pytest.raises(EmptyCohort):
        rule.finish(empty)
    with pytest.raises(EmptyCohort):
        rule.finish(rule.merge(empty, rule.init(SCALE, size)))


@every_rule
def test_a_rule_is_frozen(rule):
    with pytest.raises(ValueError, match="frozen"):
        rule.name = "other"


@given(cohort=cohorts())
def test_weighted_mean_of_equal_updates_is_that_update(cohort):
    same = [(cohort[0][0], weight) for _, weight in cohort]
    assert np.abs(result(WeightedMean(), same) - cohort[0][0]).max() <= 2.0 ** -(SCALE.fraction_bits + 1)


@given(cohort=cohorts())
def test_weighted_mean_against_exact_rationals(cohort):
    out = result(WeightedMean(), cohort)
    total = sum(weight for _, weight in cohort)
    bound = Fraction(1, 2 ** (SCALE.fraction_bits + 1))  # of one value, hence of their mean
    for index, found in enumerate(out):
        exact = sum(Fraction(float(delta[index])) * weight for delta, weight in cohort) / total
        rounding = Fraction(2 * math.ulp(float(exact))) + Fraction(2 * math.ulp(float(found)))
        assert abs(Fraction(float(found)) - exact) <= bound + rounding


@given(cohort=cohorts())
def test_weighted_mean_of_representable_values_is_the_nearest_float(cohort):
    """Multiples of 2**-8 are exact in the sums: what is left is one rounding of a quotient."""
    exact_cohort = [(read_only(np.rint(delta * 256) / 256), weight) for delta, weight in cohort]
    out = result(WeightedMean(), exact_cohort)
    total = sum(weight for _, weight in exact_cohort)
    for index, found in enumerate(out):
        exact = sum(Fraction(float(delta[index])) * weight for delta, weight in exact_cohort) / total
        resolution = Fraction(1, 2**SCALE.fraction_bits)
        assert abs(Fraction(float(found)) - exact) <= Fraction(math.ulp(float(found))) + resolution / 2**50


def test_weighted_mean_by_hand():
    cohort = [(read_only([1.0, -2.0]), 1), (read_only([4.0, 1.0]), 2)]
    assert result(WeightedMean(), cohort).tolist() == [3.0, 0.0]
