"""The canonical form of a data set on disk: `dataset.json` and one Parquet file in a folder of its name.

`windows.parquet`, one row a window, sorted by user, one row group a user (so that one user is read alone):

| column | type | meaning |
|---|---|---|
| user | string | who carried the phone |
| session | string | one uninterrupted recording; times compare within a user's session only |
| start_s, end_s | float64 | the window covers `[start_s, end_s)`, seconds on the recording's clock |
| label | string | class name |
| x | fixed_size_list<float32>[S * 3] | acceleration with gravity, S instants by x, y, z, row-major; m/s^2, Android |

The file's metadata repeat shape, rate, unit and sign.

`texts.parquet`, one row a text, sorted by user, each user's oldest first, some thousand texts a row group:

| column | type | meaning |
|---|---|---|
| user | string | whose text it is, a pseudonym |
| created_s | float64 | when it was written, UTC seconds |
| label | string | class name |
| text | string | as it was written; a program's tokenizer makes numbers of it when it is read |

`dataset.json` holds a `DatasetInfo`, and says in `form` which of the two it is; it is written last, so a folder without
it is not a data set, and its `sha256` ties it to the file that it describes.
"""

import hashlib
import json
import os
import tempfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, Self, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from flsys_ray.data.windows import AXES, Windows, WindowSpec
from flsys_ray.errors import DataInvalid

WINDOWS_FILE = "windows.parquet"
TEXTS_FILE = "texts.parquet"
INFO_FILE = "dataset.json"
CANONICAL_CLASSES = ("walking", "jogging", "stairs", "sitting", "standing")
CLASS_ORDER = ("walking", "jogging", "stairs", "upstairs", "downstairs", "sitting", "standing")
UNIONS = {"stairs": ("upstairs", "downstairs")}  # classes that a data set with their parts can be read with

Source = Literal["real", "synthetic"]
Info = TypeVar("Info", bound="DatasetInfo")


@dataclass(frozen=True)
class Examples:
    """Windows or texts of one user, as a model takes them.

    Attributes:
        user: whose they are.
        x: windows: `[N, S, 3]` float32, m/s^2; texts: `[N, L]` int32, ids of tokens.
        y: `[N]` int32, index into the data set's classes.
        start_s, end_s: `[N]` float64; a window covers `[start_s, end_s)` of its session, a text only an instant.
        session: `[N]` names of recordings; "" for texts.
    """

    user: str
    x: NDArray[Any] = field(repr=False)
    y: NDArray[np.int32] = field(repr=False)
    start_s: NDArray[np.float64] = field(repr=False)
    end_s: NDArray[np.float64] = field(repr=False)
    session: NDArray[np.str_] = field(repr=False)

    def __len__(self) -> int:
        return len(self.y)

    def take(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> Self:
        """Return the examples that an index or mask picks."""
        return replace(
            self,
            x=self.x[rows],
            y=self.y[rows],
            start_s=self.start_s[rows],
            end_s=self.end_s[rows],
            session=self.session[rows],
        )


@dataclass(frozen=True, kw_only=True)
class DatasetInfo(ABC):
    """What `dataset.json` says of every data set.

    Attributes:
        name: the folder's name.
        title: what people call it.
        source: "synthetic" data come from a formula: no statement about people follows from them.
        licence, citation, home: the owner's terms, reference and address.
        recipe_version: version of the code that made it; a new one makes the data anew.
        split: users of the owner's published parts ("train", "test"), if there are any.
        classes: class names in the order of their index.
        counts: examples by user and class.
        sha256: of the Parquet file.
    """

    form: ClassVar[str]
    file: ClassVar[str]
    row_group: ClassVar[int]  # fewest rows of a row group; it holds whole users

    name: str
    title: str
    source: Source
    licence: str
    citation: str
    home: str
    recipe_version: int
    split: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    sha256: str = ""

    @abstractmethod
    def schema(self) -> pa.Schema:
        """Return the schema of the Parquet file."""

    @property
    def users(self) -> tuple[str, ...]:
        """All users, sorted."""
        return tuple(sorted(self.counts))

    @property
    def examples(self) -> int:
        """How many windows or texts there are."""
        return sum(sum(of_user.values()) for of_user in self.counts.values())

    def to_json(self) -> str:
        """Return the text of `dataset.json`."""
        totals = {"form": self.form, "users": len(self.counts), self.form: self.examples}
        return json.dumps({**asdict(self), **self.described(), **totals}, indent=1, ensure_ascii=False) + "\n"

    def described(self) -> Mapping[str, Any]:
        """Return what `dataset.json` says for readers, and this code does not read."""
        return {}

    @staticmethod
    def from_json(text: str) -> "DatasetInfo":
        """Read `dataset.json`. Unknown keys are left to later versions.

        Raises:
            DataInvalid: it is not JSON, lacks a key, or describes a form that this version cannot read.
        """
        try:
            raw: dict[str, Any] = json.loads(text)
            form = raw.get("form", WindowsInfo.form)
            kind = next((kind for kind in FORMS if kind.form == form), None)
            if kind is None:
                raise DataInvalid(f"{INFO_FILE}: this version cannot read data of the form {form!r}")
            values = {f.name: raw[f.name] for f in fields(kind)}
            values["classes"] = tuple(values["classes"])
            values["split"] = {part: tuple(users) for part, users in values["split"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as problem:
            raise DataInvalid(f"{INFO_FILE} cannot be read ({problem!r}): build the data set again") from problem
        return kind(**values)


@dataclass(frozen=True, kw_only=True)
class WindowsInfo(DatasetInfo):
    """A data set of sensor windows; `rate_hz`, `window_s`, `stride_s` are their form."""

    form: ClassVar[str] = "windows"
    file: ClassVar[str] = WINDOWS_FILE
    row_group: ClassVar[int] = 1

    rate_hz: float
    window_s: float
    stride_s: float

    @property
    def spec(self) -> WindowSpec:
        """The form of the windows."""
        return WindowSpec(rate_hz=self.rate_hz, window_s=self.window_s, stride_s=self.stride_s)

    def described(self) -> Mapping[str, Any]:
        """Return the shape of a window."""
        return {"shape": list(self.spec.shape)}

    def schema(self) -> pa.Schema:
        """Return the schema of `windows.parquet`."""
        samples = self.spec.samples
        form = {"shape": [samples, AXES], "rate_hz": self.rate_hz, "unit": "m/s^2", "sign": "android"}
        return pa.schema(
            [
                ("user", pa.string()),
                ("session", pa.string()),
                ("start_s", pa.float64()),
                ("end_s", pa.float64()),
                ("label", pa.string()),
                ("x", pa.list_(pa.float32(), samples * AXES)),
            ],
            metadata={"flsys": json.dumps({**form, "source": self.source})},
        )


@dataclass(frozen=True, kw_only=True)
class TextsInfo(DatasetInfo):
    """A data set of texts.

    Attributes:
        min_texts: fewest texts of a user; users with fewer were left out.
        repeats: texts that were left out because the same words had been there before, of whomever.
    """

    form: ClassVar[str] = "texts"
    file: ClassVar[str] = TEXTS_FILE
    row_group: ClassVar[int] = 4096

    min_texts: int
    repeats: int = 0

    def schema(self) -> pa.Schema:
        """Return the schema of `texts.parquet`."""
        columns = [("user", pa.string()), ("created_s", pa.float64()), ("label", pa.string()), ("text", pa.string())]
        return pa.schema(columns, metadata={"flsys": json.dumps({"source": self.source})})


FORMS: tuple[type[WindowsInfo] | type[TextsInfo], ...] = (WindowsInfo, TextsInfo)


@dataclass(frozen=True)
class UserWindows:
    """All windows of one user on their way to disk: pairs of a session's name and its labelled windows."""

    user: str
    sessions: Sequence[tuple[str, Windows]]


def ordered_classes(names: Iterable[str]) -> tuple[str, ...]:
    """Order class names: the canonical ones first, so that they share indices between data sets, others by name."""
    present = set(names)
    return tuple(c for c in CLASS_ORDER if c in present) + tuple(sorted(present - set(CLASS_ORDER)))


def write_dataset(folder: Path, draft: WindowsInfo, users: Iterable[UserWindows]) -> WindowsInfo:
    """Write a data set of windows. Windows without a label are left out. See `write_tables`."""
    return write_tables(folder, draft, ((entry.user, _table(entry, draft)) for entry in users))


def write_tables(folder: Path, draft: Info, tables: Iterable[tuple[str, pa.Table]]) -> Info:
    """Write a data set from its users' tables; classes, counts and checksum of `draft` are filled in.

    Readers see the old data set or the new one, or refuse it by its checksum. Memory: one user at a time.

    Raises:
        DataInvalid: a user comes twice, or there is no example at all.
    """
    folder.mkdir(parents=True, exist_ok=True)
    counts: dict[str, dict[str, int]] = {}
    waiting: list[pa.Table] = []
    descriptor, temporary = tempfile.mkstemp(prefix=f".{draft.form}-", dir=folder)
    os.close(descriptor)
    try:
        with pq.ParquetWriter(temporary, draft.schema(), compression="zstd") as writer:
            for user, table in tables:
                if user in counts:
                    raise DataInvalid(f"{draft.name}: user {user!r} comes twice; recordings must be sorted by user")
                if table.num_rows:
                    counts[user] = dict(sorted(Counter(table["label"].to_pylist()).items()))
                    waiting.append(table)
                if sum(part.num_rows for part in waiting) >= draft.row_group:
                    _write_group(writer, waiting)
            if waiting:
                _write_group(writer, waiting)
        if not counts:
            raise DataInvalid(f"{draft.name}: the source gave no labelled {draft.form}")
        classes = ordered_classes(label for of_user in counts.values() for label in of_user)
        info = replace(draft, classes=classes, counts=counts, sha256=file_sha256(Path(temporary)))
        os.chmod(temporary, 0o644)  # mkstemp's 0600 is for secrets
        os.replace(temporary, folder / draft.file)
    finally:
        Path(temporary).unlink(missing_ok=True)
    write_text_atomically(folder / INFO_FILE, info.to_json())
    return info


def _write_group(writer: pq.ParquetWriter, waiting: list[pa.Table]) -> None:
    table = pa.concat_tables(waiting)
    writer.write_table(table, row_group_size=table.num_rows)
    waiting.clear()


def read_info(folder: Path) -> DatasetInfo:
    """Read a data set's `dataset.json`."""
    return DatasetInfo.from_json((folder / INFO_FILE).read_text(encoding="utf-8"))


def is_dataset(folder: Path) -> bool:
    """Whether a folder holds a data set in canonical form."""
    return (folder / INFO_FILE).is_file() and any((folder / kind.file).is_file() for kind in FORMS)


def file_sha256(path: Path) -> str:
    """Return the hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text_atomically(path: Path, text: str) -> None:
    """Write a small file whole or not at all."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _table(entry: UserWindows, info: WindowsInfo) -> pa.Table:
    schema = info.schema()
    parts = []
    for session, windows in entry.sessions:
        keep = np.flatnonzero([label is not None for label in windows.label])
        flat = pa.array(np.ascontiguousarray(windows.x[keep]).reshape(-1))
        columns = {
            "user": pa.array([entry.user] * len(keep), pa.string()),
            "session": pa.array([session] * len(keep), pa.string()),
            "start_s": pa.array(windows.start_s[keep]),
            "end_s": pa.array(windows.end_s[keep]),
            "label": pa.array([windows.label[i] for i in keep], pa.string()),
            "x": pa.FixedSizeListArray.from_arrays(flat, info.spec.samples * AXES),
        }
        parts.append(pa.table(columns, schema=schema))
    return pa.concat_tables(parts) if parts else schema.empty_table()
