"""`flsys simulate`: models train on emulated devices in virtual time."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from flsys_ray.commands.options import console, print_json, text_of
from flsys_ray.errors import InvalidInput

if TYPE_CHECKING:
    from flsys_ray.simulation.engine import SimulatedModel
    from flsys_ray.simulation.executors import Executor
    from flsys_ray.simulation.experiment import Experiment
    from flsys_ray.simulation.results import Row
    from flsys_ray.simulation.traces import Traces
    from flsys_ray.simulation.training import TrainerSpec


def simulate(
    plans: Annotated[list[Path], typer.Argument(help="Training plans (YAML). Several: models that train at once.")],
    data: Annotated[list[str], typer.Option("--data", help="The data set; with several plans, one for each.")],
    rounds: Annotated[int | None, typer.Option(min=1, help="Versions to train. Default: the plan's stopping.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Of plans, devices and split. Default: the plan's.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Trainings at a time.")] = os.cpu_count() or 1,
    executor: Annotated[Literal["ray", "inline"], typer.Option(help="Ray workers, or this machine alone.")] = "inline",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the summary; `-`: print it.")] = None,
    builtin: Annotated[list[str] | None, typer.Option(help="The models. Default: by the form of the data.")] = None,
    trainer: Annotated[Literal["fast", "program"], typer.Option(help="A fast graph, or the phone's program.")] = "fast",
    devices: Annotated[int | None, typer.Option(min=1, help="Default: one for each training user.")] = None,
    examples: Annotated[int | None, typer.Option(min=1, help="The most examples that a device has.")] = None,
    classes_per_device: Annotated[int | None, typer.Option(min=1, help="Of its user's classes. Default: all.")] = None,
    shared: Annotated[str | None, typer.Option(help="The shared set: a data set, by name or folder.")] = None,
    shared_part: Annotated[
        float | None, typer.Option(help="Draw the shared set: so large a part of the training users' examples.")
    ] = None,
    drop_out: Annotated[float, typer.Option(help="How likely an assignment is lost, whatever the traces say.")] = 0.0,
    traces: Annotated[Path | None, typer.Option(help="Device traces (Parquet). Default: made up.")] = None,
    ideal: Annotated[bool, typer.Option("--ideal", help="Equal devices that are always there.")] = False,
    check_in_every_s: Annotated[float, typer.Option(min=0.0, help="A device asks no more often.")] = 15.0,
    evaluate_every: Annotated[int, typer.Option(min=0, help="Versions between evaluations; 0: none.")] = 1,
    out: Annotated[Path | None, typer.Option(help="Folder for rounds.parquet, summary.json and checkpoints.")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the checkpoint in --out.")] = False,
    checkpoint_every_s: Annotated[float, typer.Option(min=0.0, help="Seconds between checkpoints.")] = 60.0,
) -> None:
    """Train on emulated devices in virtual time. Same seed, same result, for any executor and number of workers."""
    from flsys_ray.simulation.checkpoint import Checkpoints
    from flsys_ray.simulation.engine import Simulation, Terms
    from flsys_ray.simulation.experiment import prepare
    from flsys_ray.simulation.results import write_rows, write_summary

    if resume and out is None:
        raise InvalidInput("--resume needs --out, the folder with the checkpoint")
    given = _Given(rounds, seed, devices, examples, classes_per_device, shared, shared_part, trainer)
    models, specs = prepare(_experiments(plans, data, builtin or [], given))
    used_seed = models[0].plan.seed
    fleet = _traces(traces, models, used_seed, ideal=ideal)
    terms = Terms(
        seed=used_seed,
        check_in_every_s=check_in_every_s,
        evaluate_every=evaluate_every,
        drop_out=drop_out,
    )
    if out is not None:
        out.mkdir(parents=True, exist_ok=True)
    pool = _executor(executor, specs, workers)
    try:
        simulation = Simulation(models, fleet, pool, terms)
        keeper = Checkpoints(out, checkpoint_every_s, trainer) if out is not None else None
        if keeper is not None and resume:
            keeper.restore(simulation)
        show = _Shown(models, quiet=str(json_file) == "-")
        with show:
            outcome = simulation.run(show.round, keeper.after if keeper is not None else None)
    finally:
        pool.close()
    outcome.settings = {"executor": executor, "workers": workers, "trainer": trainer, "data": data}
    if out is not None:
        write_rows(outcome.rows, out / "rounds.parquet")
        write_summary(outcome, out / "summary.json")
    if json_file is not None and str(json_file) != "-":
        write_summary(outcome, json_file)
    if str(json_file) == "-":
        print_json(outcome.summary())
    else:
        _report(outcome.summary(), outcome.rows)


@dataclass(frozen=True, slots=True)
class _Given:
    """Options that all models share: see `Experiment`."""

    rounds: int | None
    seed: int | None
    devices: int | None
    examples: int | None
    classes_per_device: int | None
    shared: str | None
    shared_part: float | None
    trainer: Literal["fast", "program"]


def _experiments(plans: list[Path], data: list[str], builtins: list[str], given: _Given) -> list["Experiment"]:
    """Return the models that are to be trained."""
    from flsys_ray.core.plan import parse_plan_yaml
    from flsys_ray.data.dataset import dataset_at, open_dataset
    from flsys_ray.data.schema import is_dataset
    from flsys_ray.simulation.experiment import Experiment, builtin, builtin_for, ended

    if len(data) not in (1, len(plans)) or len(builtins) not in (0, 1, len(plans)):
        raise InvalidInput(f"{len(plans)} plans: give --data (and --builtin, if at all) once, or once for each")
    parsed = [ended(parse_plan_yaml(text_of(path, "plan")), given.rounds, given.seed) for path in plans]
    if (given.shared or given.shared_part) and not any(plan.augmentation.share for plan in parsed):
        raise InvalidInput("a shared set, and augmentation.share is 0 in each plan: no device would take of it")
    shared = None
    if given.shared is not None:
        folder = Path(given.shared)
        shared = dataset_at(folder) if is_dataset(folder) else open_dataset(given.shared)
    found: list[Experiment] = []
    for number, plan in enumerate(parsed):
        dataset = open_dataset(data[number] if len(data) > 1 else data[0])
        name = builtins[min(number, len(builtins) - 1)] if builtins else builtin_for(dataset)
        called = name if name not in {one.name for one in found} else f"{name}-{number + 1}"
        found.append(
            Experiment(
                builtin(name),
                plan,
                dataset,
                devices=given.devices,
                examples_per_device=given.examples,
                classes_per_device=given.classes_per_device,
                shared=shared,
                shared_part=given.shared_part,
                trainer=given.trainer,
                name=called,
            )
        )
    return found


def _traces(path: Path | None, models: list["SimulatedModel"], seed: int, *, ideal: bool) -> "Traces":
    from flsys_ray.simulation.experiment import fleet_for
    from flsys_ray.simulation.traces import read_traces

    return read_traces(path) if path is not None else fleet_for(models, seed, ideal=ideal)


def _executor(name: str, specs: dict[str, "TrainerSpec"], workers: int) -> "Executor":
    if name == "ray":
        from actors.simulation_workers import RayExecutor

        return RayExecutor(specs, workers)
    from flsys_ray.simulation.executors import InlineExecutor

    return InlineExecutor(specs, workers)


class _Shown:
    """A progress bar in a terminal, else one line a round."""

    def __init__(self, models: list["SimulatedModel"], *, quiet: bool) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self._quiet = quiet
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=console, disable=quiet or not console.is_terminal)
        self._tasks = {m.name: self._bar.add_task(m.name, total=m.plan.stopping.versions) for m in models}

    def __enter__(self) -> None:
        self._bar.start()

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def round(self, row: "Row") -> None:
        """Show that a round has closed."""
        if row.version is not None:
            self._bar.update(self._tasks[row.model], completed=row.version)
        if not self._quiet and not console.is_terminal:
            console.print(_line(row), markup=False)


def _line(row: "Row") -> str:
    version = "no version" if row.version is None else f"v{row.version}"
    loss = "-" if row.training_loss is None else f"{row.training_loss:.3f}"
    counts = f"{row.counted} of {row.assigned} counted, {row.late} late"
    return f"{row.model} round {row.round}: {version}, {counts}, training loss {loss}, at {row.closed_s:.0f} s"


def _report(summary: dict[str, Any], rows: list["Row"]) -> None:
    for model, row in summary["last"].items():
        console.print(
            f"{model} v{row['version']}: accuracy {row['accuracy']:.3f}, macro-F1 {row['macro_f1']:.3f}, "
            f"loss {row['loss']:.3f} on held-out users",
            markup=False,
        )
    console.print(
        f"{summary['trainings']} trainings in {summary['wall_s']:.1f} s "
        f"({summary['virtual_s'] / 3600:.1f} h of virtual time, {len(rows)} rounds): "
        + ", ".join(f"{model} v{n} {summary['digests'][model][:12]}" for model, n in summary["versions"].items()),
        markup=False,
    )
