"""One trial, as Ray Tune runs it: report after every evaluated version, with a checkpoint to go on from.

A checkpoint holds the simulations and, in `reports.json`, all figures up to there: tables are made of these.
"""

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ray import tune

from flsys_ray.errors import InvalidInput
from tuning.configurations import plan_of
from tuning.figures import mean_of
from tuning.heat import Heat
from tuning.space import Value
from tuning.stage import Stage

NUMBER = "number"
SCORE = "score"
REPORTS = "reports.json"
WORST = 0.0


def run_trial(config: Mapping[str, Any], stage: Stage) -> None:
    """Train one configuration: the one of a number, or the one that the search has made.

    A configuration that makes no plan is reported as refused, with the worst score: a search that learns goes on.
    """
    configuration = configuration_of(config, stage)
    try:
        plan_of(stage.sweep, configuration, stage.sweep.seeds[0])
    except InvalidInput as error:
        tune.report({SCORE: WORST, "version": 0, "ended": "refused", "problem": error.message})
        return
    with stage.heat(configuration) as heat:
        _go_on(heat)
        while not heat.over:
            heat.advance()
            with tempfile.TemporaryDirectory(prefix="flsys-tune-") as folder:
                heat.save(Path(folder))
                reports = heat.reports()
                (Path(folder) / REPORTS).write_text(json.dumps(reports))
                tune.report(_report(heat, reports, stage), checkpoint=tune.Checkpoint.from_directory(folder))


def configuration_of(config: Mapping[str, Any], stage: Stage) -> Mapping[str, Value]:
    """Return the configuration that Tune's config stands for."""
    if stage.configurations is not None:
        return stage.configurations[int(config[NUMBER])]
    return {name: stage.sweep.space[name].near(value) for name, value in config.items()}


def _go_on(heat: Heat) -> None:
    kept = tune.get_checkpoint()
    if kept is not None:
        with kept.as_directory() as folder:
            heat.restore(Path(folder))


def _report(heat: Heat, reports: list[Any], stage: Stage) -> dict[str, Any]:
    metric = stage.sweep.metric
    return {
        SCORE: mean_of(reports[-1], metric)[metric] if reports else WORST,
        "version": min(figures["version"] for figures in reports[-1]) if reports else 0,
        "ended": "finished" if heat.finished else "stalled" if heat.over else None,
        "problem": None,
        "digests": heat.digests(),
    }
