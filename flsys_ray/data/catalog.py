"""Which data sets there are, and which one to take when nobody says."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from flsys_ray.data import synthetic
from flsys_ray.data.build import present_names
from flsys_ray.data.dataset import Dataset, open_dataset
from flsys_ray.data.folders import data_folder
from flsys_ray.data.recipe import load_recipe, recipe_names
from flsys_ray.data.schema import Source, is_dataset, read_info

PREFERRED_HAR = ("wisdm2019", "uci_hapt", "motionsense")

State = Literal["ready", "samples", "made at need", "absent"]


@dataclass(frozen=True)
class Entry:
    """One line of the catalogue.

    Attributes:
        name, title, source, licence: of the data set.
        state: "ready" in canonical form; "samples": windows are cut when it is first opened; "made at need": the
            synthetic source; "absent": a recipe can build it.
        users, windows: how many; None as long as it is not in canonical form.
    """

    name: str
    title: str
    source: Source
    licence: str
    state: State
    users: int | None
    windows: int | None


def list_datasets(folder: Path | None = None) -> tuple[Entry, ...]:
    """Return what lies in a folder (default: `data_folder()`) and what recipes could add, sorted by name."""
    folder = folder or data_folder()
    present = present_names(folder)
    return tuple(_entry(name, folder, present) for name in sorted({*present, *recipe_names(), synthetic.NAME}))


def default_har_dataset(folder: Path | None = None) -> Dataset:
    """Open the best sensor data at hand: WISDM, or else HAPT, or else MotionSense, or else the synthetic source.

    `Dataset.title` and `Dataset.source` say which it became; show them to the user.
    """
    folder = folder or data_folder()
    present = present_names(folder)
    return open_dataset(next((name for name in PREFERRED_HAR if name in present), synthetic.NAME), folder)


def _entry(name: str, folder: Path, present: tuple[str, ...]) -> Entry:
    if is_dataset(folder / name):
        info = read_info(folder / name)
        return Entry(name, info.title, info.source, info.licence, "ready", len(info.users), info.windows)
    recipe = load_recipe(name)
    if recipe is None:
        card = synthetic.draft()
        return Entry(name, card.title, card.source, card.licence, "made at need", None, None)
    state: State = "samples" if name in present else "absent"
    return Entry(name, recipe.title, "real", recipe.licence, state, None, None)
