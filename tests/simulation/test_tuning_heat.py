"""Simulations side by side: their versions are those of each alone, stopped and resumed at any version."""

import json

import pytest
from simulated import ROUNDS, models_of, plan_of, specs_of

from flsys_ray.simulation.engine import Simulation, Terms
from flsys_ray.simulation.executors import InlineExecutor
from flsys_ray.simulation.traces import synthetic_traces
from tuning.heat import ROUNDS_A_VERSION, Heat

SEEDS = (3, 4)
STARVED = {"pacing": {"name": "rounds", "cohort": 6, "quorum": 6, "deadline_s": 0.1}, "stopping": {"versions": 2}}


def simulation(seed: int, parts: dict = ROUNDS, **terms) -> Simulation:
    models = models_of(plan_of(parts, seed=seed))
    return Simulation(
        models, synthetic_traces(40, seed), InlineExecutor(specs_of(models), 1), Terms(seed=seed, **terms)
    )


def heat(parts: dict = ROUNDS, **terms) -> Heat:
    return Heat({seed: simulation(seed, parts, **terms) for seed in SEEDS}, "accuracy", 0.5)


def finished(heat: Heat) -> Heat:
    while not heat.over:
        heat.advance()
    return heat


def test_each_has_the_bits_that_it_has_alone():
    made = finished(heat())
    assert made.finished
    alone = {str(seed): simulation(seed).run() for seed in SEEDS}
    assert made.digests() == {seed: outcome.digests["model-0"] for seed, outcome in alone.items()}
    last = made.reports()[-1]
    assert [figures["accuracy"] for figures in last] == [outcome.rows[-1].accuracy for outcome in alone.values()]
    assert [figures["bytes"] for figures in last] == [
        sum(row.download_bytes + row.upload_bytes for row in outcome.rows) for outcome in alone.values()
    ]


def test_all_wait_for_each_other_at_every_evaluated_version():
    made, versions = heat(evaluate_every=2), []
    while not made.over:
        made.advance()
        versions.append([figures["version"] for figures in made.reports()[-1]])
    assert versions == [[2, 2], [4, 4], [5, 5]]


def test_one_that_was_killed_goes_on_to_the_same_bits(tmp_path):
    whole = finished(heat())
    killed = heat()
    for _ in range(2):
        killed.advance()
    killed.save(tmp_path)
    resumed = heat()
    resumed.restore(tmp_path)
    assert resumed.reports() == killed.reports()
    assert finished(resumed).digests() == whole.digests()
    assert json.loads(json.dumps(resumed.reports())) == whole.reports()


@pytest.mark.parametrize("terms", [{}, {"horizon_s": 5.0}])
def test_one_that_never_makes_a_version_is_given_up(terms):
    simulations = {seed: simulation(seed, STARVED, **terms) for seed in SEEDS}
    made = finished(Heat(simulations, "accuracy", 0.5))
    assert not made.finished
    assert made.reports() == []
    assert max(len(one.state.rows) for one in simulations.values()) <= ROUNDS_A_VERSION * 2
