"""Sweep files, search spaces, and the plans that they make."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_program import tiny_program

from flsys_ray.errors import InvalidInput
from tuning.configurations import check, fixed_configurations, plan_of
from tuning.labels import short, time_unit, titled
from tuning.space import Choice, Grid, LogUniform, RandInt, Uniform, combinations, count, draw, meant
from tuning.sweep import Sweep, parse_sweep

HEAD = "data: synthetic-har\nbuiltin: har-wild\nrounds: 3\ntarget: 0.5\n"
GRID, OPTUNA = "search: grid\n", "search: optuna\ntrials: 3\n"
PLAN = "plan: {pacing: {name: rounds, cohort: 6}, selection: uniform}\n"


def sweep_of(space: str, more: str = "trials: 4\n") -> Sweep:
    return parse_sweep(f"{HEAD}{PLAN}{more}space:\n{space}")


def plans_of(sweep: Sweep) -> list:
    return [plan_of(sweep, configuration, 7) for configuration in fixed_configurations(sweep)]


# Spaces ----------------------------------------------------------------------------------------------------------


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6), st.floats(0, 1, exclude_max=True))
def test_a_number_lies_between_the_ends(low, width, place):
    assert low <= Uniform(uniform=(low, low + width)).at(place) <= low + width


@given(st.floats(1e-6, 1e3), st.floats(1.01, 1e6), st.floats(0, 1, exclude_max=True))
def test_a_number_of_a_logarithmic_range_lies_where_its_logarithm_does(low, factor, place):
    value = LogUniform(loguniform=(low, low * factor)).at(place)
    assert low <= value <= low * factor
    assert math.log(value) == pytest.approx(math.log(low) + place * math.log(factor), abs=1e-3)


def test_whole_numbers_and_lists_have_each_value_equally_often():
    places = [i / 600 for i in range(600)]
    whole, listed = RandInt(randint=(2, 4)), Choice(choice=("a", {"name": "b", "c": 1}, 3))
    assert [sum(whole.at(p) == value for p in places) for value in (2, 3, 4)] == [200, 200, 200]
    assert [sum(listed.at(p) == value for p in places) for value in listed.values()] == [200, 200, 200]
    assert [meant(listed, value) for value in listed.values()] == list(listed.choice)


def test_a_draw_depends_on_seed_number_and_field_alone():
    one, two = Uniform(uniform=(0, 1)), RandInt(randint=(0, 100))
    assert draw({"a": one, "b": two}, 3, 9)["b"] == draw({"b": two}, 3, 9)["b"]
    assert draw({"a": one}, 3, 9) != draw({"a": one}, 4, 9) != draw({"a": one}, 4, 10)


def test_combinations_are_counted():
    space = {"a": Choice(choice=(1, 2)), "b": Grid(grid=("x", "y", "z")), "c": RandInt(randint=(1, 4))}
    assert count(space) == 24
    assert count({**space, "d": Uniform(uniform=(0, 1))}) is None
    assert len(list(combinations({"a": space["a"], "b": space["b"]}))) == 6


# Plans -----------------------------------------------------------------------------------------------------------


def test_a_grid_is_every_combination_in_order():
    sweep = sweep_of("  local.epochs: {grid: [1, 2]}\n  selection: {choice: [uniform, {name: oort}]}\n", GRID)
    plans = plans_of(sweep)
    assert [(p.local.epochs, p.selection.name) for p in plans] == [
        (1, "uniform"),
        (1, "oort"),
        (2, "uniform"),
        (2, "oort"),
    ]
    assert {(p.seed, p.stopping.versions) for p in plans} == {(7, 3)}


def test_a_field_with_a_grid_is_tried_with_every_draw():
    sweep = sweep_of("  local.learning_rate: {loguniform: [0.01, 1]}\n  local.epochs: {grid: [1, 2, 3]}\n")
    plans = plans_of(sweep)
    assert [p.local.epochs for p in plans] == [1, 2, 3] * 4
    assert len({p.local.learning_rate for p in plans}) == 4


def test_draws_are_different_and_the_same_each_time():
    sweep = sweep_of("  local.epochs: {randint: [1, 4]}\n")
    assert sorted(p.local.epochs for p in plans_of(sweep)) == [1, 2, 3, 4]
    assert fixed_configurations(sweep) == fixed_configurations(sweep)


def test_a_field_within_a_section_that_is_varied_too():
    space = "  selection.choice: {choice: [2, 5]}\n  selection: {choice: [power_of_choice, {name: refl}]}\n"
    found = {(p.selection.name, p.selection.choice) for p in plans_of(sweep_of(space, GRID))}
    assert found == {("power_of_choice", 2), ("power_of_choice", 5), ("refl", 2), ("refl", 5)}


def test_a_section_that_is_only_a_name_keeps_it():
    plans = plans_of(sweep_of("  selection.open_at_fraction: {choice: [0.1, 0.9]}\n", GRID))
    assert {(p.selection.name, p.selection.open_at_fraction) for p in plans} == {("uniform", 0.1), ("uniform", 0.9)}


def test_the_models_own_plan_is_the_default():
    sweep = parse_sweep(f"{HEAD}search: grid\nspace: {{local.epochs: {{grid: [1, 2]}}}}")
    assert {p.pacing.cohort for p in plans_of(sweep)} == {32}


# What is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("space", "more", "says"),
    [
        ("  local.epochs: {grid: [1, 0]}\n", GRID, r"local\.epochs = 0: plan: local\.epochs: .*greater"),
        ("  local.epoch: {grid: [1]}\n", GRID, r"local\.epoch = 1: plan: local\.epoch: "),
        ("  selection: {choice: [uniform, best]}\n", OPTUNA, r"selection = best: plan: selection"),
        ("  local.epochs: {randint: [0, 3]}\n", OPTUNA, r"local\.epochs = 0: plan: local\.epochs"),
        (
            "  aggregation: {choice: [{name: krum, f: 2}]}\n  pacing.cohort: {choice: [3]}\n",
            GRID,
            r"aggregation = .*krum.*, pacing\.cohort = 3: plan: pacing, aggregation: krum needs",
        ),
    ],
)
def test_a_configuration_that_makes_no_plan_is_named_with_its_values(space, more, says):
    sweep = sweep_of(space, more)
    configurations = fixed_configurations(sweep) if sweep.search.name != "optuna" else []
    with pytest.raises(InvalidInput, match=says):
        check(sweep, configurations)


@pytest.mark.parametrize("stopping", ["3", "[1]", "{version: 1}"])
def test_a_stopping_that_is_none_is_refused_by_name(stopping):
    sweep = parse_sweep(f"{HEAD}{GRID}plan: {{stopping: {stopping}}}\nspace: {{local.epochs: {{grid: [1]}}}}")
    with pytest.raises(InvalidInput, match="stopping"):
        check(sweep, fixed_configurations(sweep))


def test_a_share_of_no_shared_set_is_refused():
    space = "  augmentation.share: {choice: [0.0, 0.5]}\n"
    with pytest.raises(InvalidInput, match=r"augmentation\.share = 0\.5: .*needs a shared set"):
        check(sweep_of(space), fixed_configurations(sweep_of(space, GRID)))
    check(sweep_of(space, f"{GRID}shared_part: 0.1\n"), fixed_configurations(sweep_of(space, GRID)))


def test_a_plan_that_is_not_for_the_program_is_refused():
    sweep = sweep_of("  augmentation.transforms: {choice: [[], [rotation]]}\n", GRID)
    with pytest.raises(InvalidInput, match=r'augmentation\.transforms = \["rotation"\]: program .*rotation'):
        check(sweep, fixed_configurations(sweep), tiny_program().data)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a: [", "sweep: not YAML"),
        ("3", "sweep: "),
        (f"{HEAD}space: {{}}\ntrials: 1", "space: .*at least 1"),
        (f"{HEAD}space: {{local.epochs: {{set: [1]}}}}\ntrials: 1", r"space\.local\.epochs: say one of choice, grid"),
        (f"{HEAD}space: {{local.epochs: 3}}\ntrials: 1", r"space\.local\.epochs: say one of choice, grid"),
        (f"{HEAD}space: {{local.epochs: {{randint: [3, 1]}}}}\ntrials: 1", "low end comes first"),
        (f"{HEAD}space: {{local.epochs: {{choice: [1, 1]}}}}\ntrials: 1", "twice"),
        (
            f"{HEAD}space: {{local.epochs: {{choice: [2020-01-01]}}}}\ntrials: 1",
            r"space\.local\.epochs.*: a value is neither",
        ),
        (f"{HEAD}space: {{seed: {{choice: [1]}}}}\ntrials: 1", "'seed' cannot be varied: the sweep's 'seeds' sets it"),
        (f"{HEAD}space: {{local.epochs: {{choice: [1]}}}}", "search random: say with `trials`"),
        (f"{HEAD}space: {{local.epochs: {{choice: [1]}}}}\nsearch: grid\ntrials: 2", "leave `trials` out"),
        (f"{HEAD}space: {{local.epochs: {{randint: [1, 2]}}}}\nsearch: grid", "local.epochs: a range has no list"),
        (f"{HEAD}space: {{local.epochs: {{grid: [1]}}}}\nsearch: optuna\ntrials: 2", "give a choice, not a grid"),
        (f"{HEAD}space: {{local.epochs: {{choice: [1]}}}}\nsearch: hope\ntrials: 2", "grid, random, asha and optuna"),
        (f"{HEAD}space: {{local.epochs: {{choice: [1]}}}}\nsearch: {{name: asha, eta: 2}}\ntrials: 2", "asha.eta"),
        (f"{HEAD}space: {{local.epochs: {{choice: [1]}}}}\ntrials: 2\nseeds: [1, 1]", "a seed is there twice"),
        (f"{HEAD}space: {{local.epochs: {{choice: [1]}}}}\ntrials: 2\nsed: 1", "sed: "),
    ],
)
def test_a_sweep_that_is_none_is_refused(text, says):
    with pytest.raises(InvalidInput, match=says):
        parse_sweep(text)


def test_more_draws_than_there_are_values_are_refused():
    with pytest.raises(InvalidInput, match=r"trials: 4 different draws.*local\.epochs allow 3"):
        fixed_configurations(sweep_of("  local.epochs: {randint: [1, 3]}\n"))


def test_two_sweeps_are_the_same_if_their_json_is():
    one = sweep_of("  local.epochs: {randint: [1, 4]}\n")
    assert one.to_json() == sweep_of("  local.epochs: {randint: [1, 4]}\n", "search: random\ntrials: 4\n").to_json()
    assert one.to_json() != sweep_of("  local.epochs: {randint: [1, 3]}\n").to_json()


# Words -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("oort", "oort"),
        (0.05, "0.05"),
        (3, "3"),
        ("[]", "none"),
        ('[{"name": "rotation", "max_degrees": 15}, "jitter"]', "rotation 15 + jitter"),
        ('{"cohort": 5}', "cohort 5"),
        ("null", "null"),
    ],
)
def test_values_have_short_words(value, words):
    assert short(value) == words


def test_a_configuration_is_told_in_a_line():
    assert titled({"selection": "oort"}) == "oort"
    assert titled({"local.epochs": 2, "server_optimizer.momentum": 0.5}) == "epochs 2, momentum 0.5"
    assert titled({"a.rate": 1, "b.rate": 2}) == "a.rate 1, b.rate 2"


def test_times_are_told_in_a_unit_that_fits():
    units = [time_unit(seconds)[1] for seconds in ([], [3.0, 599.0], [3.0, 600.0], [7200.0])]
    assert units == ["seconds", "seconds", "minutes", "hours"]
