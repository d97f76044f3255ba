"""The event loop: the coordinator's own answers, any number of workers, killed and resumed."""

import json
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest
from simulated import BUFFERED, ROUNDS, ideal, message_of, models_of, plan_of, simulation_of, specs_of
from tiny_program import tiny_program

from flsys_ray.cloud.public_forms import public_form
from flsys_ray.core.coordinator import Coordinator
from flsys_ray.core.types import Counted, Update, Version
from flsys_ray.device.examples import Batch
from flsys_ray.device.mixing import portion
from flsys_ray.device.trainer import Carried, Telling, train_assignment
from flsys_ray.errors import Conflict, InvalidInput, NotFound, PlanInvalid
from flsys_ray.programs.runner import Program
from flsys_ray.simulation.checkpoint import Checkpoints
from flsys_ray.simulation.engine import SimulatedModel, Simulation, Terms
from flsys_ray.simulation.executors import InlineExecutor
from flsys_ray.simulation.population import Population, make_pool
from flsys_ray.simulation.results import write_rows, write_summary
from flsys_ray.simulation.traces import always_there
from flsys_ray.simulation.training import Examples
from flsys_ray.storage.memory import MemoryStore
from flsys_ray.wire.shared_sets import SharedSet, encode_shared_set
from flsys_ray.wire.tensors import decode_update, decode_vector, encode_vector

SCAFFOLD = plan_of(ROUNDS, aggregation={"name": "scaffold", "devices": 40})
LATE = {"pacing": {"name": "rounds", "cohort": 6, "deadline_s": 2, "quorum": 1, "late": {"max_staleness": 3}}}
PLANS = {
    "rounds": plan_of(ROUNDS),
    "all at once": plan_of({**ROUNDS, "pacing": {**ROUNDS["pacing"], "over_selection": 1.0}}),
    "buffered": plan_of(BUFFERED),
    "late updates": plan_of({**ROUNDS, **LATE}),
    "median": plan_of(ROUNDS, aggregation="coordinate_median"),
    "scaffold": SCAFFOLD,
    "int8": plan_of(BUFFERED, compression={"name": "int8", "block": 16}),
    "top_k": plan_of({**ROUNDS, "stopping": {"versions": 9}}, compression={"name": "top_k", "fraction": 0.2}),
    "download int8": plan_of(BUFFERED, download="int8"),
    "shared set": plan_of(ROUNDS, augmentation={"share": 0.4}),
    "class balance": plan_of(ROUNDS, selection="class_balance"),
    "oort": plan_of(ROUNDS, selection="oort"),
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


class ByHand:
    """What phones make of assignments: the device's own trainer, with what it keeps between them."""

    def __init__(self, model):
        self.model, self.program = model, Program.load(model.program)
        self.residuals = {}

    def update(self, told: Update, parameters) -> tuple[Update, bytes | None]:
        """Return a phone's update for an assignment, as the cloud decodes it, and what the phone keeps if it counts."""
        work, plan, population = told.assignment, self.model.plan, self.model.population
        rows, pool = population.rows(int(work.device_id)), population.pool
        own = Batch(pool.training.x[rows], pool.training.y[rows])
        message = message_of(plan, work)
        mixed = None
        if message.shared is not None:
            shared = SharedSet(*(part[pool.offsets[-1] :] for part in (pool.training.x, pool.training.y)))
            mixed = portion(message.shared, encode_shared_set(shared), self.program.manifest, work.device_id)
        carried = Carried(None, self.residuals.get(work.device_id), mixed)
        weights, telling = encode_vector("parameters", parameters), Telling(label_counts=True)
        found = train_assignment(self.program, weights, message, (own, None), lambda: False, carried, telling)
        body = decode_update(found.update, self.program.manifest.to_layout(), plan.limits.max_abs_delta)
        assert (body.num_examples, body.labels) == (told.num_examples, told.labels)
        assert told.num_bytes < len(found.update) < told.num_bytes + 600
        numbers = {"num_steps": body.num_steps, "train_s": told.train_s, "labels": body.labels}
        return Update(work, body.delta, body.num_examples, body.loss, **numbers), found.residual


@pytest.mark.parametrize("name", [name for name in PLANS if name != "scaffold"])
def test_a_version_is_what_the_coordinator_makes_of_what_phones_upload(name):
    """All that the coordinator was asked, asked again of another one, with updates by the device's own trainer."""
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
    phones, plan = ByHand(model), model.plan
    start = Version(0, phones.program.init(plan.seed), plan.server_optimizer.init(67))
    again = Coordinator("model-0", phones.program.manifest.to_layout(), plan, start, round_=0, opened_at=0.0)
    bases = {0: base_of(start, plan)}
    for verb, (*what, now) in calls:
        if verb == "submit":
            work = what[0].assignment
            update, residual = phones.update(what[0], bases[work.version])
            if isinstance(again.submit(update, now), Counted):
                phones.residuals[work.device_id] = residual
        else:
            getattr(again, verb)(*what, now)
        if again.version.number not in bases:
            bases[again.version.number] = base_of(again.version, plan)
    assert sum(verb == "submit" for verb, _ in calls) > plan.stopping.versions
    assert again.version.number == plan.stopping.versions
    assert np.array_equal(again.version.parameters, trainee.coordinator.version.parameters)


def base_of(version, plan):
    """Return what phones train from. The program is so small that a step is no smaller than a form in full."""
    made = public_form(MemoryStore(), "app/m", version, plan, None)
    return version.parameters if made is None else decode_vector(next(iter(made.files.values())), "parameters", 67)


def test_a_phone_of_top_k_comes_back_to_what_it_left_out():
    """Else the test above would say nothing of residuals."""
    simulation = simulation_of(PLANS["top_k"])
    simulation.run()
    state = simulation.trainees["model-0"].state()
    assert len(state.residuals) < sum(row.counted for row in simulation.state.rows)
    assert all(np.count_nonzero(left) > 40 for left in state.residuals.values())


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


def test_a_device_whose_training_diverges_uploads_nothing_and_gives_its_work_back():
    plan = plan_of(ROUNDS, local={"epochs": 2, "learning_rate": 1e30})
    simulation = simulation_of(plan, traces=ideal(), terms=Terms(horizon_s=59.0))  # before the first deadline
    assert simulation.run().trainings > 0
    trainee = simulation.trainees["model-0"]
    assert trainee.coordinator.counters.given_back > 0
    assert trainee.tally.upload_bytes == trainee.coordinator.counters.counted == 0


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
    ("change", "error", "match"),
    [
        ({"stopping": {"versions": None}}, InvalidInput, "no end"),
        ({"augmentation": {"transforms": [{"name": "jitter"}]}}, PlanInvalid, "jitter changes sensor windows"),
    ],
)
def test_what_cannot_be_simulated_is_refused(change, error, match):
    with pytest.raises(error, match=match):
        simulation_of(plan_of({**ROUNDS, **change}))


def test_a_share_of_no_shared_set_is_refused():
    (model,) = models_of(PLANS["shared set"])
    pool = model.population.pool
    without = replace(
        pool, training=Examples(*(part[: pool.offsets[-1]] for part in (pool.training.x, pool.training.y)))
    )
    model = replace(model, population=replace(model.population, pool=without))
    with pytest.raises(InvalidInput, match="there is none"):
        Simulation([model], ideal(), InlineExecutor(specs_of([model]), 1), Terms())


def test_uploads_weigh_what_the_encoding_makes_of_them_and_take_so_long():
    """The first upload of a device of 1 kB/s ends earlier with int8, by what it weighs less."""
    traces = always_there(40, bytes_per_s=1000.0)
    plain, int8 = (
        simulation_of(plan_of(ROUNDS, compression=name), traces=traces).run() for name in ("float32", "int8")
    )
    assert (
        {row.upload_bytes % (67 * 4) for row in plain.rows} == {row.upload_bytes % (67 + 4) for row in int8.rows} == {0}
    )
    assert plain.rows[0].closed_s - int8.rows[0].closed_s == pytest.approx((67 * 4 - 71) / 1000.0)
    assert plain.rows[0].download_bytes == int8.rows[0].download_bytes


def test_a_device_downloads_the_shared_set_once():
    plan = plan_of(ROUNDS, augmentation={"share": 0.4})
    simulation = simulation_of(plan, traces=ideal())
    rows = simulation.run().rows
    versions = sum(row.assigned for row in rows) * 67 * 4
    have = simulation.trainees["model-0"].state().have_shared
    assert sum(row.download_bytes for row in rows) == versions + len(have) * 30 * (4 * 4 + 4)


# Drop-out --------------------------------------------------------------------------------------------------------


def test_devices_drop_out_as_often_as_asked_at_any_stage_and_stay_away():
    plan = plan_of({**ROUNDS, "pacing": {"name": "rounds", "cohort": 20, "deadline_s": 60, "quorum": 1}})
    rows = simulation_of(plan, traces=ideal(400), terms=Terms(drop_out=0.5), devices=400).run().rows
    assigned, counted = (sum(getattr(row, name) for row in rows) for name in ("assigned", "counted"))
    assert counted / assigned == pytest.approx(0.5, abs=4 * np.sqrt(0.25 / assigned))
    spent, wasted = sum(row.device_s for row in rows), sum(row.wasted_device_s for row in rows)
    assert 0.3 < wasted / (spent - wasted) < 0.7  # of three stages one costs nothing, one a half, one all


def test_without_drop_out_nothing_changes_and_with_all_of_it_nothing_comes():
    plain, rare = (simulation_of(plan_of(ROUNDS), terms=Terms(seed=3, drop_out=p)).run() for p in (0.0, 1e-12))
    assert facts(plain) == facts(rare)
    lost = simulation_of(plan_of(ROUNDS), traces=ideal(), terms=Terms(drop_out=1.0, horizon_s=3600.0)).run()
    assert lost.ended == "horizon"
    assert sum(row.counted for row in lost.rows) == 0
    with pytest.raises(InvalidInput, match="drop_out"):
        simulation_of(plan_of(ROUNDS), terms=Terms(drop_out=1.5))


# What selectors know -------------------------------------------------------------------------------------------------


def one_class_each(devices):
    """Return a population in which each device has 10 examples of one class: eight of ten have the first."""
    labels = [0 if i % 10 < 8 else i % 10 - 7 for i in range(devices)]
    rng = np.random.default_rng(0)
    parts = [
        (str(i), rng.normal(label, 1, (10, 4)).astype(np.float32), np.full(10, label, np.int32))
        for i, label in enumerate(labels)
    ]
    return Population(make_pool(parts, Examples(parts[0][1], parts[0][2])), devices, 0)


def chosen(selection, traces, devices=200):
    """Return which devices were counted in the second half of 40 rounds of 10."""
    pacing = {"name": "rounds", "cohort": 10, "over_selection": 1.0, "deadline_s": 3600}
    plan = plan_of(
        {"pacing": pacing, "stopping": {"versions": 40}, "eligibility": {"min_examples": 1}}, selection=selection
    )
    model = SimulatedModel("m", plan, tiny_program().data, one_class_each(devices))
    simulation = Simulation([model], traces, InlineExecutor(specs_of([model]), 1), Terms(evaluate_every=0))
    submit, found = simulation.trainees["m"].coordinator.submit, []

    def noted(update, now):
        found.append(int(update.assignment.device_id))
        return submit(update, now)

    simulation.trainees["m"].coordinator.submit = noted
    simulation.run()
    return np.array(found[len(found) // 2 :])


def test_oort_prefers_fast_devices():
    """Half of the devices are ten times slower; who does not look at times takes them as often."""
    traces = replace(ideal(200), speed=np.where(np.arange(200) % 2, 0.1, 1.0).astype(np.float32))
    oort = {"name": "oort", "preferred_s": 0.5, "exploration": 0.3, "min_exploration": 0.0}
    assert np.mean(chosen("uniform", traces) % 2) > 0.45
    assert np.mean(chosen(oort, traces) % 2) < 0.35


def test_class_balance_takes_more_of_the_rare_classes():
    rare = {name: np.mean(chosen(name, ideal(200)) % 10 >= 8) for name in ("uniform", "class_balance")}
    assert rare["uniform"] == pytest.approx(0.2, abs=0.1)
    assert rare["class_balance"] > 0.35


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
    Checkpoints(tmp_path, 0.0, "program").save(simulation_of(plan_of(ROUNDS)))
    with pytest.raises(Conflict, match="trainer"):
        Checkpoints(tmp_path, 0.0, "fast").restore(simulation_of(plan_of(ROUNDS)))


def test_checkpoints_come_at_their_interval(tmp_path):
    now = [0.0]
    keeper = Checkpoints(tmp_path, 10.0, clock=lambda: now[0])
    simulation = simulation_of(plan_of(ROUNDS))
    for at, there in ((0.0, False), (9.0, False), (10.0, True)):
        now[0] = at
        keeper.after(simulation)
        assert (tmp_path / "checkpoint.pickle").exists() is there
