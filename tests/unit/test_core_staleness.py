"""Staleness weights: their formulas, and that a weight in units is what the formula says within its resolution."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flsys_ray.core.pacing.buffered import Buffered
from flsys_ray.core.pacing.deadline import Rounds
from flsys_ray.core.plan import parse_plan
from flsys_ray.core.staleness.base import WEIGHTS
from flsys_ray.core.staleness.constant import Constant
from flsys_ray.core.staleness.hinge import Hinge
from flsys_ray.core.staleness.polynomial import Polynomial
from flsys_ray.errors import PlanInvalid

every_weight = pytest.mark.parametrize(
    "weight", [kind() for kind in WEIGHTS.classes.values()], ids=list(WEIGHTS.classes)
)


@pytest.mark.parametrize(
    ("weight", "staleness", "factor"),
    [
        (Constant(), 0, 1.0),
        (Constant(), 1000, 1.0),
        (Polynomial(), 0, 1.0),
        (Polynomial(), 3, 1 / 2),
        (Polynomial(a=1.0), 3, 1 / 4),
        (Polynomial(a=2.0), 9, 1 / 100),
        (Hinge(a=10.0, b=4), 4, 1.0),
        (Hinge(a=10.0, b=4), 5, 1 / 11),
        (Hinge(a=0.5, b=0), 6, 1 / 4),
    ],
)
def test_the_formulas(weight, staleness, factor):
    assert weight.factor(staleness) == pytest.approx(factor, rel=1e-15)


@every_weight
@given(staleness=st.integers(0, 1000), examples=st.integers(1, 10**6))
def test_every_weight_keeps_the_contract(weight, staleness, examples):
    """Fresh updates count fully, older ones never more, and no counted update is worth nothing."""
    assert weight.factor(0) == 1.0
    assert 0 < weight.factor(staleness + 1) <= weight.factor(staleness) <= 1
    units = weight.units(examples, staleness)
    assert 1 <= units <= examples << weight.bits
    exact = examples * weight.factor(staleness) * 2**weight.bits
    assert units == 1 or abs(units - exact) <= 0.5
    assert weight.units(examples, 0) == examples << weight.bits


@pytest.mark.parametrize("pacing", [{"name": "buffered"}, {"name": "rounds", "late": {}}])
@every_weight
def test_exact_sums_have_room_for_the_largest_weight(pacing, weight):
    key = "weight" if pacing["name"] == "buffered" else None
    chosen = weight.model_dump()
    value = pacing | ({key: chosen} if key else {"late": {"weight": chosen}})
    plan = parse_plan({"pacing": value, "limits": {"max_examples": 5000}})
    assert plan.scale().max_weight == weight.units(5000, 0)


def test_weights_that_leave_too_few_bits_are_refused_by_name():
    limits = {"max_examples": 10**9, "max_abs_delta": 16.0}
    many = {"name": "buffered", "buffer": 8, "concurrency": 8, "weight": "constant"}
    assert parse_plan({"pacing": many, "limits": limits}).scale().fraction_bits >= 16
    with pytest.raises(PlanInvalid, match="fraction bits"):
        parse_plan({"pacing": many | {"weight": "polynomial"}, "limits": limits | {"max_abs_delta": 256.0}})


def test_a_round_without_late_weighs_as_ever():
    assert parse_plan({}).scale().max_weight == 10_000
    assert Rounds().staleness is None
    assert Buffered().staleness.max_staleness == 20
