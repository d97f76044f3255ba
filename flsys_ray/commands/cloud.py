"""`flsys up` and `flsys down`."""

import os
import signal
import socket
import threading
import time
from typing import Annotated

import typer

from flsys_ray.commands import state
from flsys_ray.commands.options import OperatorKey, console
from flsys_ray.errors import Conflict, InvalidInput

DOWN_S = 60.0


def up(
    store: Annotated[
        str | None, typer.Option(help="A folder, or a store's URI. Default: the user's data folder.")
    ] = None,
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="The port to listen on.")] = 8000,
    address: Annotated[str | None, typer.Option(help="A running Ray cluster; default: one of its own.")] = None,
    replicas: Annotated[int, typer.Option(min=1, help="How many HTTP replicas.")] = 1,
    metrics_port: Annotated[
        int | None,
        typer.Option(min=1, max=65535, help="Serve Prometheus metrics on this port; default: Ray picks one."),
    ] = None,
    operator_key: OperatorKey = None,
) -> None:
    """Start the cloud. Prints `ready URL` when it answers, and stays until `flsys down` or Ctrl-C."""
    found = state.running()
    if found is not None:
        raise Conflict(f"a cloud is up already at {found.url}: `flsys down` first")
    if address is None:
        _check_port(host, port)
        if metrics_port is not None:
            _check_port(host, metrics_port)
    elif metrics_port is not None:
        raise InvalidInput("--metrics-port is of a Ray that `flsys up` starts: give it to `ray start` instead")
    place_store = store or state.default_store()
    key = state.operator_key(operator_key)

    from serve_apps.up import Place, cloud

    stop = threading.Event()
    place = Place(
        store=place_store, host=host, port=port, address=address, replicas=replicas, metrics_port=metrics_port
    )
    with cloud(place, key) as url:
        pid = os.getpid() if address is None else None
        state.note(state.Running(url=url, store=place_store, pid=pid, address=address))
        print(f"ready {url}", flush=True)
        if address is not None:
            return
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop.set())
        stop.wait()
        state.forget()


def down() -> None:
    """Take the cloud down. What was accepted is in the store: `flsys up` on it goes on from there."""
    found = state.running()
    if found is None:
        raise InvalidInput("no cloud is up on this machine")
    if found.pid is None:
        from serve_apps.up import remove

        remove(str(found.address), found.store)
    else:
        os.kill(found.pid, signal.SIGTERM)
        end = time.monotonic() + DOWN_S
        while state.running() is not None and time.monotonic() < end:
            time.sleep(0.1)
        if state.running() is not None:
            raise Conflict(f"the cloud (process {found.pid}) did not end within {DOWN_S:g} s")
    state.forget()
    console.print(f"down {found.url}")


def _check_port(host: str, port: int) -> None:
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise InvalidInput(f"cannot listen on {host}:{port}: {os.strerror(error.errno or 0)}") from None
