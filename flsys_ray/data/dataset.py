"""Open a data set and read it user by user."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from flsys_ray.data.build import prepared_folder
from flsys_ray.data.folders import data_folder
from flsys_ray.data.schema import UNIONS, DatasetInfo, Examples, Source, TextsInfo, WindowsInfo, file_sha256, read_info
from flsys_ray.data.windows import WindowSpec
from flsys_ray.errors import DataInvalid, NotFound
from flsys_ray.tokenizer import Tokenizer


@dataclass(frozen=True)
class Dataset(ABC):
    """A data set on disk. `examples` reads one user's.

    Attributes:
        folder: where it lies.
        info: what `dataset.json` says of all of it.
        classes: the classes that it is looked at with, in the order of their index.
    """

    folder: Path
    info: DatasetInfo
    classes: tuple[str, ...]

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
    def users(self) -> tuple[str, ...]:
        """The users that have at least one example of these classes, sorted."""
        return tuple(user for user in self.info.users if self.count(user))

    def count(self, user: str) -> int:
        """Return how many examples of these classes a user has."""
        of_user = self.info.counts.get(user, {})
        return sum(of_user.get(label, 0) for name in self.classes for label in self.labels_of(name))

    def labels_of(self, name: str) -> tuple[str, ...]:
        """Return the labels that make up a class: its own, or those of its parts (`schema.UNIONS`); () if none does."""
        labels = (name,) if name in self.info.classes else UNIONS.get(name, ())
        return labels if all(label in self.info.classes for label in labels) else ()

    def select(self, classes: Sequence[str]) -> Self:
        """Return the same data set with these classes only, indexed in this order. Other examples are left out.

        Raises:
            DataInvalid: a class that it does not have, or one twice, or a part beside the whole (upstairs and stairs).
        """
        if unknown := [c for c in classes if not self.labels_of(c)]:
            raise DataInvalid(f"{self.name} has no class {', '.join(unknown)}; it has {', '.join(self.info.classes)}")
        labels = [label for name in classes for label in self.labels_of(name)]
        if not classes or len(set(labels)) != len(labels):
            raise DataInvalid(f"{self.name}: select at least one class, and each once, not {tuple(classes)}")
        return replace(self, classes=tuple(classes))

    @abstractmethod
    def fit(self, classes: Sequence[str], tokenizer: Tokenizer | None) -> Self:
        """Return the same data set as a program reads it: with its classes, and its tokenizer if it takes texts.

        Raises:
            DataInvalid: the program takes another form of data, or classes that are not there.
        """

    def examples(self, user: str) -> Examples:
        """Read one user's examples, in order of session and time.

        Raises:
            NotFound: no such user, or none with these classes.
        """
        return self.read(user, self.table(user))

    def table(self, user: str) -> pa.Table:
        """Read one user's rows of these classes, in the order of the file; `y` is the index of each one's class.

        Raises:
            NotFound: no such user, or none with these classes.
        """
        if not self.count(user):
            raise NotFound(f"{self.name} has no user {user!r} with these classes; its users are {_some(self.users)}")
        table = self._rows(user)
        index = {label: i for i, name in enumerate(self.classes) for label in self.labels_of(name)}
        place = pc.index_in(table["label"], value_set=pa.array(list(index)))
        y = pc.take(pa.array(index.values(), pa.int32()), place)
        return table.append_column("y", y).filter(pc.is_valid(y))

    def _rows(self, user: str) -> pa.Table:
        """Read one user's rows."""
        return pq.read_table(self.folder / self.info.file, filters=[("user", "=", user)], memory_map=True)

    @abstractmethod
    def read(self, user: str, table: pa.Table) -> Examples:
        """Return rows of one user's `table` as examples, in order of session and time."""


@dataclass(frozen=True)
class WindowDataset(Dataset):
    """A data set of sensor windows: x `[N, S, 3]` float32."""

    info: WindowsInfo

    @property
    def spec(self) -> WindowSpec:
        """The form of the windows."""
        return self.info.spec

    def fit(self, classes: Sequence[str], tokenizer: Tokenizer | None) -> Self:
        """Return the same data set with these classes."""
        if tokenizer is not None:
            raise DataInvalid(f"{self.name} holds windows of a sensor, and the program takes texts")
        return self.select(classes)

    def read(self, user: str, table: pa.Table) -> Examples:
        """Return windows of one user."""
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


@dataclass(frozen=True)
class TextDataset(Dataset):
    """A data set of texts: x `[N, L]` int32, as `tokenizer` makes it: the one of the program that is to read it.

    Texts are small and their users many: the file is read once, and kept.
    """

    info: TextsInfo
    tokenizer: Tokenizer = field(default_factory=Tokenizer)

    def fit(self, classes: Sequence[str], tokenizer: Tokenizer | None) -> Self:
        """Return the same data set with these classes, read with this tokenizer."""
        if tokenizer is None:
            raise DataInvalid(f"{self.name} holds texts, and the program has no tokenizer")
        return replace(self.select(classes), tokenizer=tokenizer)

    def texts(self, user: str) -> tuple[str, ...]:
        """Return one user's texts, in the order of `examples`."""
        table = self._rows(user)
        labels = [label for name in self.classes for label in self.labels_of(name)]
        table = table.filter(pc.is_in(table["label"], value_set=pa.array(labels)))
        return tuple(table.sort_by("created_s")["text"].to_pylist())

    def _rows(self, user: str) -> pa.Table:
        return self._all.filter(pc.equal(self._all["user"], user))

    @cached_property
    def _all(self) -> pa.Table:
        return pq.read_table(self.folder / self.info.file)

    def read(self, user: str, table: pa.Table) -> Examples:
        """Return texts of one user."""
        table = table.sort_by("created_s")
        created_s = table["created_s"].to_numpy()
        return Examples(
            user=user,
            x=self.tokenizer.batch(table["text"].to_pylist()),
            y=table["y"].to_numpy().astype(np.int32),
            start_s=created_s,
            end_s=created_s,
            session=np.full(len(created_s), "", dtype=np.str_),
        )


def dataset_at(folder: Path) -> Dataset:
    """Open the canonical data set in a folder.

    Raises:
        DataInvalid: its two files do not belong together or do not have the canonical form.
    """
    info = read_info(folder)
    file = folder / info.file
    if not file.is_file() or file_sha256(file) != info.sha256:
        raise DataInvalid(f"{info.name}: {info.file} is not the file that was described: build the data set again")
    found, expected = pq.read_schema(file), info.schema()
    if missing := [c for c in expected.names if c not in found.names]:
        raise DataInvalid(f"{info.name}: {info.file} lacks {', '.join(missing)}: build the data set again")
    for column in expected.names:
        if found.field(column).type != expected.field(column).type:
            has, must = found.field(column).type, expected.field(column).type
            raise DataInvalid(f"{info.name}: column {column} is {has}, not {must}")
    kinds: dict[type[DatasetInfo], Any] = {WindowsInfo: WindowDataset, TextsInfo: TextDataset}
    made: Dataset = kinds[type(info)](folder, info, info.classes)
    return made


def open_dataset(name: str, folder: Path | None = None) -> Dataset:
    """Open a data set by its name.

    It may lie in `folder` (default: `data_folder()`) in canonical form, or as the samples that its recipe knows
    how to convert: it is then converted once, and kept in the user's cache directory. The synthetic data sets need
    no file at all.

    Raises:
        NotFound: nothing of the kind is there; the message says what is, and how to build it.
        DataInvalid: what is there cannot be read.
    """
    return dataset_at(prepared_folder(name, folder or data_folder()))


def _some(names: Sequence[str], most: int = 8) -> str:
    shown = ", ".join(names[:most])
    return f"{shown} ... ({len(names)} in all)" if len(names) > most else shown
