"""What a data set's recipe declares, and how its recordings become windows. For texts: `texts.py`.

A recipe is the file `datasets/<name>/recipe.py` with one `RECIPE`. A new folder is a new data set: nothing lists them.
In a checkout, `flsys_ray/data/recipes` is a link to `datasets/`; in a wheel it is a copy.
"""

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from flsys_ray.data.fetch import Download
from flsys_ray.data.schema import UserWindows, WindowsInfo, write_dataset
from flsys_ray.data.texts import TextRecipe
from flsys_ray.data.windows import WindowSpec, cut_windows, to_android
from flsys_ray.errors import DataInvalid, InvalidInput

RECIPES = Path(__file__).parent / "recipes"


@dataclass(frozen=True)
class Recording:
    """One uninterrupted session of one user as its source has it: own unit, sign, rate and activity names.

    Attributes:
        user: who carried the phone.
        session: the recording's name, unique for the user.
        instants_s: `[T]` float64 seconds.
        xyz: `[T, 3]` acceleration with gravity.
        activities: `[T]` the owner's names; None where nothing is said.
    """

    user: str
    session: str
    instants_s: NDArray[np.float64]
    xyz: NDArray[Any]
    activities: Sequence[str | None]


@dataclass(frozen=True)
class Recipe:
    """One data set of sensor windows: its card, where its owner keeps it, and how it is read.

    Attributes:
        title, home, licence, citation: of the card.
        version: raise it whenever the same source would give other windows.
        classes: our class name for the owner's activity name; activities that are not here are left out.
        unit, sign: of the recordings.
        samples_file: a Parquet file of samples with columns user, activity, timestamp_ns, ax, ay, az and
            perhaps session, as one prepares it once from the owner's files.
        downloads: the owner's files.
        read_owner: reads the owner's files in a folder (zipped or not), sorted by user.
        spec: the form of the windows.
        split: users of the owner's published parts.
    """

    title: str
    home: str
    licence: str
    citation: str
    version: int
    classes: Mapping[str, str]
    unit: Literal["g", "m/s^2"]
    sign: Literal["ios", "android"]
    samples_file: str
    downloads: tuple[Download, ...]
    read_owner: Callable[[Path], Iterator[Recording]]
    spec: WindowSpec = field(default_factory=WindowSpec)
    split: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def convert(self, name: str, source: Path, target: Path, min_texts: int | None = None) -> WindowsInfo:
        """Read what is in `source`, and write the data set into the folder `target`.

        Raises:
            InvalidInput: `min_texts` is for data sets of texts.
        """
        if min_texts is not None:
            raise InvalidInput(f"{name}: a data set of windows has no texts to count")
        return write_dataset(target, self.draft(name), self.user_windows(self.recordings(source)))

    def draft(self, name: str) -> WindowsInfo:
        """Return what is known of the data set before any file is read."""
        return WindowsInfo(
            name=name,
            title=self.title,
            source="real",
            rate_hz=self.spec.rate_hz,
            window_s=self.spec.window_s,
            stride_s=self.spec.stride_s,
            licence=self.licence,
            citation=self.citation,
            home=self.home,
            recipe_version=self.version,
            split=self.split,
        )

    def recordings(self, folder: Path) -> Iterator[Recording]:
        """Read what is in a folder: the file of samples if it is there, or else the owner's files."""
        samples = folder / self.samples_file
        return read_samples(samples) if samples.is_file() else self.read_owner(folder)

    def user_windows(self, recordings: Iterator[Recording]) -> Iterator[UserWindows]:
        """Convert recordings that are sorted by user to windows: unit, sign, class names, rate."""
        for user, group in groupby(recordings, key=lambda r: r.user):
            sessions = []
            for recording in group:
                xyz = to_android(recording.xyz, unit=self.unit, sign=self.sign)
                names = {activity: self.classes.get(activity or "") for activity in set(recording.activities)}
                labels = [names[activity] for activity in recording.activities]
                sessions.append((recording.session, cut_windows(recording.instants_s, xyz, labels, self.spec)))
            yield UserWindows(user, sessions)


def recipe_names() -> tuple[str, ...]:
    """Return the names of all data sets that have a recipe."""
    return tuple(sorted(file.parent.name for file in RECIPES.glob("*/recipe.py")))


def load_recipe(name: str) -> Recipe | TextRecipe | None:
    """Return a data set's recipe, or None if there is none."""
    if name not in recipe_names():
        return None
    recipe = importlib.import_module(f"{__package__}.recipes.{name}.recipe").RECIPE
    if not isinstance(recipe, Recipe | TextRecipe):
        raise DataInvalid(f"datasets/{name}/recipe.py: RECIPE is a {type(recipe).__name__}, not a Recipe or TextRecipe")
    return recipe


def read_samples(path: Path) -> Iterator[Recording]:
    """Read a Parquet file of samples, sorted by user, session and time.

    Without a column `session`, each activity of a user is a session.
    """
    present = pq.read_schema(path).names
    needed = ("user", "activity", "timestamp_ns", "ax", "ay", "az")
    if missing := [c for c in needed if c not in present]:
        raise DataInvalid(f"{path.name} lacks the columns {', '.join(missing)}")
    names = [c for c in (*needed, "session") if c in present]
    texts = [c for c in ("user", "activity", "session") if c in names]
    table = pq.read_table(path, columns=names, read_dictionary=texts).unify_dictionaries().combine_chunks()
    users, user = _coded(table["user"])
    activities, activity = _coded(table["activity"])
    sessions, session = _coded(table["session"]) if "session" in names else (activities, activity)
    instants_ns = table["timestamp_ns"].to_numpy()
    order = np.lexsort((instants_ns, _rank(sessions)[session], _rank(users)[user]))
    xyz = np.stack([table[axis].to_numpy() for axis in ("ax", "ay", "az")], axis=1)
    ends = np.flatnonzero(np.diff(user[order]) | np.diff(session[order])) + 1
    for rows in np.split(order, ends):
        yield Recording(
            user=str(users[user[rows[0]]]),
            session=str(sessions[session[rows[0]]]),
            instants_s=instants_ns[rows] * 1e-9,
            xyz=xyz[rows],
            activities=[activities[code] for code in activity[rows]],
        )


def sessions_by_activity(
    user: str, instants_s: NDArray[np.float64], xyz: NDArray[Any], activities: Sequence[str | None]
) -> Iterator[Recording]:
    """Make one session of each activity of a user, sorted by time, as where the owner recorded one after the other."""
    names = np.array([activity or "" for activity in activities], dtype=np.str_)
    for name in sorted(set(names.tolist()) - {""}):
        rows = np.flatnonzero(names == name)
        rows = rows[np.argsort(instants_s[rows], kind="stable")]
        yield Recording(user, name, instants_s[rows], xyz[rows], [name] * len(rows))


def _coded(column: Any) -> tuple[list[str | None], NDArray[np.int64]]:
    """Return names and codes of a dictionary column; the last name is None, and code -1 points to it."""
    array = column.combine_chunks()
    names: list[str | None] = [*array.dictionary.to_pylist(), None]
    return names, array.indices.fill_null(-1).to_numpy().astype(np.int64)


def _rank(names: list[str | None]) -> NDArray[np.int64]:
    order = sorted(range(len(names)), key=lambda i: names[i] or "")
    ranks = np.empty(len(names), np.int64)
    ranks[order] = np.arange(len(names))
    return ranks
