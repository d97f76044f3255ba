"""`flsys app`."""

from typing import Annotated

import typer

from flsys_ray.commands.options import AsJson, OperatorKey, Url, client, cloud_url, print_json
from flsys_ray.commands.state import kept_operator_key
from flsys_ray.errors import InvalidInput
from flsys_ray.wire.schemas import Quotas

group = typer.Typer(no_args_is_help=True, help="Third-party apps.")


@group.callback()
def _apps() -> None:
    pass


@group.command()
def create(
    name: str,
    max_models: Annotated[int | None, typer.Option(min=0, help="Models that are not archived.")] = None,
    max_bytes: Annotated[int | None, typer.Option(min=0, help="Of programs and counted updates.")] = None,
    max_checkins: Annotated[
        int | None, typer.Option("--max-checkins-per-min", min=1, help="At each replica of the cloud.")
    ] = None,
    max_uploads: Annotated[
        int | None, typer.Option("--max-upload-bytes-per-min", min=1, help="At each replica of the cloud.")
    ] = None,
    url: Url = None,
    operator_key: OperatorKey = None,
    as_json: AsJson = False,
) -> None:
    """Register an app and print its key. Asking again prints the same key.

    With a limit, the app's quotas become those given here, and the defaults for those that are left out.
    """
    address, key = cloud_url(url), operator_key or kept_operator_key()
    if not key:
        raise InvalidInput("no operator key on this machine: give --operator-key, or set FLSYS_OPERATOR_KEY")
    with client(address, key) as cloud:
        named = {
            "models": max_models,
            "stored_bytes": max_bytes,
            "checkins_per_min": max_checkins,
            "upload_bytes_per_min": max_uploads,
        }
        created = cloud.create_app(name, _quotas(named))
    if as_json:
        print_json(created)
    else:
        print(created.key)


def _quotas(named: dict[str, int | None]) -> Quotas | None:
    """Return the quotas that options name; None if they name none."""
    given = {name: limit for name, limit in named.items() if limit is not None}
    return Quotas(**given) if given else None
