"""`flsys replay`: a model's versions computed again from its store."""

from dataclasses import asdict
from typing import Annotated

import typer

from flsys_ray.commands import state
from flsys_ray.commands.options import AsJson, console, fail, print_json


def replay(
    model: Annotated[str, typer.Argument(help="The model: `app/name`, or its name alone if no other app uses it.")],
    store: Annotated[
        str | None, typer.Option(help="A folder, or a store's URI. Default: that of the cloud that is up, or `up`'s.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compute every version again from the store: the log, the plans and the updates must give the same bits."""
    from flsys_ray.cloud.replay import replay as replayed
    from flsys_ray.commands.sources import chosen, stored_models
    from flsys_ray.storage.uri import open_store

    running = state.running()
    place = store or (running.store if running is not None else state.default_store())
    opened, found = open_store(place), []
    model = chosen(stored_models(opened), model)
    for one in replayed(opened, model):
        found.append(one)
        if not as_json:
            detail = f": {one.detail}" if one.detail else ""
            console.print(f"v{one.version} of {one.updates} updates: {one.verdict}{detail}", markup=False)
    broken = [one for one in found if one.verdict != "equal"]
    if as_json:
        print_json({"model": model, "equal": not broken, "versions": [asdict(one) for one in found]})
    if broken:
        more = f" (and {len(broken) - 1} more)" if len(broken) > 1 else ""
        fail(f"model {model!r}: version {broken[0].version} is not what its log says: {broken[0].detail}{more}")
