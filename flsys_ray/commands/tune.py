"""`flsys tune`: many plans on emulated devices, and the best of them."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer

from flsys_ray.commands.options import AsJson, console, print_json, text_of


def tune(
    sweep: Annotated[str, typer.Argument(help="The sweep: a YAML file, or the name of one in tuning/sweeps.")],
    out: Annotated[Path, typer.Option("--out", help="Its folder: table, pictures, report and best_plan.yaml.")],
    workers: Annotated[int, typer.Option(min=1, help="Trials at a time, a core each.")] = os.cpu_count() or 1,
    as_json: AsJson = False,
) -> None:
    """Try many plans in simulations, with Ray Tune. Killed, the same command goes on; finished, it shows the result."""
    for needed in ("ray", "fsspec", "pandas", "optuna", "matplotlib"):
        if find_spec(needed) is None:
            raise ModuleNotFoundError(f"No module named {needed!r}", name=needed)
    from tuning.study import run_sweep
    from tuning.sweep import find_sweep, parse_sweep

    file = find_sweep(sweep)
    summary = run_sweep(parse_sweep(text_of(file, "sweep"), file.name), out, workers)
    if as_json:
        print_json(summary)
    else:
        _report(summary, out)


def _report(summary: dict[str, Any], out: Path) -> None:
    best, test, metric = summary["best"], summary["test"]["mean"], summary["metric"]
    values = ", ".join(f"{name} = {value}" for name, value in best["configuration"].items())
    users = summary["users"]
    lines = (
        f"finished: {summary['trials']} trials of {summary['builtin']} on {summary['data']}",
        f"best: trial {best['trial']}: {values}",
        f"{metric} on {users['validation']} validation users, which chose it: {_spread(best['validation'], metric)}",
        f"{metric} on {users['test']} test users, trained anew: {_spread(test, metric)}",
        f"{out / 'report.html'}, {out / 'trials.parquet'}, {out / 'best_plan.yaml'}",
    )
    for line in lines:
        console.print(line, markup=False)


def _spread(figures: dict[str, Any], metric: str) -> str:
    if figures["lowest"] == figures["highest"]:
        return f"{figures[metric]:.3f}"
    return f"{figures[metric]:.3f} ({figures['lowest']:.3f} to {figures['highest']:.3f} over seeds)"
