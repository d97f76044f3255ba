"""Runs a stage's trials with Ray Tune in a folder, and tells what became of each. Killed, it goes on from there."""

import json
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray
from ray import tune
from ray.tune import Callback

from actors.simulation_workers import connect
from flsys_ray.errors import InvalidInput
from tuning.configurations import told
from tuning.figures import Figures
from tuning.records import Record, Status
from tuning.search import param_space, tune_config
from tuning.space import Value
from tuning.stage import Stage
from tuning.trial import NUMBER, REPORTS, SCORE, configuration_of, run_trial

SETTINGS = {
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's own tables are not for a log
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # files that a sweep names are relative to where the command runs
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Tune would end quietly, as if all were done
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # figures lie in checkpoints, with what they are of
}
FAILURES = 1  # of a trial's process, before the trial counts as failed


def say(text: str) -> None:
    """Tell whoever waits; results alone go to standard output."""
    print(text, file=sys.stderr, flush=True)


class Progress(Callback):  # type: ignore[misc]  # Ray is not typed
    """One line for each trial that ends."""

    def __init__(self, stage: Stage) -> None:
        self._stage, self._metric = replace(stage, traces=None), stage.sweep.metric

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Say how a trial ended."""
        last = trial.last_result
        how = last.get("ended") or "ended early"
        left = sum(not one.is_finished() for one in trials if one is not trial)
        say(
            f"{told(configuration_of(trial.config, self._stage))}: {how} at version {last.get('version')}, "
            f"{self._metric} {last.get(SCORE, 0.0):.3f}; {len(trials) - left} trials ended, {left} under way"
        )

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Say that a trial failed."""
        say(f"{told(configuration_of(trial.config, self._stage))}: failed, see {trial.error_file}")


@contextmanager
def cluster() -> Iterator[None]:
    """Use Ray: the one that runs, that of `RAY_ADDRESS`, or one that is started here and ends here."""
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    logger = logging.getLogger("ray.tune")
    before = logger.level
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Ray's own, about itself
        logger.setLevel(logging.ERROR)
        started = connect()
        try:
            yield
        finally:
            logger.setLevel(before)
            if started:
                ray.shutdown()


def run_trials(stage: Stage, folder: Path, workers: int) -> list[Record]:
    """Run the trials, or those that are left, and return what is known of all, by number."""
    place = folder.resolve()
    trainable = tune.with_resources(tune.with_parameters(run_trial, stage=stage), {"cpu": 1})
    if tune.Tuner.can_restore(str(place)):
        say("going on from where it ended")
        tuner = tune.Tuner.restore(str(place), trainable, resume_errored=True, param_space=param_space(stage))
    else:
        shutil.rmtree(place, ignore_errors=True)  # killed before Tune had written anything of use
        tuner = tune.Tuner(
            trainable,
            param_space=param_space(stage),
            tune_config=tune_config(stage, workers),
            run_config=tune.RunConfig(
                name=place.name,
                storage_path=str(place.parent),
                verbose=0,
                checkpoint_config=tune.CheckpointConfig(num_to_keep=1),
                failure_config=tune.FailureConfig(max_failures=FAILURES),
                callbacks=[Progress(stage)],
            ),
        )
    results = tuner.fit()
    expected = len(stage.configurations) if stage.configurations is not None else stage.sweep.trials
    if results.num_terminated + results.num_errors != expected:
        raise InvalidInput("sweep: it was ended before all trials were: the same command goes on")
    records = [_record(result, number, stage) for number, result in enumerate(results)]
    return sorted(records, key=lambda record: record.number)


def train_anew(stage: Stage, configuration: Mapping[str, Value]) -> tuple[list[Figures], dict[str, str]]:
    """Train a configuration anew for the figures on test users. Returns those of the last version, and its digests."""
    task = ray.remote(num_cpus=1)(_test)
    figures, digests = ray.get(task.remote(stage, dict(configuration)))
    return figures, digests


def _test(stage: Stage, configuration: Mapping[str, Value]) -> tuple[list[Figures], dict[str, str]]:
    with stage.heat(configuration, test=True) as heat:
        while not heat.over:
            heat.advance()
        if not heat.finished:
            raise InvalidInput("sweep: trained anew, the best plan did not come to its last version")
        return heat.reports()[-1], heat.digests()


def _record(result: Any, place: int, stage: Stage) -> Record:
    metrics = result.metrics or {}
    config = result.config or {}
    status: Status = "failed" if result.error else metrics.get("ended") or "ended early"
    reports: list[list[Figures]] = []
    if result.checkpoint is not None:
        with result.checkpoint.as_directory() as folder:
            reports = json.loads((Path(folder) / REPORTS).read_text())
    return Record(
        number=int(config.get(NUMBER, place)),
        configuration=dict(configuration_of(config, stage)),
        status=status,
        reports=reports,
        digests=metrics.get("digests", {}),
        wall_s=float(metrics.get("time_total_s", 0.0)),
        problem=str(result.error).strip().splitlines()[-1] if result.error else metrics.get("problem"),
    )
