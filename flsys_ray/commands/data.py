"""`flsys data`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import Progress
from rich.table import Table

from flsys_ray.commands.options import AsJson, console, print_json, print_table, split_names
from flsys_ray.commands.shared_sets import ExamplesPerClass, HeldOut, Seed, Users, chosen_users
from flsys_ray.errors import InvalidInput

if TYPE_CHECKING:
    from flsys_ray.data.schema import DatasetInfo

group = typer.Typer(no_args_is_help=True, help="Data sets: where they come from and what is there.")
Out = Annotated[
    Path | None, typer.Option(help="The folder of data sets; default: FLSYS_DATA, or the user's data folder.")
]


@group.command("list")
def list_(as_json: AsJson = False) -> None:
    """List what is there, and what recipes can build."""
    from flsys_ray.data.catalog import list_datasets

    entries = list_datasets()
    if as_json:
        print_json([{name: getattr(entry, name) for name in entry.__dataclass_fields__} for entry in entries])
        return
    table = Table("name", "state", "source", "users", "examples", "title")
    for entry in entries:
        examples = f"{entry.windows or entry.texts or '-'} {entry.form}"
        table.add_row(entry.name, entry.state, entry.source, str(entry.users or "-"), examples, entry.title)
    print_table(table)


@group.command()
def build(
    name: str,
    from_: Annotated[
        Path | None, typer.Option("--from", exists=True, help="Local copies, instead of the owner's address.")
    ] = None,
    min_texts: Annotated[
        int | None, typer.Option(min=1, help="Of texts: leave out users with fewer; default: the recipe's.")
    ] = None,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Build a data set in canonical form: fetch it from its owner, check and convert it."""
    from flsys_ray.data import build as building

    with Progress(console=console, transient=True, disable=as_json) as progress:
        task = progress.add_task(f"building {name}", total=None)

        def fetched(file: str, got: int, total: int | None) -> None:
            progress.update(task, description=f"fetching {file}", completed=got, total=total)

        info = building.build(name, from_, out, fetched, min_texts)
    _say(info, as_json=as_json)


@group.command()
def synthesize(
    users: Annotated[int, typer.Option(min=1, help="How many people.")] = 48,
    minutes: Annotated[float, typer.Option(min=0.1, help="Of recording a person.")] = 12.0,
    texts: Annotated[int | None, typer.Option(min=1, help="Make up texts instead: so many a person.")] = None,
    seed: Annotated[int, typer.Option(help="Same seed, same data.")] = 0,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Make up sensor data or texts, where no real data are at hand. They say that they are synthetic everywhere."""
    from flsys_ray.data import build as building
    from flsys_ray.data import synthetic, synthetic_texts

    info: DatasetInfo
    if texts is None:
        info = building.synthesize(out, synthetic.Plan(users=users, minutes=minutes, seed=seed))
    else:
        info = building.synthesize_texts(out, synthetic_texts.Plan(users=users, texts=texts, seed=seed))
    _say(info, as_json=as_json)


@group.command()
def uniform(
    dataset: str,
    name: Annotated[str, typer.Option(help="Of the set that is made.")],
    examples_per_class: ExamplesPerClass = None,
    classes: Annotated[str | None, typer.Option(help="Classes, with commas; default: all of the data set.")] = None,
    users: Users = None,
    held_out: HeldOut = 0.2,
    seed: Seed = 0,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Draw a class-uniform set from a data set, as a data set of its own: for `models augment`, or a simulation."""
    from flsys_ray.data.dataset import open_dataset
    from flsys_ray.data.folders import data_folder
    from flsys_ray.data.uniform import write_uniform

    source = open_dataset(dataset)
    source = source.select(split_names(classes)) if classes else source
    chosen = chosen_users(source, users, held_out, seed)
    folder = (out or data_folder()) / name
    if folder.name != name:
        raise InvalidInput(f"--name {name!r} is no name of a folder")
    _say(write_uniform(folder, source, chosen, examples_per_class, seed), as_json=as_json)


def _say(info: "DatasetInfo", *, as_json: bool) -> None:
    if as_json:
        print_json({"name": info.name, "users": len(info.users), info.form: info.examples})
    else:
        console.print(f"{info.name}: {len(info.users)} users, {info.examples} {info.form}")
