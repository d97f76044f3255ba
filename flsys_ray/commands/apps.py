"""`flsys app`."""

import typer

from flsys_ray.commands.options import AsJson, OperatorKey, Url, cloud_url, print_json
from flsys_ray.commands.state import operator_key as kept_key

group = typer.Typer(no_args_is_help=True, help="Third-party apps.")


@group.callback()
def _apps() -> None:
    pass


@group.command()
def create(name: str, url: Url = None, operator_key: OperatorKey = None, as_json: AsJson = False) -> None:
    """Register an app and print its key. Asking again prints the same key."""
    from flsys_ray.developer import DeveloperClient

    with DeveloperClient(cloud_url(url), kept_key(operator_key) if operator_key is None else operator_key) as cloud:
        created = cloud.create_app(name)
    if as_json:
        print_json(created)
    else:
        print(created.key)
