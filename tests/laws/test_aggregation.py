"""The laws of aggregation rules, for every rule that is registered: a new file is held to them unasked.

The reference is brute force on exact rationals. The laws are those of `flsys_ray.core.aggregation.base`. A rule that
needs more than one update is held to them with cohorts that are large enough for it.
"""

import itertools
import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flsys_ray.core.aggregation.base import RULES
from flsys_ray.core.aggregation.weighted_mean import WeightedMean
from flsys_ray.core.exact import FixedPoint
from flsys_ray.core.types import Contribution
from flsys_ray.core.updates import HeldUpdates
from flsys_ray.errors import CohortTooSmall, EmptyCohort

MAX_ABS = 8.0
MAX_WEIGHT = 1000
MORE = 5  # updates in a generated cohort beyond the fewest
SCALE = FixedPoint(max_updates=100, max_weight=MAX_WEIGHT, max_abs=MAX_ABS)
every_rule = pytest.mark.parametrize("rule", [kind() for kind in RULES.classes.values()], ids=list(RULES.classes))

laws = settings(max_examples=settings().max_examples * 3 // 10)  # there are many rules

values = st.floats(-MAX_ABS, MAX_ABS, width=32)


@st.composite
def cohorts(draw, smallest=1, max_weight=MAX_WEIGHT):
    """Draw contributions of one length; each delta is read-only."""
    size = draw(st.integers(1, 5))
    vectors = st.lists(st.lists(values, min_size=size, max_size=size), min_size=smallest, max_size=smallest + MORE)
    deltas = [read_only(vector) for vector in draw(vectors)]
    keys = draw(st.permutations([f"{number:02d}" for number in range(len(deltas))]))
    controls = st.lists(values, min_size=size, max_size=size).map(read_only)
    rest = st.tuples(st.integers(1, max_weight), st.floats(-1e3, 1e6), st.integers(1, 10**6), controls)
    return [Contribution(key, delta, *draw(rest)) for key, delta in zip(keys, deltas, strict=True)]


def enough(rule, smallest=1, **limits):
    """Return a strategy for a cohort that the rule can aggregate, and at least `smallest` updates."""
    return cohorts(smallest=max(smallest, rule.min_updates), **limits)


def read_only(vector):
    array = np.array(vector, dtype=np.float32)
    array.flags.writeable = False
    return array


def cohort_of(*pairs):
    return [
        Contribution(f"{n:02d}", read_only(vector), weight, control=read_only(vector))
        for n, (vector, weight) in enumerate(pairs)
    ]


def fold(rule, cohort, size):
    state = rule.init(SCALE, size)
    for contribution in cohort:
        state = rule.add(state, contribution)
    return state


def reader(cohort):
    held = HeldUpdates()
    for contribution in cohort:
        held.hold(contribution.key, contribution.delta)
    return held


def result(rule, cohort):
    return outcome(rule, fold(rule, cohort, len(cohort[0].delta)), reader(cohort))


def outcome(rule, state, updates):
    """Return all that a version gets of a cohort: the delta, and behind it the next control of a rule that has one."""
    delta = rule.finish(state, updates)
    if not rule.carries_control:
        return delta
    control = rule.next_control(state, read_only([0.25] * len(delta)))
    assert (control.dtype, control.shape) == (np.float32, delta.shape)
    return np.concatenate([delta, control.astype(np.float64)])


def same_bits(left, right):
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()


def test_there_are_rules_to_test():
    assert "weighted_mean" in RULES.classes


@every_rule
@laws
@given(data=st.data())
def test_merge_agrees_with_add(rule, data):
    cohort = data.draw(enough(rule, smallest=2))
    cut = data.draw(st.integers(0, len(cohort)))
    size = len(cohort[0].delta)
    left, right = fold(rule, cohort[:cut], size), fold(rule, cohort[cut:], size)
    expected = result(rule, cohort)
    assert same_bits(outcome(rule, rule.merge(left, right), reader(cohort)), expected)
    assert same_bits(outcome(rule, rule.merge(right, left), reader(cohort)), expected)


@every_rule
@laws
@given(data=st.data())
def test_merge_is_associative(rule, data):
    cohort = data.draw(enough(rule, smallest=3))
    one, two, rest = (fold(rule, part, len(cohort[0].delta)) for part in (cohort[:1], cohort[1:2], cohort[2:]))
    left = rule.merge(rule.merge(one, two), rest)
    right = rule.merge(one, rule.merge(two, rest))
    assert same_bits(outcome(rule, left, reader(cohort)), outcome(rule, right, reader(cohort)))


@every_rule
@settings(max_examples=settings().max_examples // 5)
@given(data=st.data())
def test_order_does_not_matter_to_the_bit(rule, data):
    cohort = data.draw(enough(rule, smallest=2))
    expected = result(rule, cohort)
    for order in itertools.islice(itertools.permutations(cohort), 24):
        assert same_bits(result(rule, order), expected)
    assert same_bits(result(rule, data.draw(st.permutations(cohort))), expected)


@every_rule
@laws
@given(data=st.data(), factor=st.integers(1, 20))
def test_scaling_all_weights_changes_nothing_to_the_bit(rule, data, factor):
    cohort = data.draw(enough(rule, max_weight=50))
    scaled = [replace(contribution, weight=contribution.weight * factor) for contribution in cohort]
    assert same_bits(result(rule, scaled), result(rule, cohort))


@every_rule
@laws
@given(data=st.data())
def test_finite_in_finite_out(rule, data):
    cohort = data.draw(enough(rule))
    out = result(rule, cohort)
    assert out.dtype == np.float64
    assert out.size == cohort[0].delta.size * (2 if rule.carries_control else 1)
    assert np.isfinite(out).all()


@given(cohort=cohorts())
def test_weighted_mean_stays_within_the_range_of_its_inputs(cohort):
    out = result(WeightedMean(), cohort)
    stacked = np.stack([c.delta for c in cohort]).astype(np.float64)
    slack = 2.0**-SCALE.fraction_bits
    assert (out >= stacked.min(axis=0) - slack).all()
    assert (out <= stacked.max(axis=0) + slack).all()


@every_rule
@laws
@given(data=st.data())
def test_inputs_and_states_are_not_changed(rule, data):
    cohort = data.draw(enough(rule))
    before = [(c.delta.tobytes(), c.control.tobytes(), c.weight) for c in cohort]
    updates = reader(cohort)
    states = [rule.init(SCALE, len(cohort[0].delta))]
    results = []
    for contribution in cohort:
        states.append(rule.add(states[-1], contribution))  # a write into a delta raises: they are read-only
        if len(states) > rule.min_updates:
            results.append(outcome(rule, states[-1], updates))
    merged = rule.merge(states[-1], states[0])
    rule.finish(merged, updates)[:] = 0.0
    outcome(rule, merged, updates)[:] = 0.0
    assert [(c.delta.tobytes(), c.control.tobytes(), c.weight) for c in cohort] == before
    for state, earlier in zip(states[rule.min_updates :], results, strict=True):
        assert same_bits(outcome(rule, state, updates), earlier)


@every_rule
def test_a_rule_that_carries_a_control_is_a_fold(rule):
    """A reader of updates knows where the one vector of a file lies, and not where two do."""
    assert not (rule.carries_control and rule.reads_updates)


@every_rule
@pytest.mark.parametrize("size", [1, 5])
def test_an_empty_cohort_is_refused_by_name(rule, size):
    empty = rule.init(SCALE, size)
    with pytest.raises(EmptyCohort, match="no update was added"):
        rule.finish(empty, HeldUpdates())
    with pytest.raises(EmptyCohort, match="no update was added"):
        rule.finish(rule.merge(empty, rule.init(SCALE, size)), HeldUpdates())


@every_rule
def test_a_cohort_that_is_too_small_is_refused_by_name(rule):
    cohort = cohort_of(*(([float(number)], 1) for number in range(rule.min_updates)))
    assert np.isfinite(result(rule, cohort)).all()
    for count in range(1, rule.min_updates):
        with pytest.raises(CohortTooSmall, match=f"{count} updates, at least {rule.min_updates} are needed"):
            result(rule, cohort[:count])


@every_rule
def test_a_rule_is_frozen(rule):
    with pytest.raises(ValueError, match="frozen"):
        rule.name = "other"


@given(cohort=cohorts())
def test_weighted_mean_of_equal_updates_is_that_update(cohort):
    same = [replace(c, delta=cohort[0].delta) for c in cohort]
    assert np.abs(result(WeightedMean(), same) - cohort[0].delta).max() <= 2.0 ** -(SCALE.fraction_bits + 1)


@given(cohort=cohorts())
def test_weighted_mean_against_exact_rationals(cohort):
    out = result(WeightedMean(), cohort)
    total = sum(c.weight for c in cohort)
    bound = Fraction(1, 2 ** (SCALE.fraction_bits + 1))  # of one value, hence of their mean
    for index, found in enumerate(out):
        exact = sum(Fraction(float(c.delta[index])) * c.weight for c in cohort) / total
        rounding = Fraction(2 * math.ulp(float(exact))) + Fraction(2 * math.ulp(float(found)))
        assert abs(Fraction(float(found)) - exact) <= bound + rounding


@given(cohort=cohorts())
def test_weighted_mean_of_representable_values_is_the_nearest_float(cohort):
    """Multiples of 2**-8 are exact in the sums: what is left is one rounding of a quotient."""
    exact_cohort = [replace(c, delta=read_only(np.rint(c.delta * 256) / 256)) for c in cohort]
    out = result(WeightedMean(), exact_cohort)
    total = sum(c.weight for c in exact_cohort)
    for index, found in enumerate(out):
        exact = sum(Fraction(float(c.delta[index])) * c.weight for c in exact_cohort) / total
        resolution = Fraction(1, 2**SCALE.fraction_bits)
        assert abs(Fraction(float(found)) - exact) <= Fraction(math.ulp(float(found))) + resolution / 2**50


def test_weighted_mean_by_hand():
    cohort = cohort_of(([1.0, -2.0], 1), ([4.0, 1.0], 2))
    assert result(WeightedMean(), cohort).tolist() == [3.0, 0.0]
