"""Open a data set and read it user by user."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from flsys_ray.data.build import prepared_folder
from flsys_ray.data.folders import data_folder
from flsys_ray.data.schema import COLUMNS, WINDOWS_FILE, DatasetInfo, Examples, Source, file_sha256, read_info
from flsys_ray.data.windows import AXES, WindowSpec
from flsys_ray.errors import DataInvalid, NotFound


@dataclass(frozen=True)
class Dataset:
    """A data set on disk. Holds no windows: `examples` reads one user's.

    Attributes:
        folder: where it lies.
        info: what `dataset.json` says of all of it.
        classes: the classes that it is looked at with, in the order of their index.
    """

    folder: Path
    info: DatasetInfo
    classes: tuple[str, ...]

    @classmethod
    def at(cls, folder: Path) -> Self:
        """Open the canonical data set in a folder.

        Raises:
            DataInvalid: its two files do not belong together or do not have the canonical form.
        """
        info = read_info(folder)
        if file_sha256(folder / WINDOWS_FILE) != info.sha256:
            raise DataInvalid(
                f"{info.name}: {WINDOWS_FILE} is not the file that was described: build the data set again"
            )
        found = pq.read_schema(folder / WINDOWS_FILE)
        if missing := [c for c in COLUMNS if c not in found.names]:
            raise DataInvalid(f"{info.name}: {WINDOWS_FILE} lacks {', '.join(missing)}: build the data set again")
        width = info.spec.samples * AXES
        if found.field("x").type != pa.list_(pa.float32(), width):
            raise DataInvalid(f"{info.name}: column x is {found.field('x').type}, not {width} float32 a row")
        return cls(folder, info, info.classes)

    @property
    def name(self) -> str:
        """Its folder's name."""
        return self.info.name

    @property
    def title(self) -> str:
        """What people call it."""
        return self.info.title

    @property
    def source(self) -> Source:
        """Whether people made the data, or a formula."""
        return self.info.source

    @property
    def spec(self) -> WindowSpec:
        """The form of the windows."""
        return self.info.spec

    @property
    def users(self) -> tuple[str, ...]:
        """The users that have at least one window of these classes, sorted."""
        return tuple(user for user in self.info.users if self.count(user))

    def count(self, user: str) -> int:
        """Return how many windows of these classes a user has."""
        of_user = self.info.counts.get(user, {})
        return sum(of_user.get(label, 0) for label in self.classes)

    def select(self, classes: Sequence[str]) -> Self:
        """Return the same data set with these classes only, indexed in this order. Other windows are left out.

        Raises:
            DataInvalid: a class that it does not have, or one twice.
        """
        if unknown := [c for c in classes if c not in self.info.classes]:
            raise DataInvalid(f"{self.name} has no class {', '.join(unknown)}; it has {', '.join(self.info.classes)}")
        if not classes or len(set(classes)) != len(classes):
            raise DataInvalid(f"{self.name}: select at least one class, and each once, not {tuple(classes)}")
        return replace(self, classes=tuple(classes))

    def examples(self, user: str) -> Examples:
        """Read one user's windows, in order of session and time.

        Raises:
            NotFound: no such user, or none with these classes.
        """
        if not self.count(user):
            raise NotFound(f"{self.name} has no user {user!r} with these classes; its users are {_some(self.users)}")
        table = pq.read_table(self.folder / WINDOWS_FILE, filters=[("user", "=", user)], memory_map=True)
        y = pc.index_in(table["label"], value_set=pa.array(self.classes))
        table = table.append_column("y", y).filter(pc.is_valid(y))
        table = table.sort_by([("session", "ascending"), ("start_s", "ascending")]).combine_chunks()
        flat = table["x"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        return Examples(
            user=user,
            x=flat.reshape(-1, *self.spec.shape),
            y=table["y"].to_numpy().astype(np.int32),
            start_s=table["start_s"].to_numpy(),
            end_s=table["end_s"].to_numpy(),
            session=np.array(table["session"].to_pylist(), dtype=np.str_),
        )


def open_dataset(name: str, folder: Path | None = None) -> Dataset:
    """Open a data set by its name.

    It may lie in `folder` (default: `data_folder()`) in canonical form, or as the samples that its recipe knows
    how to convert: the windows are then cut once, and kept in the user's cache directory. The synthetic data set
    needs no file at all.

    Raises:
        NotFound: nothing of the kind is there; the message says what is, and how to build it.
        DataInvalid: what is there cannot be read.
    """
    return Dataset.at(prepared_folder(name, folder or data_folder()))


def _some(names: Sequence[str], most: int = 8) -> str:
    shown = ", ".join(names[:most])
    return f"{shown} ... ({len(names)} in all)" if len(names) > most else shown
