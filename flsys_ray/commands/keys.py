"""`flsys keys`: the keys with which the cloud signs tokens."""

from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.table import Table

from flsys_ray.commands.options import AsJson, OperatorKey, Url, cloud_url, operator, print_json, print_table
from flsys_ray.wire.access import SigningKeysReply

group = typer.Typer(no_args_is_help=True, help="The keys that sign device tokens.")


@group.callback()
def _keys() -> None:
    pass


@group.command("list")
def show(url: Url = None, operator_key: OperatorKey = None, as_json: AsJson = False) -> None:
    """List the signing keys in use."""
    with operator(cloud_url(url), operator_key) as cloud:
        _print(cloud.signing_keys(), as_json=as_json)


@group.command()
def rotate(
    retire: Annotated[
        bool, typer.Option("--retire", help="Refuse at once what older keys signed: for a key that has leaked.")
    ] = False,
    url: Url = None,
    operator_key: OperatorKey = None,
    as_json: AsJson = False,
) -> None:
    """Make a new signing key. Older ones verify until no token of theirs can be valid any more.

    With --retire every device enrols again, and work that is out is lost.
    """
    with operator(cloud_url(url), operator_key) as cloud:
        _print(cloud.rotate_keys(retire_old=retire), as_json=as_json)


@group.command("retire")
def retire_one(kid: str, url: Url = None, operator_key: OperatorKey = None, as_json: AsJson = False) -> None:
    """Retire one signing key at once. The newest cannot be retired: rotate first."""
    with operator(cloud_url(url), operator_key) as cloud:
        _print(cloud.retire_key(kid), as_json=as_json)


def _print(reply: SigningKeysReply, *, as_json: bool) -> None:
    if as_json:
        print_json(reply)
        return
    table = Table("key", "signs from", "verifies until")
    for key in reply.keys:
        table.add_row(key.kid, _instant(key.since), "it is replaced" if key.until is None else _instant(key.until))
    print_table(table)


def _instant(seconds: float) -> str:
    return "the beginning" if seconds == 0 else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC"
