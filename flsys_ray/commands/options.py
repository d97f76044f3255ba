"""Options that several commands share, and how their values are found."""

import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from pydantic import BaseModel
from rich.console import Console
from rich.table import Table

from flsys_ray.commands.state import kept_operator_key, running
from flsys_ray.developer import DeveloperClient
from flsys_ray.errors import InvalidInput

Url = Annotated[str | None, typer.Option("--url", envvar="FLSYS_URL", help="The cloud's address; default: the one up.")]
AppKey = Annotated[str | None, typer.Option("--app-key", envvar="FLSYS_APP_KEY", help="The app's key.")]
EnrolKey = Annotated[
    str | None,
    typer.Option("--enrol-key", envvar="FLSYS_ENROL_KEY", help="What phones enrol with; default: the app key."),
]
OperatorKey = Annotated[
    str | None,
    typer.Option("--operator-key", envvar="FLSYS_OPERATOR_KEY", help="Default: the file that `flsys up` wrote."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

WIDE = 400


def _console(*, stderr: bool = False) -> Console:
    """Return a console that keeps a line whole, however long; for scripts, tables too are as wide as they need."""
    made = Console(stderr=stderr, highlight=False, soft_wrap=True)
    if not made.is_terminal:
        made.width = WIDE
    return made


console = _console()
errors = _console(stderr=True)


def cloud_url(given: str | None) -> str:
    """Return the cloud's address. Raises `InvalidInput` if none was given and none is up here."""
    if given is not None:
        return given.rstrip("/")
    found = running()
    if found is None:
        raise InvalidInput("no cloud is up on this machine: run `flsys up`, or name one with --url")
    return found.url


def developer(url: str | None, app_key: str | None) -> DeveloperClient:
    """Return a client for an app. Raises `InvalidInput` without a key."""
    if not app_key:
        raise InvalidInput("no app key: give --app-key, or set FLSYS_APP_KEY to what `flsys app create` printed")
    return client(url, app_key)


def operator(url: str | None, given: str | None) -> DeveloperClient:
    """Return a client with the operator's key. Raises `InvalidInput` if it was not given and is not kept here."""
    key = given or kept_operator_key()
    if not key:
        raise InvalidInput("no operator key on this machine: give --operator-key, or set FLSYS_OPERATOR_KEY")
    return client(url, key)


def client(url: str | None, key: str) -> DeveloperClient:
    """Return a client with a key. Raises `InvalidInput` for one that no header can carry."""
    if not (key.isascii() and key.isprintable()):
        raise InvalidInput("a key has ASCII letters, digits, - and _ only: this one was not copied as it was printed")
    return DeveloperClient(cloud_url(url), key)


def print_table(table: Table) -> None:
    """Print a table; in a terminal it is folded to the terminal's width."""
    console.print(table, soft_wrap=not console.is_terminal)


def fail(message: str) -> NoReturn:
    """Print one line on stderr and exit with status 1."""
    errors.print(f"flsys: {' '.join(message.split())}", style="red", markup=False, emoji=False)
    sys.exit(1)


def print_json(value: BaseModel | Any) -> None:
    """Print a message, or plain data, as JSON."""
    if isinstance(value, BaseModel):
        sys.stdout.write(value.model_dump_json(indent=2) + "\n")
        return
    import json

    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def text_of(file: Path, what: str) -> str:
    """Return the text of a file, which is a plan, say. Raises `InvalidInput` if it is none."""
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise InvalidInput(f"{what}: {file} is not a text file") from None


def split_names(text: str) -> tuple[str, ...]:
    """Return the names in a list with commas. Raises `InvalidInput` if there is none."""
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    if not names:
        raise InvalidInput(f"expected names with commas between them, got {text!r}")
    return names
