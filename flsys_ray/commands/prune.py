"""`flsys models prune`: the updates of old versions taken out of the store."""

from typing import Annotated

import typer

from flsys_ray.commands import state
from flsys_ray.commands.options import AsJson, console, print_json


def prune(
    model: Annotated[str, typer.Argument(help="The model: `app/name`, or its name alone if no other app uses it.")],
    keep_versions: Annotated[int, typer.Option(min=1, help="So many of the newest versions keep their updates.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go, and remove nothing.")] = False,
    store: Annotated[
        str | None, typer.Option(help="A folder, or a store's URI. Default: that of the cloud that is up, or `up`'s.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Remove the updates of old versions from the store. Versions and their manifests stay. May be repeated.

    For the operator: it needs the store, with the right to remove, and no key. The cloud may be up or down. What is
    removed cannot be replayed any more.
    """
    from flsys_ray.cloud.pruning import plan_pruning
    from flsys_ray.cloud.pruning import prune as pruned
    from flsys_ray.commands.sources import chosen, stored_models
    from flsys_ray.storage.uri import open_store

    running = state.running()
    opened = open_store(store or (running.store if running is not None else state.default_store()))
    model = chosen(stored_models(opened), model)
    pruning, count, size = plan_pruning(opened, model, keep_versions), 0, 0
    if pruning is not None:
        for one in pruned(opened, model, pruning, dry_run=dry_run):
            count, size = count + 1, size + one.size
    if as_json:
        kept_from = pruning.oldest_kept if pruning is not None else 0
        print_json({"model": model, "dry_run": dry_run, "objects": count, "bytes": size, "oldest_kept": kept_from})
    elif pruning is None:
        console.print(f"{model}: every version is among those that keep their updates: nothing to remove")
    else:
        done = "would be removed" if dry_run else "removed"
        console.print(
            f"{model}: {count} objects of {size} bytes {done}; from version {pruning.oldest_kept} on all stay"
        )
