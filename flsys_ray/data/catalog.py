"""Which data sets there are, and which one to take when nobody says."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from flsys_ray.data import synthetic, synthetic_texts
from flsys_ray.data.build import SYNTHETIC, present_names
from flsys_ray.data.dataset import Dataset, open_dataset
from flsys_ray.data.folders import data_folder
from flsys_ray.data.recipe import load_recipe, recipe_names
from flsys_ray.data.schema import Source, is_dataset, read_info
from flsys_ray.data.texts import TextRecipe

PREFERRED_TEXTS = ("sentiment140", "airline_tweets")
PREFERRED_HAR = ("wisdm2019", "uci_hapt", "motionsense")

State = Literal["ready", "samples", "made at need", "absent"]


@dataclass(frozen=True)
class Entry:
    """One line of the catalogue.

    Attributes:
        name, title, source, licence: of the data set.
        form: "windows" or "texts".
        state: "ready" in canonical form; "samples": converted when it is first opened; "made at need": a synthetic
            source; "absent": a recipe can build it.
        users, windows, texts: how many; None as long as it is not in canonical form, and for the other form.
    """

    name: str
    title: str
    source: Source
    licence: str
    form: str
    state: State
    users: int | None = None
    windows: int | None = None
    texts: int | None = None


def list_datasets(folder: Path | None = None) -> tuple[Entry, ...]:
    """Return what lies in a folder (default: `data_folder()`) and what recipes could add, sorted by name."""
    folder = folder or data_folder()
    present = present_names(folder)
    return tuple(_entry(name, folder, present) for name in sorted({*present, *recipe_names(), *SYNTHETIC}))


def default_har_dataset(folder: Path | None = None) -> Dataset:
    """Open the best sensor data at hand: WISDM, or else HAPT, or else MotionSense, or else the synthetic source.

    `Dataset.title` and `Dataset.source` say which it became; show them to the user.
    """
    folder = folder or data_folder()
    present = present_names(folder)
    return open_dataset(next((name for name in PREFERRED_HAR if name in present), synthetic.NAME), folder)


def default_text_dataset(folder: Path | None = None) -> Dataset:
    """Open the best texts at hand: Sentiment140, or else the tweets to airlines, or else the synthetic source."""
    folder = folder or data_folder()
    present = present_names(folder)
    return open_dataset(next((name for name in PREFERRED_TEXTS if name in present), synthetic_texts.NAME), folder)


def _entry(name: str, folder: Path, present: tuple[str, ...]) -> Entry:
    if is_dataset(folder / name):
        info = read_info(folder / name)
        entry = Entry(name, info.title, info.source, info.licence, info.form, "ready", len(info.users))
        if info.form == "texts":
            return replace(entry, texts=info.examples)
        return replace(entry, windows=info.examples)
    recipe = load_recipe(name)
    if recipe is None:
        card = synthetic_texts.draft() if name == synthetic_texts.NAME else synthetic.draft()
        return Entry(name, card.title, card.source, card.licence, card.form, "made at need")
    state: State = "samples" if name in present else "absent"
    form = "texts" if isinstance(recipe, TextRecipe) else "windows"
    return Entry(name, recipe.title, "real", recipe.licence, form, state)
