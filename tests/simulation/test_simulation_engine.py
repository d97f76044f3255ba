"""The event loop: the coordinator's own answers, any number of workers, killed and resumed."""

import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from simulated import BUFFERED, ROUNDS, ideal, models_of, plan_of, simulation_of, specs_of

from flsys_ray.core.coordinator import Coordinator
from flsys_ray.core.rng import generator
from flsys_ray.core.types import Update, Version
from flsys_ray.errors import Conflict, InvalidInput, NotFound
from flsys_ray.programs.runner import Program
from flsys_ray.simulation.checkpoint import Checkpoints
from flsys_ray.simulation.engine import Simulation, Terms
from flsys_ray.simulation.executors import InlineExecutor
from flsys_ray.simulation.results import write_rows, write_summary

SCAFFOLD = plan_of(ROUNDS, aggregation={"name": "scaffold", "devices": 40})
LATE = {"pacing": {"name": "rounds", "cohort": 6, "deadline_s": 2, "quorum": 1, "late": {"max_staleness": 3}}}
PLANS = {
    "rounds": plan_of(ROUNDS),
    "buffered": plan_of(BUFFERED),
    "late updates": plan_of({**ROUNDS, **LATE}),
    "median": plan_of(ROUNDS, aggregation="coordinate_median"),
    "scaffold": SCAFFOLD,
}


def facts(outcome):
    return outcome.digests, outcome.versions, outcome.virtual_s, outcome.trainings, outcome.rows


@pytest.mark.parametrize("name", PLANS)
def test_any_number_of_workers_gives_the_same_bits(name):
    one, three = (simulation_of(PLANS[name], workers=workers).run() for workers in (1, 3))
    assert facts(one) == facts(three)
    assert one.ended == "finished"
    assert one.versions == {"model-0": PLANS[name].stopping.versions}


@pytest.mark.parametrize("name", PLANS)
def test_a_simulation_that_was_killed_goes_on_to_the_same_bits(name, tmp_path):
    """Saved after every round, it is begun anew from each of the checkpoints; what was under way is computed again."""
    whole = simulation_of(PLANS[name]).run()
    kept = []
    keeper = Checkpoints(tmp_path, 0.0)

    def save(simulation):
        keeper.save(simulation)
        kept.append((tmp_path / "checkpoint.pickle").read_bytes())

    simulation_of(PLANS[name]).run(between=save)
    assert len(kept) == len(whole.rows)
    for body in kept[:: max(1, len(kept) // 3)]:
        (tmp_path / "checkpoint.pickle").write_bytes(body)
        resumed = simulation_of(PLANS[name], workers=2)
        Checkpoints(tmp_path, 0.0).restore(resumed)
        assert facts(resumed.run()) == facts(whole)


def test_a_simulation_that_pauses_after_every_round_has_the_same_bits():
    whole, paused = simulation_of(PLANS["rounds"]).run(), simulation_of(PLANS["rounds"])
    endings = []
    while "finished" not in endings:
        outcome = paused.run(between=lambda _: len(endings) < len(whole.rows) - 1)
        endings.append(outcome.ended)
    assert endings == ["paused"] * (len(whole.rows) - 1) + ["finished"]
    assert facts(outcome) == facts(whole)


@pytest.mark.parametrize("name", ["rounds", "buffered", "late updates"])
def test_a_version_is_what_the_coordinator_makes_of_the_updates_by_hand(name):
    """All that the coordinator was asked, asked again of another one, with the updates of the phone's own program."""
    simulation = simulation_of(PLANS[name])
    trainee, model = simulation.trainees["model-0"], simulation.models["model-0"]
    calls = []

    def noting(verb, ask):
        def noted(*arguments):
            calls.append((verb, arguments))
            return ask(*arguments)

        return noted

    for verb in ("check_in", "submit", "give_back", "tick"):
        setattr(trainee.coordinator, verb, noting(verb, getattr(trainee.coordinator, verb)))
    simulation.run()
    program, pool, plan = Program.load(model.program), model.population.pool, model.plan
    start = Version(0, program.init(plan.seed), plan.server_optimizer.init(67))
    again = Coordinator("model-0", program.manifest.to_layout(), plan, start, round_=0, opened_at=0.0)
    versions = {0: start.parameters}
    for verb, (*what, now) in calls:
        if verb == "submit":
            work = what[0].assignment
            rows = model.population.rows(int(work.device_id))
            base, rng = versions[work.version], generator(0, "local-training", work.round, work.assignment_id)
            x, y = pool.training.x[rows], pool.training.y[rows]
            trained = program.train(base, x, y, epochs=2, learning_rate=0.1, rng=rng)
            what = [Update(work, trained.parameters - base, len(rows), trained.loss, num_steps=trained.steps)]
        getattr(again, verb)(*what, now)
        versions[again.version.number] = again.version.parameters
    assert sum(verb == "submit" for verb, _ in calls) > plan.stopping.versions
    assert again.version.number == plan.stopping.versions
    assert np.array_equal(again.version.parameters, trainee.coordinator.version.parameters)


def test_several_models_train_at_once_and_the_books_balance():
    outcome = simulation_of(PLANS["rounds"], PLANS["buffered"]).run()
    assert outcome.versions == {"model-0": 5, "model-1": 8}
    for row in outcome.rows:
        assert row.counted <= row.assigned
        assert row.late + row.given_back + row.counted <= row.assigned
        assert 0 <= row.wasted_device_s <= row.device_s + 1e-9
        assert row.upload_bytes % (67 * 4) == row.download_bytes % (67 * 4) == 0
    assert outcome.trainings >= sum(row.counted for row in outcome.rows)
    assert sum(row.upload_bytes for row in outcome.rows) >= 67 * 4 * sum(row.counted for row in outcome.rows)


def test_training_helps_and_is_judged_on_held_out_examples():
    rows = simulation_of(plan_of({**ROUNDS, "stopping": {"versions": 20}})).run().rows
    judged = [row for row in rows if row.accuracy is not None]
    assert len(judged) == 20
    assert judged[-1].accuracy > 0.8
    assert judged[-1].loss < judged[0].loss


def test_versions_are_evaluated_as_often_as_asked():
    rows = simulation_of(plan_of(ROUNDS), terms=Terms(evaluate_every=2)).run().rows
    assert [row.version for row in rows if row.accuracy is not None] == [2, 4, 5]
    assert not [r for r in simulation_of(plan_of(ROUNDS), terms=Terms(evaluate_every=0)).run().rows if r.accuracy]


def test_losses_cost_device_seconds_and_the_round_goes_on():
    """A device that lost its training comes back and begins it again: the work is still open."""
    traces = replace(ideal(), loss_during=np.full(40, 0.5, np.float32))
    outcome, without = (simulation_of(plan_of(ROUNDS), traces=t).run() for t in (traces, ideal()))
    assert outcome.versions == {"model-0": 5}
    assert sum(row.wasted_device_s for row in outcome.rows) > sum(row.wasted_device_s for row in without.rows)
    assert outcome.virtual_s > without.virtual_s


def test_devices_that_give_their_work_back_are_counted_so():
    traces = replace(ideal(), loss_before=np.full(40, 0.4, np.float32))
    rows = simulation_of(plan_of(ROUNDS), traces=traces).run().rows
    assert sum(row.given_back for row in rows) > 0
    assert sum(row.download_bytes for row in rows) < 67 * 4 * sum(row.assigned for row in rows)


def test_a_fleet_that_never_comes_ends_at_the_horizon():
    empty = replace(
        ideal(), starts=np.zeros(0, np.float32), ends=np.zeros(0, np.float32), offsets=np.zeros(41, np.int64)
    )
    outcome = simulation_of(plan_of(ROUNDS), traces=empty).run()
    assert outcome.ended == "horizon"
    assert outcome.rows == []


def test_results_are_written(tmp_path):
    outcome = simulation_of(plan_of(ROUNDS)).run()
    write_rows(outcome.rows, tmp_path / "rounds.parquet")
    write_summary(outcome, tmp_path / "summary.json")
    table = pq.read_table(tmp_path / "rounds.parquet")
    assert table["version"].to_pylist() == [row.version for row in outcome.rows]
    assert table["accuracy"].to_pylist() == [row.accuracy for row in outcome.rows]
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["digests"] == outcome.digests
    assert summary["last"]["model-0"]["version"] == 5


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"stopping": {"versions": None}}, "no end"),
        ({"augmentation": {"transforms": [{"name": "jitter"}]}}, "augmentation"),
        ({"compression": "int8"}, "compression"),
    ],
)
def test_what_cannot_be_simulated_is_refused(change, match):
    with pytest.raises(InvalidInput, match=match):
        simulation_of(plan_of({**ROUNDS, **change}))


def test_more_devices_than_traces_and_two_models_of_one_name_are_refused():
    with pytest.raises(InvalidInput, match="traces"):
        simulation_of(plan_of(ROUNDS), traces=ideal(3))
    models = models_of(plan_of(ROUNDS)) * 2
    with pytest.raises(InvalidInput, match="each name once"):
        Simulation(models, ideal(), InlineExecutor(specs_of(models), 1), Terms())


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    keeper = Checkpoints(tmp_path, 0.0)
    with pytest.raises(NotFound):
        keeper.restore(simulation_of(plan_of(ROUNDS)))
    keeper.save(simulation_of(plan_of(ROUNDS)))
    keeper.restore(simulation_of(plan_of(ROUNDS)))
    for other in (plan_of(ROUNDS, seed=1), plan_of(BUFFERED)):
        with pytest.raises(Conflict):
            keeper.restore(simulation_of(other))
    with pytest.raises(Conflict):
        keeper.restore(simulation_of(plan_of(ROUNDS), terms=Terms(seed=4)))


def test_checkpoints_come_at_their_interval(tmp_path):
    now = [0.0]
    keeper = Checkpoints(tmp_path, 10.0, clock=lambda: now[0])
    simulation = simulation_of(plan_of(ROUNDS))
    for at, there in ((0.0, False), (9.0, False), (10.0, True)):
        now[0] = at
        keeper.after(simulation)
        assert (tmp_path / "checkpoint.pickle").exists() is there
