"""A sweep in a folder, from the YAML file to the best plan.

The folder gets `sweep.json` (the sweep, every default written out), `program.tflite`, `tune/` (Ray Tune's own: trials
and checkpoints), `trials.parquet`, `curves.parquet`, `best_plan.yaml`, three pictures, `report.html`, and last of all
`summary.json`.
"""

import json
import os
from pathlib import Path
from typing import Any

from flsys_ray.core.plan import TrainingPlan
from flsys_ray.data.dataset import open_dataset
from flsys_ray.errors import Conflict, InvalidInput
from flsys_ray.simulation.experiment import builtin_for
from tuning.configurations import check, fixed_configurations, plan_of, told
from tuning.figures import Figures, mean_of
from tuning.plots import draw_all
from tuning.records import Record, best_of
from tuning.report import Findings, write_report
from tuning.stage import Stage, stage_of
from tuning.sweep import Sweep
from tuning.tables import write_tables


def run_sweep(sweep: Sweep, out: Path, workers: int) -> dict[str, Any]:
    """Run a sweep, or what is left of it, and return its summary. Of a finished one it returns the summary only.

    Raises:
        InvalidInput: a configuration makes no plan, before anything starts; trials failed, or none finished.
        Conflict: the folder holds another sweep.
    """
    dataset = open_dataset(sweep.data)
    sweep = sweep.model_copy(update={"builtin": sweep.builtin or builtin_for(dataset)})
    configurations = None if sweep.search.name == "optuna" else fixed_configurations(sweep)
    check(sweep, configurations or ())
    claim(out, sweep)
    kept = out / "summary.json"
    if kept.is_file():
        return dict(json.loads(kept.read_text()))
    stage = stage_of(sweep, dataset, configurations, out)
    check(sweep, configurations or (), stage.network.program)
    from tuning.tuner import cluster, run_trials, say, train_anew

    with cluster():
        records = run_trials(stage, out / "tune", workers)
        write_tables(records, sweep, out)
        _all_ran(records, out)
        best = best_of(records, sweep.metric)
        say(f"best: trial {best.number} ({told(best.configuration)}); it is trained anew for its figure on test users")
        tested, digests = train_anew(stage, best.configuration)
    return _conclude(stage, records, best, (tested, digests), out)


def claim(out: Path, sweep: Sweep) -> None:
    """Write the sweep into its folder. Raises `Conflict` if another one is there."""
    out.mkdir(parents=True, exist_ok=True)
    path, text = out / "sweep.json", sweep.to_json()
    if not path.is_file():
        _write(path, text)
    elif path.read_text() != text:
        raise Conflict(f"{out} holds another sweep (its sweep.json): give each sweep a folder of its own")


def _all_ran(records: list[Record], out: Path) -> None:
    failed = [record for record in records if record.status == "failed"]
    if failed:
        raise InvalidInput(
            f"sweep: {len(failed)} of {len(records)} trials failed, the first with: {failed[0].problem}. "
            f"{out / 'trials.parquet'} has all; the same command tries them again"
        )


def _conclude(
    stage: Stage, records: list[Record], best: Record, test: tuple[list[Figures], dict[str, str]], out: Path
) -> dict[str, Any]:
    """Write all that people read, and the summary when all else is there."""
    sweep, (tested, digests) = stage.sweep, test
    plan = plan_of(sweep, best.configuration, sweep.seeds[0])
    text = plan_text(plan, sweep, best)
    _write(out / "best_plan.yaml", text)
    pictures = draw_all(records, sweep, out)
    mean = mean_of(tested, sweep.metric)
    split = stage.split(sweep.seeds[0])
    users = {part: len(getattr(split, part)) for part in ("training", "validation", "test")}
    write_report(Findings(sweep, records, users, mean, text), pictures, out / "report.html")
    summary = {
        "data": sweep.data,
        "builtin": sweep.builtin,
        "metric": sweep.metric,
        "users": users,
        "trials": len(records),
        "best": {
            "trial": best.number,
            "configuration": dict(best.configuration),
            "validation": best.last(sweep.metric),
            "digests": dict(best.digests),
        },
        "test": {"mean": mean, "seeds": tested, "digests": digests},
    }
    _write(out / "summary.json", json.dumps(summary, indent=2) + "\n")
    return summary


def plan_text(plan: TrainingPlan, sweep: Sweep, best: Record) -> str:
    """Return the best plan as YAML, and where it comes from."""
    score = best.last(sweep.metric)[sweep.metric]
    return (
        f"# flsys tune: {sweep.builtin} on {sweep.data}, trial {best.number}: {told(best.configuration)}\n"
        f"# {sweep.metric} on validation users {score:.3f}, mean of seeds {', '.join(map(str, sweep.seeds))}\n"
        + plan.to_yaml()
    )


def _write(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    os.replace(part, path)
