"""Every rule against an independent reference: its paper's formula on exact rationals, in plain Python.

Values are multiples of 1/256, which the rules' sums hold exactly: what is left between a rule and its reference is the
rounding of the last division.
"""

import math
import statistics
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from test_aggregation import MAX_ABS, MAX_WEIGHT, cohort_of, fold, read_only, reader, result, same_bits

from flsys_ray.core import updates as updates_module
from flsys_ray.core.aggregation.base import RULES
from flsys_ray.core.aggregation.bulyan import Bulyan
from flsys_ray.core.aggregation.clipping import Clipping
from flsys_ray.core.aggregation.coordinate_median import CoordinateMedian
from flsys_ray.core.aggregation.fednova import FedNova
from flsys_ray.core.aggregation.geometric_median import GeometricMedian
from flsys_ray.core.aggregation.krum import Krum
from flsys_ray.core.aggregation.multi_krum import MultiKrum
from flsys_ray.core.aggregation.q_fedavg import QFedAvg
from flsys_ray.core.aggregation.rows import squared_distances
from flsys_ray.core.aggregation.trimmed_mean import TrimmedMean
from flsys_ray.core.aggregation.zeroing import Zeroing
from flsys_ray.core.exact import FixedPoint
from flsys_ray.core.rng import generator
from flsys_ray.core.types import Contribution

STEPS = 256
half = settings(max_examples=settings().max_examples // 2)
fewer = settings(max_examples=settings().max_examples // 5)
SCALE = FixedPoint(max_updates=100, max_weight=MAX_WEIGHT, max_abs=MAX_ABS)
values = st.integers(-int(MAX_ABS) * STEPS, int(MAX_ABS) * STEPS).map(lambda value: value / STEPS)
few = st.sampled_from([-1.0, -0.5, 0.0, 0.5])  # many ties


@st.composite
def cohorts(draw, smallest=1, most=11):
    size = draw(st.integers(1, 4))
    kind = draw(st.sampled_from([values, values, few]))
    vectors = st.lists(st.lists(kind, min_size=size, max_size=size), min_size=smallest, max_size=most)
    rest = st.tuples(st.integers(1, MAX_WEIGHT), st.integers(0, 5000).map(lambda n: n / 1024), st.integers(1, 900))
    return [Contribution(f"{n:02d}", read_only(vector), *draw(rest)) for n, vector in enumerate(draw(vectors))]


def rationals(cohort):
    return [[Fraction(float(value)) for value in c.delta] for c in cohort]


def columns(rows):
    return list(zip(*rows, strict=True))


def agrees(found, exact, relative=4e-16, absolute=0.0):
    assert len(found) == len(exact)
    for one, other in zip(found.tolist(), exact, strict=True):
        assert math.isclose(one, float(other), rel_tol=relative, abs_tol=absolute)


# Coordinate by coordinate ----------------------------------------------------------------------------------------


@given(cohort=cohorts())
def test_coordinate_median(cohort):
    agrees(result(CoordinateMedian(), cohort), [statistics.median(column) for column in columns(rationals(cohort))])


@given(cohort=cohorts(), percent=st.integers(0, 49))
def test_trimmed_mean(cohort, percent):
    cut = min(-(-len(cohort) * percent // 100), (len(cohort) - 1) // 2)
    kept = [sorted(column)[cut : len(cohort) - cut] for column in columns(rationals(cohort))]
    agrees(result(TrimmedMean(fraction=percent / 100), cohort), [statistics.mean(column) for column in kept])


@given(cohort=cohorts())
def test_trimming_nothing_is_the_plain_mean_and_trimming_most_is_the_median(cohort):
    agrees(result(TrimmedMean(fraction=0), cohort), [statistics.mean(c) for c in columns(rationals(cohort))])
    agrees(result(TrimmedMean(fraction=0.4999), cohort), result(CoordinateMedian(), cohort))


# Distances -------------------------------------------------------------------------------------------------------


def krum_scores(rows, f):
    """Return the paper's score of each row, at least one neighbour."""
    found = []
    for i, row in enumerate(rows):
        others = sorted(
            sum((a - b) ** 2 for a, b in zip(row, other, strict=True)) for j, other in enumerate(rows) if j != i
        )
        found.append(sum(others[: max(1, len(rows) - f - 2)]))
    return found


@given(data=st.data(), f=st.integers(0, 3))
def test_krum(data, f):
    cohort = data.draw(cohorts(smallest=2 * f + 3))
    rows = rationals(cohort)
    scores = krum_scores(rows, f)
    agrees(result(Krum(f=f), cohort), rows[scores.index(min(scores))])


@given(data=st.data(), f=st.integers(0, 3))
def test_multi_krum(data, f):
    cohort = data.draw(cohorts(smallest=2 * f + 3))
    m = data.draw(st.none() | st.integers(1, len(cohort) - f - 2))
    rows = rationals(cohort)
    scores = krum_scores(rows, f)
    best = sorted(range(len(rows)), key=lambda i: (scores[i], i))[: m or len(rows) - f - 2]
    expected = [statistics.mean(column) for column in columns([rows[i] for i in best])]
    agrees(result(MultiKrum(f=f, m=m), cohort), expected)


@given(cohort=cohorts(smallest=5))
def test_multi_krum_with_one_is_krum(cohort):
    assert same_bits(result(MultiKrum(f=1, m=1), cohort), result(Krum(f=1), cohort))


def bulyan(rows, f):
    left, chosen = list(rows), []
    while len(chosen) < len(rows) - 2 * f:
        scores = krum_scores(left, f)
        chosen.append(left.pop(scores.index(min(scores))))
    out = []
    for column in columns(chosen):
        middle = statistics.median(column)
        out.append(statistics.mean(sorted(column, key=lambda v: (abs(v - middle), v))[: len(chosen) - 2 * f]))
    return out


@half
@given(data=st.data(), f=st.integers(0, 2))
def test_bulyan(data, f):
    cohort = data.draw(cohorts(smallest=4 * f + 3, most=12))
    agrees(result(Bulyan(f=f), cohort), bulyan(rationals(cohort), f))


@pytest.mark.parametrize("spread", [1e-5, 1.0])
def test_distances_of_small_updates_are_exact_beside_huge_ones(spread):
    """The resolution follows from the plan's limit: an attacker cannot make the honest look alike."""
    scale = FixedPoint(max_updates=100, max_weight=100, max_abs=1024.0)
    rng = generator(0, "distances")
    rows = (rng.normal(0, spread, (6, 3000))).astype(np.float32)
    rows[0] *= np.float32(1000 / np.abs(rows[0]).max())
    cohort = cohort_of(*((row, 1) for row in rows))
    found = squared_distances(scale, [c.key for c in cohort], 3000, reader(cohort))
    for i, left in enumerate(rows.astype(np.float64)):
        for j, right in enumerate(rows.astype(np.float64)):
            exact = math.fsum((left - right) ** 2)
            assert math.isclose(found[i, j], exact, rel_tol=1e-2 if spread < 1 else 1e-9, abs_tol=3000 * 2.0**-50)


def test_the_largest_values_leave_distances_exact():
    size = 200_000
    rows = [np.full(size, MAX_ABS), np.full(size, -MAX_ABS), np.full(size, MAX_ABS - 2**-20)]
    cohort = cohort_of(*((row, 1) for row in rows))
    found = squared_distances(SCALE, [c.key for c in cohort], size, reader(cohort))
    assert found[0].tolist() == [0.0, size * (2 * MAX_ABS) ** 2, size * 2.0**-40]


# Sums ------------------------------------------------------------------------------------------------------------


@given(cohort=cohorts(), iterations=st.integers(1, 6), nu=st.sampled_from([1e-6, 0.1]))
def test_geometric_median_is_smoothed_weiszfeld(cohort, iterations, nu):
    rows = [[float(value) for value in c.delta] for c in cohort]
    total = sum(c.weight for c in cohort)
    center = [0.0] * len(rows[0])
    for _ in range(iterations):
        betas = [c.weight / total / max(nu, math.dist(center, row)) for c, row in zip(cohort, rows, strict=True)]
        center = [
            math.fsum(b * v for b, v in zip(betas, column, strict=True)) / math.fsum(betas) for column in columns(rows)
        ]
    agrees(result(GeometricMedian(iterations=iterations, nu=nu), cohort), center, relative=1e-5, absolute=1e-9)


@fewer
@given(cohort=cohorts(smallest=3), seed=st.integers(0, 999))
def test_geometric_median_minimises_the_sum_of_distances(cohort, seed):
    def objective(point):
        return sum(c.weight * math.dist(point, c.delta.tolist()) for c in cohort)

    found = result(GeometricMedian(iterations=100), cohort)
    slack = 1 + 2e-2 * max(c.weight for c in cohort) / sum(c.weight for c in cohort)
    for c in cohort:
        assert objective(found) <= objective(c.delta) * slack + 1e-3
    for step in generator(seed, "perturbations").normal(0, 0.1, (20, len(found))):
        assert objective(found) <= objective(found + step) * slack + 1e-3


def test_geometric_median_of_a_triangle_is_its_fermat_point():
    corners = [([math.cos(angle), math.sin(angle)], 1) for angle in (0.3, 0.3 + math.tau / 3, 0.3 + 2 * math.tau / 3)]
    shifted = [([x + 2, y - 1], weight) for (x, y), weight in corners]
    agrees(result(GeometricMedian(iterations=60), cohort_of(*shifted)), [2, -1], relative=1e-6)


@given(cohort=cohorts(), q=st.integers(0, 3), lipschitz=st.sampled_from([1, 20]))
def test_q_fedavg_is_algorithm_2(cohort, q, lipschitz):
    """In the paper's terms: gradients `L (w - w_k)`, a step against them; the base version w is 0."""
    assume(all(c.loss > 0 for c in cohort))
    moved, curved = [Fraction(0)] * len(cohort[0].delta), Fraction(0)
    for c, row in zip(cohort, rationals(cohort), strict=True):
        loss = Fraction(c.loss) + Fraction(1e-10)
        gradient = [-lipschitz * value for value in row]
        moved = [m + c.weight * loss**q * g for m, g in zip(moved, gradient, strict=True)]
        norm2 = sum(g * g for g in gradient)
        curved += c.weight * (q * loss ** (q - 1) * norm2 + lipschitz * loss**q)
    expected = [-m / curved for m in moved]
    agrees(result(QFedAvg(q=q, lipschitz=lipschitz), cohort), expected, relative=1e-9, absolute=1e-12)


@given(cohort=cohorts())
def test_q_fedavg_with_q_0_is_the_weighted_mean(cohort):
    expected = result(RULES.classes["weighted_mean"](), cohort)
    agrees(result(QFedAvg(q=0), cohort), expected, relative=1e-12, absolute=1e-12)


def test_q_fedavg_favours_the_worst_served():
    cohort = [Contribution("a", read_only([1.0, 0.0]), 10, loss=2.0), Contribution("b", read_only([0.0, 1.0]), 10, 0.1)]
    ratios = [out[0] / out[1] for out in (result(QFedAvg(q=q), cohort) for q in (0, 1, 2))]
    assert ratios == pytest.approx([1, 20, 400])


@pytest.mark.parametrize("losses", [(0.0, 0.0), (-1.0, 3e38), (1e-30, 3e38)])
@pytest.mark.parametrize("q", [0.0, 0.5, 10.0])
def test_q_fedavg_is_finite_for_any_losses(losses, q):
    pairs = zip("ab", losses, strict=True)
    assert np.isfinite(result(QFedAvg(q=q), [Contribution(k, read_only([8.0]), 1, loss) for k, loss in pairs])).all()


@given(cohort=cohorts(), most=st.sampled_from([1, 10, 1000]))
def test_fednova_is_equation_6(cohort, most):
    total = sum(c.weight for c in cohort)
    steps = [min(c.steps, most) for c in cohort]
    tau = sum(Fraction(c.weight, total) * s for c, s in zip(cohort, steps, strict=True))
    per_step = [[value / s for value in row] for row, s in zip(rationals(cohort), steps, strict=True)]
    shares = [Fraction(c.weight, total) for c in cohort]
    expected = [tau * sum(p * d for p, d in zip(shares, column, strict=True)) for column in columns(per_step)]
    agrees(result(FedNova(max_steps=most), cohort), expected, relative=1e-12, absolute=float(tau) * 2.0**-39)


@given(cohort=cohorts(), steps=st.integers(1, 1000))
def test_fednova_with_equal_steps_is_the_weighted_mean(cohort, steps):
    equal = [Contribution(c.key, c.delta, c.weight, c.loss, steps) for c in cohort]
    expected = result(RULES.classes["weighted_mean"](), cohort)
    agrees(result(FedNova(), equal), expected, relative=1e-9, absolute=steps * 2.0**-38)


# Wrappers --------------------------------------------------------------------------------------------------------

# A wrapper changes deltas only, so it refuses a rule whose updates carry a control: see test_core_scaffold.
WHOLE = [name for name, kind in RULES.classes.items() if "inner" not in kind.model_fields]
INNER = [name for name in WHOLE if not RULES.classes[name]().carries_control]


@pytest.mark.parametrize("inner", INNER)
@fewer
@given(data=st.data(), norm=st.sampled_from([0.5, 3.0, 100.0]))
def test_clipping_is_the_inner_rule_of_clipped_updates(inner, data, norm):
    rule = Clipping(norm=norm, inner=inner)
    cohort = data.draw(cohorts(smallest=rule.min_updates))
    clipped = []
    for c in cohort:
        length = math.sqrt(sum(value**2 for row in rationals([c]) for value in row))
        factor = np.float32(norm / length) if length > norm else np.float32(1)
        clipped.append(Contribution(c.key, read_only(c.delta * factor), c.weight, c.loss, c.steps))
    assert all(np.linalg.norm(c.delta) <= norm * 1.000001 for c in clipped)
    assert same_bits(result(rule, cohort), result(RULES.classes[inner](), clipped))


@pytest.mark.parametrize("inner", INNER)
@fewer
@given(data=st.data())
@example(data=None)
def test_zeroing_is_the_inner_rule_of_updates_without_the_large_ones(inner, data):
    rule = Zeroing(norm=5.0, inner=inner)
    if data is None:  # an update of exactly the limit stays
        cohort = cohort_of(*[([3.0, 4.0], 1)] * rule.min_updates)
    else:
        cohort = data.draw(cohorts(smallest=rule.min_updates))
    zeroed = [
        Contribution(c.key, read_only(c.delta * (sum(c.delta.astype(float) ** 2) <= 25)), c.weight, c.loss, c.steps)
        for c in cohort
    ]
    assert result(rule, cohort).tolist() == result(RULES.classes[inner](), zeroed).tolist()


def test_wrappers_may_be_nested():
    rule = Zeroing(norm=10, inner=Clipping(norm=1, inner="coordinate_median"))
    cohort = cohort_of(([20.0], 1), ([4.0], 1), ([0.5], 1), ([3.0], 1), ([-8.0], 1))
    assert result(rule, cohort).tolist() == [0.5]
    assert (rule.reads_updates, rule.min_updates) == (True, 1)
    assert Clipping(inner=Krum(f=4)).min_updates == 11
    assert not Clipping().reads_updates


# Robustness ------------------------------------------------------------------------------------------------------


@st.composite
def attacked(draw, liars):
    """Draw a cohort of honest updates near each other, and `liars(n)` others that are anything."""
    count = draw(st.integers(7, 13))
    few = liars(count)
    size = draw(st.integers(1, 3))
    center = draw(st.integers(-4 * STEPS, 4 * STEPS)) / STEPS
    honest = draw(
        st.lists(st.lists(st.integers(-STEPS, STEPS), min_size=size, max_size=size), min_size=count, max_size=count)
    )
    rows = [[center + value / STEPS for value in row] for row in honest]
    lies = draw(st.lists(st.lists(values, min_size=size, max_size=size), min_size=few, max_size=few))
    order = draw(st.permutations(range(count)))
    for place, lie in zip(order, lies, strict=False):
        rows[place] = lie
    truth = np.array([rows[place] for place in order[few:]])
    weights = draw(st.lists(st.integers(1, MAX_WEIGHT), min_size=count, max_size=count))
    return cohort_of(*zip(rows, weights, strict=True)), truth, few


@half
@given(drawn=attacked(lambda count: (count - 1) // 2))
def test_coordinate_median_stays_among_the_honest_for_any_minority(drawn):
    cohort, truth, _ = drawn
    out = result(CoordinateMedian(), cohort)
    assert ((out >= truth.min(axis=0)) & (out <= truth.max(axis=0))).all()


@half
@given(drawn=attacked(lambda count: count // 4))
def test_trimmed_mean_stays_among_the_honest_for_any_share_up_to_its_fraction(drawn):
    cohort, truth, _ = drawn
    out = result(TrimmedMean(fraction=0.25), cohort)
    assert ((out >= truth.min(axis=0)) & (out <= truth.max(axis=0))).all()


@half
@given(drawn=attacked(lambda count: (count - 3) // 4))
def test_bulyan_is_no_further_from_the_honest_than_they_are_wide(drawn):
    cohort, truth, few = drawn
    out = result(Bulyan(f=few), cohort)
    low, high = truth.min(axis=0), truth.max(axis=0)
    assert ((out >= low - (high - low)) & (out <= high + (high - low))).all()


@pytest.mark.parametrize("kind", [Krum, MultiKrum])
@half
@given(drawn=attacked(lambda count: (count - 3) // 2))
def test_krum_chooses_nobody_who_is_far_away(kind, drawn):
    """Whoever is chosen is near to `n - f - 2` others, of which at least one is honest."""
    cohort, truth, few = drawn
    out = result(kind(f=few, **({"m": 1} if kind is MultiKrum else {})), cohort)
    width = math.dist(truth.min(axis=0), truth.max(axis=0))
    others = len(cohort) - few - 2
    assert min(math.dist(out, honest) for honest in truth) <= width * math.sqrt(others) + 1e-9


@given(distance=st.sampled_from([1e2, 1e4, 1e6]), side=st.sampled_from([-1, 1]))
def test_geometric_median_hardly_moves_however_far_a_minority_goes(distance, side):
    scale = FixedPoint(100, 100, 1e6)
    rows = [[1.0], [1.1], [0.9], [1.0], [side * distance], [side * distance]]
    cohort = cohort_of(*((row, 1) for row in rows))
    rule = GeometricMedian()
    state = rule.init(scale, 1)
    for contribution in cohort:
        state = rule.add(state, contribution)
    assert abs(rule.finish(state, reader(cohort))[0] - 1) <= 0.2


# Blocks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RULES.classes)
def test_the_width_of_a_block_changes_no_bit(name, monkeypatch):
    rule, size = RULES.classes[name](), 5000
    rng = generator(3, "blocks")
    rows = rng.normal(0, 1, (9, size)).astype(np.float32)
    cohort = [Contribution(f"{n}", row, 3 + n, 0.5 + n, 1 + n, control=row) for n, row in enumerate(rows)]
    state = fold(rule, cohort, size)
    whole = rule.finish(state, reader(cohort))
    asked = []

    class Watched:
        def block(self, keys, start, stop):
            asked.append((len(keys), stop - start))
            return reader(cohort).block(keys, start, stop)

    for budget in (1, 2 * 4 * 1024 * 9):
        monkeypatch.setattr(updates_module, "BLOCK_BYTES", budget)
        assert same_bits(rule.finish(state, Watched()), whole)
    assert bool(asked) == rule.reads_updates
    assert all(count * width * 4 <= max(budget, 4 * 1024 * 9) for count, width in asked)
