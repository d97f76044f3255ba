"""`flsys demo`: the main job on this machine, with the parts that an operator, a developer and phones would use.

The cloud is a `flsys up` of its own; the phones are real device runtimes that reach it over HTTP.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flsys_ray.commands.options import AsJson, console, print_json
from flsys_ray.errors import TryLater

if TYPE_CHECKING:
    from flsys_ray.commands.evaluation import Result
    from flsys_ray.data.dataset import Dataset

MODEL = "har-wild"
APP = "demo-app"
HELD_OUT, SPLIT_SEED = 0.2, 0
READY_S = 180.0


@dataclass
class Watched:
    """What the demo found out, for people and as JSON."""

    data: str = ""
    source: str = ""
    phones: int = 0
    updates: int = 0
    started: float = field(default_factory=time.monotonic)
    results: "list[Result]" = field(default_factory=list)


def demo(
    phones: Annotated[int | None, typer.Option(min=1, help="How many; default: one for each training user.")] = None,
    versions: Annotated[int, typer.Option(min=1, help="How many versions to commit.")] = 20,
    data: Annotated[str | None, typer.Option(help="A data set; default: the best at hand.")] = None,
    keep: Annotated[Path | None, typer.Option(help="Keep store, phones, logs and demo.json in this folder.")] = None,
    as_json: AsJson = False,
) -> None:
    """Start the cloud, enrol phones, train HAR-Wild through it over HTTP, and compare with version 0."""
    watched = Watched()

    def say(text: str) -> None:
        if not as_json:
            console.print(text)

    with _folder(keep) as folder, ThreadPoolExecutor(2) as pool:
        program = pool.submit(_program)
        with _cloud(folder) as url:
            say(f"cloud     ready at {url} (Ray, Serve, a folder as object store)")
            key = _app_key(folder, url)
            data_set = _data(data, watched, say)
            body = program.result()
            say(f"program   {MODEL}: {len(body) / 1024:.0f} kB, built-in LiteRT operators only")
            _train(folder, url, key, data_set, body, phones, versions, watched, say, quiet=as_json)
    report = _report(watched)
    if keep is not None:
        (keep / "demo.json").write_text(json.dumps(report, indent=2) + "\n")
    if as_json:
        print_json(report)
        return
    for result in (watched.results[0], watched.results[-1]):
        say(result.line())
    say(f"{watched.updates} updates of {watched.phones} phones in {time.monotonic() - watched.started:.0f} s in all")


def _train(
    folder: Path,
    url: str,
    key: str,
    data_set: "Dataset",
    body: bytes,
    phones: int | None,
    versions: int,
    watched: Watched,
    say: Callable[[str], None],
    *,
    quiet: bool,
) -> None:
    from flsys_ray.commands.evaluation import HeldOut
    from flsys_ray.commands.fleets import Phones, Watch, fleet_of, for_phones, training_users
    from flsys_ray.core.plan import parse_plan
    from flsys_ray.developer import DeveloperClient
    from flsys_ray.device.fleet import run_fleet
    from flsys_ray.models import base

    users = training_users(data_set, HELD_OUT, SPLIT_SEED)
    watched.phones = phones or len(users)
    with DeveloperClient(url, key) as cloud:
        cloud.put_model(MODEL, for_phones(parse_plan(base.get(MODEL).default_plan()), watched.phones))
        cloud.put_program(MODEL, body)
        info = cloud.act(MODEL, "start")
        test = HeldOut.load(cloud, info, data_set.name, HELD_OUT, SPLIT_SEED)
        say(f"phones    {watched.phones}, each with one user's data; {len(test.users)} other users are held out")
        fleet = fleet_of(cloud, Phones(url, key, (MODEL,), watched.phones, users, folder / "phones"), data_set)
        stop = threading.Event()
        watch = Watch(cloud, (MODEL,), versions, None, stop, quiet=quiet)
        with watch.running():
            report = run_fleet(fleet, stop=stop, on_event=watch.on_event)
        watched.updates = report.steps.get("uploaded", 0)
        newest = cloud.versions(MODEL)[-1]
        watched.results = [test.evaluate(cloud, number) for number in _some(newest)]


def _some(newest: int) -> list[int]:
    """Return the versions to evaluate: all of them, or about twenty with the first and the last."""
    step = max(1, newest // 20)
    return sorted({*range(0, newest, step), newest})


def _data(name: str | None, watched: Watched, say: Callable[[str], None]) -> "Dataset":
    from flsys_ray.commands.fleets import data_for
    from flsys_ray.models import base

    data_set = data_for(name)
    data_set = data_set.select(base.get(MODEL).classes)
    watched.data, watched.source = data_set.name, data_set.source
    note = "" if data_set.source == "real" else " - set FLSYS_DATA to use real data"
    say(f"data      {data_set.title}: {len(data_set.users)} users, {data_set.source.upper()} data{note}")
    return data_set


def _program() -> bytes:
    from flsys_ray.commands.builtin import compile_builtin

    return compile_builtin(MODEL)


@contextmanager
def _cloud(folder: Path) -> Iterator[str]:
    """Run `flsys up` on a free port with a state of its own, and yield its URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "flsys_ray", "up", "--store", str(folder / "store"), "--port", str(port)]
    log = (folder / "cloud.log").open("w")
    with log, subprocess.Popen(command, env=_environment(folder), stdout=subprocess.PIPE, stderr=log, text=True) as up:
        try:
            yield _ready(up, folder)
        finally:
            up.terminate()
            up.wait(60)


def _ready(up: "subprocess.Popen[str]", folder: Path) -> str:
    assert up.stdout is not None
    timer = threading.Timer(READY_S, up.kill)
    timer.start()
    for line in up.stdout:
        if line.startswith("ready "):
            timer.cancel()
            return line.split()[1]
    timer.cancel()
    tail = (folder / "cloud.log").read_text().strip().splitlines()[-3:]
    raise TryLater("the cloud did not start: " + " | ".join(tail or ["its log is empty"]))


def _app_key(folder: Path, url: str) -> str:
    from flsys_ray.developer import DeveloperClient

    operator_key = (folder / "state" / "flsys" / "operator.key").read_text().strip()
    with DeveloperClient(url, operator_key) as operator:
        return operator.create_app(APP).key


def _environment(folder: Path) -> dict[str, str]:
    own = {"XDG_STATE_HOME": str(folder / "state"), "PYTHONUNBUFFERED": "1"}
    return {**{name: value for name, value in os.environ.items() if name != "FLSYS_OPERATOR_KEY"}, **own}


@contextmanager
def _folder(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep
        return
    with tempfile.TemporaryDirectory(prefix="flsys-demo-", ignore_cleanup_errors=True) as name:
        yield Path(name)


def _report(watched: Watched) -> dict[str, Any]:
    return {
        "data": watched.data,
        "source": watched.source,
        "phones": watched.phones,
        "updates": watched.updates,
        "seconds": round(time.monotonic() - watched.started, 1),
        "versions": [result.as_json() for result in watched.results],
    }
