"""`flsys app`."""

import typer

from flsys_ray.commands.options import AsJson, OperatorKey, Url, client, cloud_url, print_json
from flsys_ray.commands.state import kept_operator_key
from flsys_ray.errors import InvalidInput

group = typer.Typer(no_args_is_help=True, help="Third-party apps.")


@group.callback()
def _apps() -> None:
    pass


@group.command()
def create(name: str, url: Url = None, operator_key: OperatorKey = None, as_json: AsJson = False) -> None:
    """Register an app and print its key. Asking again prints the same key."""
    address, key = cloud_url(url), operator_key or kept_operator_key()
    if not key:
        raise InvalidInput("no operator key on this machine: give --operator-key, or set FLSYS_OPERATOR_KEY")
    with client(address, key) as cloud:
        created = cloud.create_app(name)
    if as_json:
        print_json(created)
    else:
        print(created.key)
