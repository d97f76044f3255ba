"""`flsys tune` for real: a sweep is killed in the middle of its trials, goes on, and ends with the simulator's bits."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq
import pytest
from cloud_world import open_world
from commands import flsys
from ray.tune.schedulers import AsyncHyperBandScheduler
from served import served

from flsys_ray.core.plan import parse_plan_yaml
from flsys_ray.data.dataset import open_dataset
from flsys_ray.programs.runner import Program
from flsys_ray.simulation.experiment import Experiment, Network, builtin, run
from flsys_ray.simulation.results import Outcome
from tuning.configurations import fixed_configurations
from tuning.search import tune_config
from tuning.stage import Stage, users_of
from tuning.sweep import parse_sweep

DATA, SEEDS, KILL_S = "synthetic-texts", (1, 2), 200.0
SWEEP = f"""
data: {DATA}
plan: {{pacing: {{name: rounds, cohort: 8, deadline_s: 60}}, eligibility: {{min_examples: 1}}}}
rounds: 4
seed: 1
seeds: [1, 2]
target: 0.5
trainer: program
search: grid
space:
  local.learning_rate: {{grid: [0.1, 1.0]}}
"""


def tune(folder: Path, *more: str) -> "subprocess.Popen[str]":
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    command = [sys.executable, "-m", "flsys_ray", "tune", "sweep.yaml", "--out", "out", "--workers", "2", *more]
    return subprocess.Popen(
        command,
        cwd=folder,
        env={**environment, "RAY_AUTH_MODE": "disabled"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=_as_in_a_terminal,
    )


def _as_in_a_terminal() -> None:
    """Have Ctrl-C end what is started: a shell has what runs in its background ignore it, and so all below that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def after_a_checkpoint(process: "subprocess.Popen[str]", trials: Path, number: signal.Signals) -> str:
    """Send a signal to all of it once a trial has a checkpoint; return what it told."""
    end = time.monotonic() + KILL_S
    try:
        while not list(trials.glob("trial-*/checkpoint_*/reports.json")):
            assert time.monotonic() < end, "no trial has reported"
            assert process.poll() is None, process.communicate()[1]
            threading.Event().wait(0.02)
        os.killpg(process.pid, number)
        return process.communicate(timeout=120)[1]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def simulated(plan: str, rate: float, seed: int, training: Sequence[str], held_out: Sequence[str]) -> Outcome:
    base = parse_plan_yaml(plan)
    local = base.local.model_copy(update={"learning_rate": rate})
    changed = base.model_copy(update={"local": local, "seed": seed})
    network, dataset = builtin("sentiment"), open_dataset(DATA)
    return run([Experiment(network, changed, dataset, held_out, training, trainer="program")])


pytestmark = pytest.mark.timeout(600)  # on a machine that others use too


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a sweep that was killed once, and finished."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "sweep.yaml").write_text(SWEEP)
    after_a_checkpoint(tune(folder), folder / "out" / "tune", signal.SIGKILL)
    process = tune(folder, "--json")
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    assert "going on from where it ended" in err
    assert json.loads(out) == json.loads((folder / "out" / "summary.json").read_text())
    return folder


def test_a_killed_sweep_ends_with_the_bits_of_the_simulator(finished: Path) -> None:
    out = finished / "out"
    summary, plan = json.loads((out / "summary.json").read_text()), (out / "best_plan.yaml").read_text()
    rate = float(summary["best"]["configuration"]["local.learning_rate"])
    assert parse_plan_yaml(plan).local.learning_rate == rate
    for seed in SEEDS:
        users = users_of(open_dataset(DATA).users, 1, seed)
        alone = simulated(plan, rate, seed, users.training, users.validation)
        assert summary["best"]["digests"][str(seed)] == alone.digests["sentiment"]
        rest = sorted({*users.training, *users.validation})
        tested = simulated(plan, rate, seed, rest, users.test)
        assert summary["test"]["digests"][str(seed)] == tested.digests["sentiment"]
        figures = next(one for one in summary["test"]["seeds"] if one["seed"] == seed)
        assert figures["accuracy"] == tested.rows[-1].accuracy


def test_the_test_with_the_sweeps_own_seed_is_what_flsys_simulate_does(finished: Path) -> None:
    plan, json_file = finished / "out" / "best_plan.yaml", finished / "simulated.json"
    words = ["simulate", str(plan), "--data", DATA, "--trainer", "program", "--json", str(json_file)]
    flsys(*words)
    summary = json.loads((finished / "out" / "summary.json").read_text())
    assert json.loads(json_file.read_text())["digests"]["sentiment"] == summary["test"]["digests"]["1"]


def test_the_folder_has_table_report_and_plan(finished: Path) -> None:
    out = finished / "out"
    trials, curves = pq.read_table(out / "trials.parquet").to_pylist(), pq.read_table(out / "curves.parquet")
    assert [(row["trial"], row["status"], row["versions"], row["seeds"]) for row in trials] == [
        (0, "finished", 4, 2),
        (1, "finished", 4, 2),
    ]
    assert curves.num_rows == 2 * 2 * 4
    best = max(trials, key=lambda row: row["accuracy"])
    summary = json.loads((out / "summary.json").read_text())
    assert best["best"]
    assert best["trial"] == summary["best"]["trial"]
    assert best["accuracy"] == summary["best"]["validation"]["accuracy"]
    assert {path.name for path in out.iterdir()} == {
        *("sweep.json", "summary.json", "best_plan.yaml", "report.html", "trials.parquet", "curves.parquet", "tune"),
        "program.tflite",
        *("curves.svg", "parallel.svg", "pareto.svg"),
    }


def test_a_finished_sweep_only_shows_its_result_and_another_is_refused(finished: Path) -> None:
    again = tune(finished)
    out, err = again.communicate(timeout=60)
    assert (again.returncode, err) == (0, "")
    assert out.startswith("finished: 2 trials of sentiment on synthetic-texts\nbest: trial ")
    (finished / "sweep.yaml").write_text(SWEEP.replace("rounds: 4", "rounds: 5"))
    other = tune(finished)
    assert "flsys: out holds another sweep" in other.communicate(timeout=60)[1]
    assert other.returncode == 1


def test_the_best_plan_makes_a_model_of_a_cloud(finished: Path) -> None:
    """As docs/tuning.md says: `flsys models create NAME --plan best_plan.yaml`, here with the sweep's own program."""
    out = finished / "out"
    program = (out / "program.tflite").read_bytes()
    for world in open_world(program, Program.load(program).manifest.parameters):
        key = world.app()
        with served(world.http.app) as url:
            words = ["models", "create", "tuned", "--program", str(out / "program.tflite")]
            words += ["--plan", str(out / "best_plan.yaml"), "--url", url, "--app-key", key, "--json"]
            assert json.loads(flsys(*words))["state"] == "training"
        info = world.info(key, "tuned")
        plan = parse_plan_yaml((out / "best_plan.yaml").read_text())
        assert info["plan"] == plan.model_dump(mode="json")
        best = json.loads((out / "summary.json").read_text())["best"]["configuration"]
        assert info["plan"]["local"]["learning_rate"] == float(best["local.learning_rate"])
        assert world.work(world.device(key, "one"), "tuned")["version"] == 0


DRAWN = f"""
data: {DATA}
plan: {{pacing: {{name: rounds, cohort: 8, quorum: 1, deadline_s: 60}}, eligibility: {{min_examples: 1}}}}
rounds: 3
seed: 6
target: 0.5
trainer: program
search: optuna
trials: 3
space:
  pacing.cohort: {{randint: [4, 8]}}
  pacing.quorum: {{randint: [1, 8]}}
"""


def test_ctrl_c_ends_a_sweep_that_goes_on_and_a_configuration_without_a_plan_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text(DRAWN)
    interrupted = tune(tmp_path, "--workers", "1")
    assert after_a_checkpoint(interrupted, tmp_path / "out" / "tune", signal.SIGINT) == ""
    assert interrupted.returncode == 130
    assert not (tmp_path / "out" / "summary.json").exists()
    process = tune(tmp_path, "--workers", "1", "--json")
    out, err = process.communicate(timeout=400)
    assert process.returncode == 0, err
    assert "going on from where it ended" in err
    trials = pq.read_table(tmp_path / "out" / "trials.parquet").to_pylist()
    assert [(row["trial"], row["status"], row["versions"]) for row in trials] == [
        (0, "finished", 3),
        (1, "finished", 3),
        (2, "refused", None),
    ]
    assert "quorum (5) is larger than cohort (4)" in trials[2]["problem"]
    assert json.loads(out)["best"]["trial"] in (0, 1)


# What Tune is told, without running it ----------------------------------------------------------------------------


def stage_of(search: str, space: str) -> Stage:
    sweep = parse_sweep(f"data: {DATA}\nbuiltin: sentiment\nrounds: 9\ntarget: 0.5\nseed: 5\n{search}\nspace: {space}")
    configurations = None if sweep.search.name == "optuna" else fixed_configurations(sweep)
    return Stage(sweep, Network("sentiment", b""), (), None, configurations)


def test_asha_ends_trials_by_version() -> None:
    stage = stage_of("search: {name: asha, grace: 2, reduction: 3}\ntrials: 4", "{local.epochs: {randint: [1, 9]}}")
    config = tune_config(stage, 2)
    assert isinstance(config.scheduler, AsyncHyperBandScheduler)
    trial = SimpleNamespace(trial_id="first")
    bracket = config.scheduler._brackets[0]
    assert [milestone for milestone, _ in bracket._rungs] == [6, 2]
    assert bracket.on_result(trial, 2, 0.9) == "CONTINUE"
    assert bracket.on_result(SimpleNamespace(trial_id="second"), 2, 0.1) == "STOP"


def test_optuna_draws_within_the_space_and_the_same_again() -> None:
    space = "{a: {choice: [x, {name: y}]}, b.c: {randint: [2, 4]}, d: {loguniform: [0.01, 1]}, e: {uniform: [-1, 0]}}"
    stage = stage_of("search: optuna\ntrials: 4", space)
    draws = []
    for _ in range(2):
        search = tune_config(stage, 1).search_alg
        draws.append([search.suggest(f"trial-{number}") for number in range(20)])
    assert draws[0] == draws[1]
    for drawn in draws[0]:
        assert drawn["a"] in ("x", '{"name": "y"}')
        assert drawn["b.c"] in (2, 3, 4)
        assert 0.01 <= drawn["d"] <= 1
        assert -1 <= drawn["e"] <= 0
