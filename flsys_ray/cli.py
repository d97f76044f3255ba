"""`flsys`: the front door.

What the commands do is in `flsys_ray.commands`, one file a group. Here: the tree of commands, and what happens to
errors: one clear line on stderr and exit status 1; 2 for wrong usage.
"""

import sys
from typing import Annotated

import typer

import flsys_ray
from flsys_ray.commands import (
    apps,
    cloud,
    data,
    demo,
    devices,
    keys,
    models,
    replay,
    simulate,
    tensorboard,
    tune,
    watch,
)
from flsys_ray.commands.options import fail
from flsys_ray.errors import FlsysError

EXTRAS = {"ray": "cloud", "ai_edge_litert": "device", "tensorflow": "keras", "keras": "keras", "tensorboardX": "board"}
EXTRAS |= dict.fromkeys(("fsspec", "pandas", "optuna", "matplotlib"), "tune")

app = typer.Typer(
    name="flsys",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Mobile-cloud federated learning on Ray: phones train, only updates leave them.",
)
app.command()(demo.demo)
app.command()(cloud.up)
app.command()(cloud.down)
app.command()(watch.watch)
app.command()(tensorboard.tensorboard)
app.command()(replay.replay)
app.command()(simulate.simulate)
app.command()(tune.tune)
app.add_typer(apps.group, name="app")
app.add_typer(models.group, name="models")
app.add_typer(devices.one, name="device")
app.add_typer(devices.many, name="devices")
app.add_typer(keys.group, name="keys")
app.add_typer(data.group, name="data")


def _version(wanted: bool) -> None:
    if wanted:
        print(f"flsys {flsys_ray.__version__}")
        raise typer.Exit


@app.callback()
def _flsys(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    pass


def main() -> None:
    """Run the command line."""
    try:
        app()
    except FlsysError as error:
        fail(error.message)
    except ConnectionError as error:  # of Ray: every other connection is ours, and raises a `TryLater`
        fail(str(error))
    except OSError as error:
        if error.filename is None:
            raise
        fail(f"{error.filename}: {error.strerror}")
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in EXTRAS:
            raise
        fail(f"this command needs {missing}: pip install 'flsys-ray[{EXTRAS[missing]}]'")
    except KeyboardInterrupt:
        sys.exit(130)
