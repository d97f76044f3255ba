"""`flsys device` and `flsys devices`: the real device runtime, once or many times."""

import signal
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Annotated

import typer

from flsys_ray.commands.options import (
    AppKey,
    AsJson,
    EnrolKey,
    Url,
    cloud_url,
    console,
    developer,
    print_json,
    split_names,
)
from flsys_ray.errors import InvalidInput

HAR_MODELS = "har-wild"

one = typer.Typer(no_args_is_help=True, help="One phone.")
many = typer.Typer(no_args_is_help=True, help="Many phones, for load and demonstrations.")

Models = Annotated[str, typer.Option(help="Models to train, with commas.")]
Data = Annotated[str | None, typer.Option(help="A data set; default: the best at hand.")]
Folder = Annotated[Path | None, typer.Option(help="Where phones keep their state; default: a temporary folder.")]
UntilVersion = Annotated[int | None, typer.Option(min=1, help="Stop when the models have this version.")]
Seconds = Annotated[float | None, typer.Option(min=0.1, help="Stop after so long.")]


@one.callback()
@many.callback()
def _devices() -> None:
    pass


@one.command("run")
def run_one(
    user: Annotated[str, typer.Option(help="Whose data the phone holds.")],
    data: Data = None,
    models: Models = HAR_MODELS,
    folder: Folder = None,
    until_version: UntilVersion = None,
    seconds: Seconds = None,
    url: Url = None,
    app_key: AppKey = None,
    enrol_key: EnrolKey = None,
    as_json: AsJson = False,
) -> None:
    """Run one phone that holds one user's data."""
    _run(1, data, models, (user,), folder, until_version, seconds, 1, url, app_key, enrol_key, as_json)


@many.command("run")
def run_many(
    count: Annotated[int | None, typer.Option(min=1, help="How many; default: one for each training user.")] = None,
    data: Data = None,
    models: Models = HAR_MODELS,
    folder: Folder = None,
    held_out: Annotated[float, typer.Option(min=0, max=0.9, help="Share of users that no phone holds.")] = 0.2,
    seed: Annotated[int, typer.Option(help="Of the split by user.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Threads that train.")] = 2,
    until_version: UntilVersion = None,
    seconds: Seconds = None,
    url: Url = None,
    app_key: AppKey = None,
    enrol_key: EnrolKey = None,
    as_json: AsJson = False,
) -> None:
    """Run many phones, each with a user's data. Users that are held out are left for `flsys models evaluate`."""
    from flsys_ray.commands.fleets import data_for, training_users

    dataset = data_for(data)
    users = training_users(dataset, held_out, seed)
    _run(
        count or len(users),
        dataset.name,
        models,
        users,
        folder,
        until_version,
        seconds,
        workers,
        url,
        app_key,
        enrol_key,
        as_json,
    )


@many.command()
def revoke(
    device_id: Annotated[str | None, typer.Argument(help="One device; without it, --all.")] = None,
    every: Annotated[
        bool, typer.Option("--all", help="All tokens that there are now: devices may enrol again.")
    ] = False,
    url: Url = None,
    app_key: AppKey = None,
) -> None:
    """Refuse a device's tokens and, until `flsys devices readmit`, its enrolment; or all tokens of an app."""
    if (device_id is None) == (not every):
        raise InvalidInput("name one device, or say --all")
    with developer(url, app_key) as cloud:
        if device_id is None:
            cloud.revoke_tokens()
        else:
            cloud.revoke_device(device_id)


@many.command()
def readmit(device_id: str, url: Url = None, app_key: AppKey = None) -> None:
    """Let a revoked device enrol again."""
    with developer(url, app_key) as cloud:
        cloud.readmit_device(device_id)


def _run(
    count: int,
    data: str | None,
    models: str,
    users: tuple[str, ...],
    folder: Path | None,
    until_version: int | None,
    seconds: float | None,
    workers: int,
    url: str | None,
    app_key: str | None,
    enrol_key: str | None,
    as_json: bool,
) -> None:
    from flsys_ray.commands.fleets import Phones, Watch, data_for, fleet_of, too_few
    from flsys_ray.device.fleet import run_fleet

    names = split_names(models)
    with developer(url, app_key) as cloud, _stop_on_signals() as stop, _folder(folder) as place:
        dataset = data_for(data)
        if unknown := [user for user in users if user not in dataset.users]:
            raise InvalidInput(
                f"data set {dataset.name} has no user {unknown[0]!r}; it has {', '.join(dataset.users[:8])} ..."
            )
        phones = Phones(cloud_url(url), enrol_key or str(app_key), names, count, users, place)
        fleet = fleet_of(cloud, phones, dataset)
        if not as_json:
            console.print(f"{count} phones with {dataset.source} data of {dataset.title} ({len(users)} users)")
            for note in filter(None, (too_few(name, cloud.info(name).plan, count) for name in names)):
                console.print(note)
        watch = Watch(dict.fromkeys(names, cloud), until_version, seconds, stop, quiet=as_json)
        with watch.running():
            report = run_fleet(fleet, stop=stop, on_event=watch.on_event, workers=workers)
    if as_json:
        print_json({"steps": dict(report.steps), "versions": watch.versions()})
    else:
        console.print(", ".join(f"{kind} {number}" for kind, number in sorted(report.steps.items())))


@contextmanager
def _stop_on_signals() -> Iterator[threading.Event]:
    """Yield an event that Ctrl-C or SIGTERM sets: phones then finish their step and keep their state."""
    stop = threading.Event()
    before = {number: signal.signal(number, lambda *_: stop.set()) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _folder(given: Path | None) -> Iterator[Path]:
    place = nullcontext(str(given)) if given is not None else tempfile.TemporaryDirectory(prefix="flsys-phones-")
    with place as name:
        yield Path(name)
