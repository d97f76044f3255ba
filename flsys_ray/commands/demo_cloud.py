"""A cloud of the demo's own: `flsys up` as a child process, with its state, keys and store in the demo's folder."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from flsys_ray.commands import with_parent
from flsys_ray.developer import DeveloperClient
from flsys_ray.errors import TryLater
from flsys_ray.wire.developer_schemas import AppCreated

READY_S = 180.0
DOWN_S = 60.0


@contextmanager
def own_cloud(folder: Path) -> Iterator[str]:
    """Run `flsys up` on a free port, and yield its URL. It is down when the block is left, in whatever way.

    The child is not in the terminal's process group: Ctrl-C reaches the demo alone, which then takes the cloud down. A
    demo that is killed closes the pipe that is the child's standard input, and the cloud goes down by itself.

    Raises:
        TryLater: it did not start.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", with_parent.__name__, "up", "--store", str(folder / "store"), "--port", str(port)]
    log = (folder / "cloud.log").open("w")
    pipe, own = subprocess.PIPE, _environment(folder)
    with (
        log,
        subprocess.Popen(
            command, env=own, stdin=pipe, stdout=pipe, stderr=log, text=True, start_new_session=True
        ) as up,
    ):
        try:
            yield _ready(up, folder)
        finally:
            up.terminate()
            try:
                up.wait(DOWN_S)
            except subprocess.TimeoutExpired:
                up.kill()


def create_apps(folder: Path, url: str, names: Sequence[str]) -> list[AppCreated]:
    """Return new apps with their keys, made with the key that the cloud in the folder wrote for its operator."""
    operator_key = (folder / "state" / "flsys" / "operator.key").read_text().strip()
    with DeveloperClient(url, operator_key) as operator:
        return [operator.create_app(name) for name in names]


def _ready(up: "subprocess.Popen[str]", folder: Path) -> str:
    assert up.stdout is not None
    timer = threading.Timer(READY_S, up.kill)
    timer.start()
    try:
        for line in up.stdout:
            if line.startswith("ready "):
                return line.split()[1]
    finally:
        timer.cancel()
    tail = (folder / "cloud.log").read_text().strip().splitlines()[-3:]
    raise TryLater("the cloud did not start: " + " | ".join(tail or ["its log is empty"]))


def _environment(folder: Path) -> dict[str, str]:
    own = {"XDG_STATE_HOME": str(folder / "state"), "PYTHONUNBUFFERED": "1"}
    return {**{name: value for name, value in os.environ.items() if name != "FLSYS_OPERATOR_KEY"}, **own}
