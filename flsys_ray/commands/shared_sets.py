"""From which users of a data set a class-uniform set is drawn, and such a set as a model's program takes it."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flsys_ray.commands.options import split_names
from flsys_ray.developer import DeveloperClient
from flsys_ray.errors import InvalidInput
from flsys_ray.wire.developer_schemas import ModelInfo
from flsys_ray.wire.shared_sets import MAX_SHARED_BYTES, SharedSet, encode_shared_set

if TYPE_CHECKING:
    from flsys_ray.data.dataset import Dataset

ExamplesPerClass = Annotated[int | None, typer.Option(min=1, help="Default: as many as there are of the rarest class.")]
Users = Annotated[str | None, typer.Option(help="Whose examples, with commas; default: all that are not held out.")]
HeldOut = Annotated[
    float, typer.Option(min=0, max=0.9, help="Share of users that are left out, as `flsys models evaluate` holds out.")
]
Seed = Annotated[int, typer.Option(min=0, help="Of the split by user, and of the draw.")]


@dataclass(frozen=True, slots=True)
class Source:
    """What a set is drawn from."""

    data: str
    users: str | None
    examples_per_class: int | None
    held_out: float
    seed: int


def shared_set(cloud: DeveloperClient, info: ModelInfo, source: Source) -> bytes:
    """Draw a set of the classes of a model's program. Raises `InvalidInput` if it is too large, `DataInvalid`."""
    from flsys_ray.data.dataset import dataset_at, open_dataset
    from flsys_ray.data.schema import is_dataset
    from flsys_ray.data.uniform import uniform_examples
    from flsys_ray.programs.manifest import read_manifest, read_tokenizer

    if info.program_sha256 is None:
        raise InvalidInput(f"model {info.model!r} has no program, which its shared set must fit: create it with one")
    program = cloud.program(info.model, info.program_sha256)
    folder = Path(source.data)
    whole = dataset_at(folder) if is_dataset(folder) else open_dataset(source.data)
    dataset = whole.fit(read_manifest(program).classes, read_tokenizer(program))
    users = chosen_users(dataset, source.users, source.held_out, source.seed)
    body = encode_shared_set(SharedSet(*uniform_examples(dataset, users, source.examples_per_class, source.seed)))
    if len(body) > MAX_SHARED_BYTES:
        raise InvalidInput(
            f"the set would have {len(body)} bytes, more than {MAX_SHARED_BYTES}: take fewer --examples-per-class"
        )
    return body


def chosen_users(dataset: "Dataset", users: str | None, held_out: float, seed: int) -> tuple[str, ...]:
    """Return the named users, or all but those that an evaluation with the same split holds out.

    Raises `InvalidInput` for a user that the data set does not have.
    """
    from flsys_ray.data.splits import split_users

    if users is None:
        return split_users(dataset.users, held_out, seed)[0] if held_out > 0 else dataset.users
    named = split_names(users)
    if unknown := [user for user in named if user not in dataset.users]:
        raise InvalidInput(f"data set {dataset.name} has no user {', '.join(unknown)} with these classes")
    return tuple(dict.fromkeys(named))
