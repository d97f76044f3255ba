"""The plan: one spelling in YAML, JSON and Python; what contradicts itself is refused by the names of its fields."""

import contextlib
import math
import types
import typing

import numpy as np
import pytest
import yaml
from annotated_types import Ge, Gt, Le, Lt
from hypothesis import given, reject
from hypothesis import strategies as st

from flsys_ray.core.aggregation.base import RULES, AggregationRule
from flsys_ray.core.aggregation.bulyan import Bulyan
from flsys_ray.core.aggregation.clipping import Clipping
from flsys_ray.core.aggregation.krum import Krum
from flsys_ray.core.aggregation.weighted_mean import WeightedMean
from flsys_ray.core.aggregation.zeroing import Zeroing
from flsys_ray.core.optimizers.base import OPTIMIZERS
from flsys_ray.core.pacing.base import PACINGS
from flsys_ray.core.pacing.late import LateUpdates
from flsys_ray.core.plan import (
    Eligibility,
    Limits,
    LocalPlan,
    LocalTraining,
    Stopping,
    TrainingPlan,
    parse_plan,
    parse_plan_json,
    parse_plan_yaml,
)
from flsys_ray.core.selection.base import SELECTORS
from flsys_ray.core.staleness.base import WEIGHTS, StalenessWeight
from flsys_ray.core.staleness.constant import Constant
from flsys_ray.core.staleness.hinge import Hinge
from flsys_ray.core.staleness.polynomial import Polynomial
from flsys_ray.errors import PlanInvalid

EXTENSIONS = {"aggregation": RULES, "server_optimizer": OPTIMIZERS, "pacing": PACINGS, "selection": SELECTORS}
every_extension = pytest.mark.parametrize(
    ("field", "name"), [(field, name) for field, registry in EXTENSIONS.items() for name in registry.classes]
)


# Round trips -----------------------------------------------------------------------------------------------------


def values_of(kind, info):
    """Return a strategy for one pydantic field, within its limits."""
    if isinstance(kind, types.UnionType):
        return st.one_of(*(values_of(option, info) for option in typing.get_args(kind)))
    if kind is types.NoneType:
        return st.none()
    if kind is bool:
        return st.booleans()
    if typing.get_origin(kind) is typing.Literal:
        return st.sampled_from(typing.get_args(kind))
    if kind is LateUpdates:
        return st.builds(LateUpdates, max_staleness=st.integers(1, 1000), weight=values_of(StalenessWeight, info))
    if kind is StalenessWeight or set(typing.get_args(kind)) == set(WEIGHTS.classes.values()):
        return st.sampled_from([Constant(), Polynomial(a=0.25), Hinge(b=2)])
    if kind == AggregationRule[typing.Any]:
        return st.sampled_from([WeightedMean(), Krum(f=2), Clipping(norm=0.5, inner=Zeroing(inner=Bulyan()))])
    bounds = {type(limit): getattr(limit, type(limit).__name__.lower()) for limit in info.metadata}
    low, high = bounds.get(Ge, bounds.get(Gt, 0)), bounds.get(Le, bounds.get(Lt, 1_000))
    if kind is int:
        return st.integers(low + (Gt in bounds), high - (Lt in bounds))
    assert kind is float, f"no values for {kind}: teach this test the new type"
    return st.floats(low, high, exclude_min=Gt in bounds, exclude_max=Lt in bounds, allow_subnormal=False)


@st.composite
def mappings_of(draw, model):
    """Draw a mapping of some of a pydantic model's fields."""
    chosen = {}
    for name, info in model.model_fields.items():
        if name == "name" or draw(st.booleans()):
            chosen[name] = draw(values_of(info.annotation, info))
    return chosen


def plan_or_skip(value):
    """Return the plan, or skip numbers that are each within their limits and contradict each other."""
    try:
        return parse_plan(value)
    except PlanInvalid:
        reject()


@every_extension
@given(data=st.data())
def test_every_extension_survives_yaml_json_and_python(field, name, data):
    chosen = data.draw(mappings_of(EXTENSIONS[field].classes[name]))
    room = {"pacing": {"name": "rounds", "cohort": 10_000, "quorum": 10_000}}  # for any number of liars
    plan = plan_or_skip(room | {field: chosen})
    assert getattr(plan, field).name == name
    for key, value in chosen.items():
        assert getattr(getattr(plan, field), key) == value
    assert parse_plan_yaml(plan.to_yaml()) == plan
    assert parse_plan(plan.model_dump(mode="json")) == plan
    assert parse_plan_json(plan.model_dump_json().encode()) == plan
    assert TrainingPlan(**{key: getattr(plan, key) for key in room | {field: chosen}}) == plan


@pytest.mark.parametrize(
    ("field", "model"),
    [("local", LocalPlan), ("eligibility", Eligibility), ("stopping", Stopping), ("limits", Limits)],
)
@given(data=st.data())
def test_every_section_survives_yaml(field, model, data):
    chosen = data.draw(mappings_of(model))
    plan = plan_or_skip({field: chosen})
    assert parse_plan_yaml(plan.to_yaml()) == plan
    assert all(getattr(getattr(plan, field), key) == value for key, value in chosen.items())


@every_extension
def test_a_bare_name_stands_for_all_defaults(field, name):
    plan = parse_plan_yaml(f"{field}: {name}")
    assert getattr(plan, field) == EXTENSIONS[field].classes[name]()


def test_an_empty_plan_is_the_default_plan_and_writes_every_default_out():
    plan = parse_plan_yaml("")
    assert plan == parse_plan({}) == TrainingPlan()
    assert yaml.safe_load(plan.to_yaml()) == {
        "pacing": {"name": "rounds", "cohort": 16, "over_selection": 1.3, "quorum": None, "deadline_s": 120.0}
        | {"late": None},
        "selection": {"name": "uniform", "open_at_fraction": 0.5},
        "aggregation": {"name": "weighted_mean"},
        "server_optimizer": {"name": "sgd", "learning_rate": 1.0, "momentum": 0.0},
        "augmentation": {"share": 0.0, "transforms": []},
        "compression": {"name": "float32"},
        "download": {"name": "float32"},
        "local": {"epochs": 1, "learning_rate": 0.05, "proximal_mu": 0.0, "max_steps": None}
        | {"learning_rate_decay": 1.0},
        "eligibility": {
            "charging": True,
            "idle": True,
            "unmetered": True,
            "min_battery_fraction": 0.3,
            "min_examples": 10,
        },
        "limits": {"max_examples": 10_000, "max_abs_delta": 1024.0, "max_norm": None},
        "stopping": {"versions": None},
        "evaluation": None,
        "seed": 0,
    }


def test_the_example_of_the_module_is_a_plan():
    from flsys_ray.core import plan as module

    example = (module.__doc__ or "").partition("An example:")[2].partition("stopping:")
    text = "\n".join(line[4:] for line in "".join(example).splitlines())
    plan = parse_plan_yaml(text)
    assert (plan.pacing.cohort, plan.server_optimizer.name, plan.stopping.versions) == (24, "adam", 20)


def test_a_plan_cannot_be_changed():
    with pytest.raises(ValueError, match="frozen"):
        TrainingPlan().seed = 3


# Refusals --------------------------------------------------------------------------------------------------------

REFUSED = [
    ("pacing: {name: rounds, cohort: 4, quorum: 5}", ("pacing",), "quorum (5) is larger than cohort (4)"),
    ("pacing: {name: rounds, cohort: 0}", ("pacing.cohort",), "greater than or equal to 1"),
    ("pacing: {name: rounds, over_selection: 0.9}", ("pacing.over_selection",), "greater than or equal to 1"),
    ("pacing: {name: rounds, deadline_s: 0}", ("pacing.deadline_s",), "greater than 0"),
    ("pacing: {name: rounds, deadline_s: .inf}", ("pacing.deadline_s",), "finite"),
    ("pacing: {name: rounds, cohort: many}", ("pacing.cohort",), "integer"),
    ("pacing: {name: rounds, cohort: 1.5}", ("pacing.cohort",), "integer"),
    ("pacing: {name: rounds, chort: 3}", ("pacing.chort",), "Extra inputs are not permitted"),
    ("server_optimizer: {name: adam, learning_rte: 1}", ("server_optimizer.learning_rte",), "Extra inputs"),
    ("server_optimizer: {name: adam, tau: .nan}", ("server_optimizer.tau",), "finite"),
    ("server_optimizer: {name: sgd, momentum: 1}", ("server_optimizer.momentum",), "less than 1"),
    ("server_optimizer: {name: sgd, learning_rate: -1}", ("server_optimizer.learning_rate",), "greater than 0"),
    ("server_optimizer: adamw", ("server_optimizer",), "'adam', 'sgd', 'yogi'"),
    ("selection: {name: uniform, open_at_fraction: 0}", ("selection.open_at_fraction",), "greater than 0"),
    ("aggregation: {name: krum, f: -1}", ("aggregation.f",), "greater than or equal to 0"),
    ("aggregation: {name: krum, f: 3}", ("pacing", "aggregation"), "krum needs at least 9 updates"),
    ("aggregation: {name: bulyan, f: 2}", ("pacing", "aggregation"), "bulyan needs at least 11 updates"),
    ("aggregation: {name: multi_krum, m: 9}", ("pacing", "aggregation"), "multi_krum needs at least 12 updates"),
    ("aggregation: {name: zeroing, inner: {name: krum, f: 3}}", ("pacing", "aggregation"), "zeroing needs at least 9"),
    ("aggregation: {name: clipping, inner: {name: krum, g: 3}}", ("aggregation.inner.g",), "Extra inputs"),
    ("aggregation: {name: clipping, inner: {name: zeroing, inner: {f: 3}}}", ("aggregation.inner.inner.f",), "Extra"),
    ("aggregation: {name: clipping, inner: mean}", ("aggregation.inner",), "'weighted_mean'"),
    ("aggregation: {name: trimmed_mean, fraction: 0.5}", ("aggregation.fraction",), "less than 0.5"),
    ("selection: lottery", ("selection",), "uniform"),
    ("local: {learning_rate: .inf}", ("local.learning_rate",), "finite"),
    ("local: {learning_rate: .nan}", ("local.learning_rate",), "finite"),
    ("local: {epochs: 0}", ("local.epochs",), "greater than or equal to 1"),
    ("local: [1, 2]", ("local",), "dictionary"),
    ("eligibility: {charging: perhaps}", ("eligibility.charging",), "boolean"),
    ("eligibility: {min_battery_fraction: 30}", ("eligibility.min_battery_fraction",), "less than or equal to 1"),
    ("limits: {max_abs_delta: .inf}", ("limits.max_abs_delta",), "finite"),
    ("stopping: {versions: 0}", ("stopping.versions",), "greater than or equal to 1"),
    ("seed: -1", ("seed",), "greater than or equal to 0"),
    ("seed: 2147483648", ("seed",), "less than 2147483648"),
    ("sed: 1", ("sed",), "Extra inputs are not permitted"),
    ("- a", (), "plan"),
    ("just text", (), "plan"),
    ("3", (), "plan"),
    ("pacing: {name: rounds, cohort: 0}\nseed: x", ("pacing.cohort", "seed"), "integer"),
]


@pytest.mark.parametrize(("text", "fields", "message"), REFUSED, ids=[case[0][:50] for case in REFUSED])
def test_refusals_name_the_fields_as_they_are_spelt_in_yaml(text, fields, message):
    with pytest.raises(PlanInvalid) as caught:
        parse_plan_yaml(text)
    assert caught.value.fields == fields
    assert message in caught.value.message
    assert all(field in caught.value.message for field in fields)


def test_sums_that_could_overflow_are_refused_by_all_the_fields_involved():
    with pytest.raises(PlanInvalid, match="fraction bits") as caught:
        parse_plan({"pacing": {"name": "rounds", "cohort": 100_000}, "limits": {"max_examples": 10**9}})
    assert caught.value.fields == ("pacing", "limits.max_examples", "limits.max_abs_delta")


@pytest.mark.parametrize(
    "text",
    [
        "pacing: {",
        "a: b: c",
        "\tseed: 1",
        "seed: !!python/object:os.system {}",
        "seed: 2021-13-45",  # looks like a date, is none
        "seed: !!int x",
        "{[1]: 2}",
        "[" * 5000,
        "seed: \x00",
        "&a [*a]",
    ],
)
def test_broken_yaml_is_a_broken_plan(text):
    with pytest.raises(PlanInvalid):
        parse_plan_yaml(text)


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b'{"seed": NaN}', b"[]", b"[" * 5000, b'{"seed": 1e999}'])
def test_broken_json_is_a_broken_plan(body):
    with pytest.raises(PlanInvalid):
        parse_plan_json(body)


@given(st.text(max_size=200))
def test_no_text_at_all_raises_anything_else(text):
    with contextlib.suppress(PlanInvalid):
        parse_plan_yaml(text)


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from([*TrainingPlan.model_fields, "name", "cohort", "sgd"]), inner, max_size=3)
        ),
        max_leaves=8,
    )
)
def test_no_value_at_all_raises_anything_else(value):
    try:
        plan = parse_plan(value)
    except PlanInvalid:
        return
    assert parse_plan_yaml(plan.to_yaml()) == plan
    assert math.isfinite(plan.limits.max_abs_delta)


def test_the_scale_follows_from_pacing_and_limits():
    plan = parse_plan({"pacing": {"name": "rounds", "cohort": 7}, "limits": {"max_examples": 11, "max_abs_delta": 3.0}})
    scale = plan.scale()
    assert (scale.max_updates, scale.max_weight, scale.max_abs) == (plan.pacing.max_updates, 11, 3.0)


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("pacing", {"cohort": 5}),
        ("selection", {"open_at_fraction": 0.25}),
        ("aggregation", {}),
        ("server_optimizer", {"learning_rate": 0.5}),
    ],
)
def test_hyper_parameters_without_a_name_are_those_of_the_default(field: str, values: dict[str, object]) -> None:
    default = getattr(TrainingPlan(), field)
    assert getattr(parse_plan({field: values}), field) == default.model_copy(update=values)


def test_a_rate_that_decays_is_the_devices_rate_at_each_version():
    local = parse_plan({"local": {"epochs": 2, "learning_rate": 0.5, "learning_rate_decay": 0.5, "max_steps": 7}}).local
    assert [local.at(version).learning_rate for version in (0, 1, 3)] == [0.5, 0.25, 0.0625]
    assert local.at(3) == LocalTraining(epochs=2, learning_rate=0.0625, max_steps=7)
    assert np.float32(local.at(10**9).learning_rate) > 0
    assert LocalPlan().at(1000) == LocalTraining()
