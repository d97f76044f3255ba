"""`flsys demo`: the main job on this machine, with the parts that an operator, developers and phones would use.

Two apps have their models trained at once, each by a plan of its own, on the same phones. The cloud is a `flsys up` of
its own; the phones are real device runtimes that reach it over HTTP.
"""

import json
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flsys_ray.commands.options import AsJson, console, errors, print_json, print_table

if TYPE_CHECKING:
    from flsys_ray.commands.demo_apps import Outcome, Training
    from flsys_ray.data.dataset import Dataset

LINES = 5  # of progress, a model
NEXT = """next       the same by hand, in small steps: docs/guide.md
           an app and a model of your own: examples/third_party_app
           every round in a browser: flsys demo --keep out, then flsys up --store out/store and its /dashboard"""


def demo(
    phones: Annotated[
        int | None, typer.Option(min=1, help="How many; default: one for each training user of the sensor data.")
    ] = None,
    versions: Annotated[int, typer.Option(min=1, help="How many versions of each model to commit.")] = 20,
    data: Annotated[str | None, typer.Option(help="A data set of sensor data; default: the best at hand.")] = None,
    texts: Annotated[str | None, typer.Option(help="A data set of texts; default: the best at hand.")] = None,
    keep: Annotated[Path | None, typer.Option(help="Keep store, phones, logs and demo.json in this folder.")] = None,
    as_json: AsJson = False,
) -> None:
    """Train both models at once: a cloud, two apps on the same phones, HTTP, the result.

    HAR-Wild learns what people do from the phones' sensors, the sentiment model how they feel from their texts.
    Compared with version 0, on people whose data no phone holds.
    """
    began = time.monotonic()

    def say(text: str) -> None:
        if not as_json:
            console.print(text)

    with _ended_in_order(), _folder(keep) as folder:
        count, outcomes = _run(folder, (data, texts), phones, versions, say, quiet=as_json)
        report = _report(count, outcomes, time.monotonic() - began)
        if keep is not None:
            (folder / "demo.json").write_text(json.dumps(report, indent=2) + "\n")
    if as_json:
        print_json(report)
        return
    _say_outcome(outcomes)
    say(f"{report['updates']} updates of {count} phones in {time.monotonic() - began:.0f} s in all")
    say(NEXT)


def _run(
    folder: Path,
    names: tuple[str | None, str | None],
    phones: int | None,
    versions: int,
    say: Callable[[str], None],
    *,
    quiet: bool,
) -> "tuple[int, Sequence[Outcome]]":
    """Return how many phones there were, and what came of each model."""
    from flsys_ray.builtin import compile_builtin
    from flsys_ray.commands.demo_apps import FITNESS, KEYBOARD, Training, opened, plan_of
    from flsys_ray.commands.demo_cloud import create_apps, own_cloud

    parts = (FITNESS, KEYBOARD)
    data_sets = [opened(part, name) for part, name in zip(parts, names, strict=True)]
    with ThreadPoolExecutor(2) as pool, ExitStack() as stack:
        programs = [pool.submit(compile_builtin, part.model) for part in parts]
        url = stack.enter_context(own_cloud(folder))
        say(f"cloud      ready at {url} (Ray, Serve, a folder as object store)")
        apps = create_apps(folder, url, [part.app for part in parts])
        trainings = [
            Training.of(part, part.model, data_set, url, app)
            for part, data_set, app in zip(parts, data_sets, apps, strict=True)
        ]
        for training in trainings:
            stack.enter_context(training.cloud)
        count = phones or len(trainings[0].users)
        for training, program in zip(trainings, programs, strict=True):
            training.submit(plan_of(training.part, count, versions), program.result())
            training.cloud.act(training.name, "start")
            _introduce(training, len(program.result()), say)
        _say_phones(trainings, count, say)
        _train(folder, trainings, count, versions, quiet=quiet)
        return count, list(pool.map(Training.outcome, trainings))


def _train(folder: Path, trainings: "Sequence[Training]", count: int, versions: int, *, quiet: bool) -> None:
    """Run the phones until all models have their last version."""
    from flsys_ray.commands.fleets import Watch
    from flsys_ray.device.fleet import run_fleet

    fleets = [training.fleet(count, folder / "phones") for training in trainings]
    clouds = {training.name: training.cloud for training in trainings}
    stop = threading.Event()
    watch = Watch(clouds, versions, None, stop, every=max(1, versions // LINES), quiet=quiet)
    with watch.running():
        run_fleet(*fleets, stop=stop, on_event=watch.on_event)


# What is said -----------------------------------------------------------------------------------------------------


def _introduce(training: "Training", program_bytes: int, say: Callable[[str], None]) -> None:
    from flsys_ray.commands.demo_apps import plan_line

    data: Dataset = training.dataset
    held_out = len(data.users) - len(training.users)
    note = "" if data.source == "real" else " - set FLSYS_DATA to use real data"
    say(f"{training.name:<10} for the app {training.part.app!r}, a program of {program_bytes / 1024:.0f} kB")
    say(f"           plan: {plan_line(training.cloud.info(training.name).plan)}")
    say(f"           {data.source.upper()} data: {data.title}: {len(data.users)} users, {held_out} held out{note}")


def _say_phones(trainings: "Sequence[Training]", count: int, say: Callable[[str], None]) -> None:
    held = " and ".join(training.on_a_phone(count) for training in trainings)
    say(f"phones     {count}, each with {held}; both apps are on each, and one trains at a time")


def _say_outcome(outcomes: "Sequence[Outcome]") -> None:
    from rich import box
    from rich.table import Table

    columns = (
        "model",
        "app",
        "versions",
        "accuracy",
        "macro-F1",
        "always the commonest",
        "updates",
        "MB up",
        "seconds",
    )
    table = Table(*columns, box=box.MARKDOWN)
    for outcome in outcomes:
        table.add_row(*outcome.row())
    print_table(table)
    users = ", ".join(f"{result.users} ({result.examples} examples)" for result in (o.results[0] for o in outcomes))
    console.print(f"accuracy and macro-F1: version 0 -> last, on users whose data no phone holds: {users}")


def _report(phones: int, outcomes: "Sequence[Outcome]", seconds: float) -> dict[str, Any]:
    start_s = min(outcome.at_s[0] for outcome in outcomes)
    return {
        "phones": phones,
        "updates": sum(outcome.updates for outcome in outcomes),
        "seconds": round(seconds, 1),
        "models": [outcome.as_json(start_s) for outcome in outcomes],
    }


# Around it --------------------------------------------------------------------------------------------------------


@contextmanager
def _ended_in_order() -> Iterator[None]:
    """Let Ctrl-C, SIGTERM and a closed terminal end the block once, as an exception does: nothing stays behind."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def end(number: int, _: FrameType | None) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        errors.print("flsys: stopping the phones and the cloud")
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep
        return
    with tempfile.TemporaryDirectory(prefix="flsys-demo-", ignore_cleanup_errors=True) as name:
        yield Path(name)
