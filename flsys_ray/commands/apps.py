"""`flsys app`."""

from typing import Annotated

import typer

from flsys_ray.commands.options import AsJson, OperatorKey, Url, cloud_url, operator, print_json
from flsys_ray.wire.developer_schemas import Quotas

group = typer.Typer(no_args_is_help=True, help="Third-party apps.")


@group.callback()
def _apps() -> None:
    pass


@group.command()
def create(
    name: str,
    max_models: Annotated[int | None, typer.Option(min=0, help="Models that are not archived.")] = None,
    max_bytes: Annotated[int | None, typer.Option(min=0, help="Of programs, shared sets and counted updates.")] = None,
    max_checkins: Annotated[
        int | None, typer.Option("--max-checkins-per-min", min=1, help="At each replica of the cloud.")
    ] = None,
    max_uploads: Annotated[
        int | None, typer.Option("--max-upload-bytes-per-min", min=1, help="At each replica of the cloud.")
    ] = None,
    max_devices: Annotated[int | None, typer.Option(min=0, help="That ever enrolled; each counts once.")] = None,
    max_new_devices: Annotated[int | None, typer.Option("--max-new-devices-per-hour", min=1)] = None,
    url: Url = None,
    operator_key: OperatorKey = None,
    as_json: AsJson = False,
) -> None:
    """Register an app and print its newest key. Asking again prints the same key. --json shows the phones' key too.

    With a limit, the app's quotas become those given here, and the defaults for those that are left out.
    """
    with operator(cloud_url(url), operator_key) as cloud:
        named = {
            "models": max_models,
            "stored_bytes": max_bytes,
            "checkins_per_min": max_checkins,
            "upload_bytes_per_min": max_uploads,
            "devices": max_devices,
            "devices_per_hour": max_new_devices,
        }
        created = cloud.create_app(name, _quotas(named))
    if as_json:
        print_json(created)
    else:
        print(created.key)


@group.command("rotate-key")
def rotate_key(
    name: str,
    url: Url = None,
    operator_key: OperatorKey = None,
    as_json: AsJson = False,
) -> None:
    """Make a new key for an app and print it. The old one stays good until `flsys app revoke-key`."""
    with operator(cloud_url(url), operator_key) as cloud:
        made = cloud.new_app_key(name, cloud.create_app(name).next_generation)
    if as_json:
        print_json(made)
    else:
        print(made.key)


@group.command("revoke-key")
def revoke_key(
    name: str,
    generation: Annotated[int, typer.Argument(min=1, help="1 is the app's first key, 2 that of the first rotation.")],
    url: Url = None,
    operator_key: OperatorKey = None,
) -> None:
    """Have a key of an app, and the enrolment key that came with it, open nothing any more."""
    with operator(cloud_url(url), operator_key) as cloud:
        cloud.revoke_app_key(name, generation)


def _quotas(named: dict[str, int | None]) -> Quotas | None:
    """Return the quotas that options name; None if they name none."""
    given = {name: limit for name, limit in named.items() if limit is not None}
    return Quotas(**given) if given else None
