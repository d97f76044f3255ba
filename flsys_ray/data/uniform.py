"""A class-uniform set of some users' examples: as many of each class, drawn without replacement.

It is what phones may share beside their own examples (Zhao et al. 2018, arXiv 1806.00582, section 4). Same data set,
classes, users and seed: same set; a larger one from the same seed holds all of a smaller one.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from flsys_ray.core.rng import generator
from flsys_ray.data.dataset import Dataset
from flsys_ray.data.schema import DatasetInfo, TextsInfo, is_dataset, read_info, write_tables
from flsys_ray.errors import DataInvalid


def uniform_examples(
    dataset: Dataset, users: Sequence[str], per_class: int | None = None, seed: int = 0
) -> tuple[NDArray[Any], NDArray[np.int32]]:
    """Return x [N, ...] and y [N] of `per_class` examples of each of the data set's classes; None: all there can be.

    Raises `DataInvalid` if a class has fewer.
    """
    drawn = _drawn(dataset, users, per_class, seed)
    parts = [dataset.read(user, table) for user, table in drawn.items()]
    return np.concatenate([part.x for part in parts]), np.concatenate([part.y for part in parts])


def write_uniform(
    folder: Path, dataset: Dataset, users: Sequence[str], per_class: int | None = None, seed: int = 0
) -> DatasetInfo:
    """Write such a set as a data set of its own into `folder`, which gives it its name.

    Raises `DataInvalid` if a class has fewer, or if the folder is there and holds anything but an earlier draw.
    """
    if folder.exists() and not (is_dataset(folder) and read_info(folder).title.endswith(_of(dataset))):
        raise DataInvalid(f"the folder {folder.name!r} is there, and no set that was drawn from {dataset.name}")
    drawn = _drawn(dataset, users, per_class, seed)
    count = sum(table.num_rows for table in drawn.values()) // len(dataset.classes)
    title = f"{count}{_of(dataset)}"
    draft = replace(dataset.info, name=folder.name, title=title, split={}, classes=(), counts={}, sha256="")
    if isinstance(draft, TextsInfo):
        draft = replace(draft, min_texts=1)
    names = draft.schema().names
    return write_tables(folder, draft, ((user, table.select(names)) for user, table in drawn.items()))


def _of(dataset: Dataset) -> str:
    return f" examples a class of {dataset.title}"


def _drawn(dataset: Dataset, users: Sequence[str], per_class: int | None, seed: int) -> dict[str, pa.Table]:
    """Return what was drawn of each user that anything was drawn of, in the order of users."""
    tables = [dataset.table(user) for user in users if dataset.count(user)]
    if not tables:
        raise DataInvalid(f"{dataset.name}: these users have no example of the classes {', '.join(dataset.classes)}")
    y = np.concatenate([table["y"].to_numpy() for table in tables])
    present = np.bincount(y, minlength=len(dataset.classes))
    rarest = int(present.argmin())
    count = int(present[rarest]) if per_class is None else per_class
    if not 0 < count <= present[rarest]:
        raise DataInvalid(
            f"{dataset.name}: {count} examples a class cannot be drawn: its users have {present[rarest]} "
            f"of {dataset.classes[rarest]!r}"
        )
    keep = np.zeros(len(y), dtype=np.bool_)
    for index, name in enumerate(dataset.classes):
        order = generator(seed, "uniform-set", 0, name).permutation(np.flatnonzero(y == index))
        keep[order[:count]] = True
    ends = np.cumsum([table.num_rows for table in tables])[:-1]
    parts = zip(tables, np.split(keep, ends), strict=True)
    return {table["user"][0].as_py(): table.filter(pa.array(kept)) for table, kept in parts if kept.any()}
