"""The canonical form of a data set on disk: `windows.parquet` and `dataset.json` in a folder of its name.

`windows.parquet`, one row a window, sorted by user, one row group a user (so that one user is read alone):

| column | type | meaning |
|---|---|---|
| user | string | who carried the phone |
| session | string | one uninterrupted recording; times compare within a user's session only |
| start_s, end_s | float64 | the window covers `[start_s, end_s)`, seconds on the recording's clock |
| label | string | class name |
| x | fixed_size_list<float32>[S * 3] | acceleration with gravity, S instants by x, y, z, row-major; m/s^2, Android |

The file's metadata repeat shape, rate, unit and sign. `dataset.json` holds `DatasetInfo`; it is written last, so a
folder without it is not a data set, and its `sha256` ties it to the windows that it describes. A data set of texts
will have `texts.parquet` and `"form": "texts"` there; everything else stays.
"""

import hashlib
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from flsys_ray.data.windows import AXES, Windows, WindowSpec
from flsys_ray.errors import DataInvalid

WINDOWS_FILE = "windows.parquet"
INFO_FILE = "dataset.json"
CANONICAL_CLASSES = ("walking", "jogging", "stairs", "sitting", "standing")
COLUMNS = ("user", "session", "start_s", "end_s", "label", "x")

Source = Literal["real", "synthetic"]


@dataclass(frozen=True)
class Examples:
    """Windows of one user, as a model takes them.

    Attributes:
        user: whose they are.
        x: `[N, S, 3]` float32, m/s^2.
        y: `[N]` int32, index into the data set's classes.
        start_s, end_s: `[N]` float64; a window covers `[start_s, end_s)` of its session.
        session: `[N]` names of recordings.
    """

    user: str
    x: NDArray[np.float32] = field(repr=False)
    y: NDArray[np.int32] = field(repr=False)
    start_s: NDArray[np.float64] = field(repr=False)
    end_s: NDArray[np.float64] = field(repr=False)
    session: NDArray[np.str_] = field(repr=False)

    def __len__(self) -> int:
        return len(self.y)

    def take(self, rows: NDArray[np.intp] | NDArray[np.bool_]) -> Self:
        """Return the windows that an index or mask picks."""
        return replace(
            self,
            x=self.x[rows],
            y=self.y[rows],
            start_s=self.start_s[rows],
            end_s=self.end_s[rows],
            session=self.session[rows],
        )


@dataclass(frozen=True)
class DatasetInfo:
    """What `dataset.json` says.

    Attributes:
        name: the folder's name.
        title: what people call it.
        source: "synthetic" data come from a formula: no statement about people follows from them.
        classes: class names in the order of their index.
        rate_hz, window_s, stride_s: the form of the windows.
        counts: windows by user and class.
        split: users of the owner's published parts ("train", "test"), if there are any.
        licence, citation, home: the owner's terms, reference and address.
        recipe_version: version of the code that made it; a new one makes the data anew.
        sha256: of `windows.parquet`.
    """

    name: str
    title: str
    source: Source
    rate_hz: float
    window_s: float
    stride_s: float
    licence: str
    citation: str
    home: str
    recipe_version: int
    split: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    sha256: str = ""

    @property
    def spec(self) -> WindowSpec:
        """The form of the windows."""
        return WindowSpec(rate_hz=self.rate_hz, window_s=self.window_s, stride_s=self.stride_s)

    @property
    def users(self) -> tuple[str, ...]:
        """All users, sorted."""
        return tuple(sorted(self.counts))

    @property
    def windows(self) -> int:
        """How many windows there are."""
        return sum(sum(of_user.values()) for of_user in self.counts.values())

    def to_json(self) -> str:
        """Return the text of `dataset.json`."""
        totals = {"form": "windows", "shape": list(self.spec.shape), "users": len(self.counts), "windows": self.windows}
        return json.dumps({**asdict(self), **totals}, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Read `dataset.json`. Unknown keys are left to later versions.

        Raises:
            DataInvalid: it is not JSON, lacks a key, or describes a form that this version cannot read.
        """
        try:
            raw: dict[str, Any] = json.loads(text)
            if raw.get("form", "windows") != "windows":
                raise DataInvalid(f"{INFO_FILE}: form {raw['form']!r} is not windows; this version reads windows only")
            values = {f.name: raw[f.name] for f in fields(cls)}
            values["classes"] = tuple(values["classes"])
            values["split"] = {part: tuple(users) for part, users in values["split"].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as problem:
            raise DataInvalid(f"{INFO_FILE} cannot be read ({problem!r}): build the data set again") from problem
        return cls(**values)


@dataclass(frozen=True)
class UserWindows:
    """All windows of one user on their way to disk: pairs of a session's name and its labelled windows."""

    user: str
    sessions: Sequence[tuple[str, Windows]]


def ordered_classes(names: Iterable[str]) -> tuple[str, ...]:
    """Order class names: the canonical ones first, so that they share indices between data sets, others by name."""
    present = set(names)
    return tuple(c for c in CANONICAL_CLASSES if c in present) + tuple(sorted(present - set(CANONICAL_CLASSES)))


def write_dataset(folder: Path, draft: DatasetInfo, users: Iterable[UserWindows]) -> DatasetInfo:
    """Write a data set; classes, counts and checksum of `draft` are filled in. Windows without a label are left out.

    Readers see the old data set or the new one, or refuse it by its checksum. Memory: one user at a time.

    Raises:
        DataInvalid: a user comes twice, or there is no window at all.
    """
    folder.mkdir(parents=True, exist_ok=True)
    counts: dict[str, dict[str, int]] = {}
    descriptor, temporary = tempfile.mkstemp(prefix=".windows-", dir=folder)
    os.close(descriptor)
    try:
        with pq.ParquetWriter(temporary, _schema(draft), compression="zstd") as writer:
            for entry in users:
                if entry.user in counts:
                    raise DataInvalid(
                        f"{draft.name}: user {entry.user!r} comes twice; recordings must be sorted by user"
                    )
                table = _table(entry, draft)
                if table.num_rows:
                    counts[entry.user] = dict(sorted(Counter(table["label"].to_pylist()).items()))
                    writer.write_table(table, row_group_size=table.num_rows)
        if not counts:
            raise DataInvalid(f"{draft.name}: the source gave no labelled window of {draft.window_s} s")
        classes = ordered_classes(label for of_user in counts.values() for label in of_user)
        info = replace(draft, classes=classes, counts=counts, sha256=file_sha256(Path(temporary)))
        os.chmod(temporary, 0o644)  # mkstemp's 0600 is for secrets
        os.replace(temporary, folder / WINDOWS_FILE)
    finally:
        Path(temporary).unlink(missing_ok=True)
    write_text_atomically(folder / INFO_FILE, info.to_json())
    return info


def read_info(folder: Path) -> DatasetInfo:
    """Read a data set's `dataset.json`."""
    return DatasetInfo.from_json((folder / INFO_FILE).read_text(encoding="utf-8"))


def is_dataset(folder: Path) -> bool:
    """Whether a folder holds a data set in canonical form."""
    return (folder / INFO_FILE).is_file() and (folder / WINDOWS_FILE).is_file()


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


def _schema(info: DatasetInfo) -> pa.Schema:
    samples = info.spec.samples
    form = {
        "shape": [samples, AXES],
        "rate_hz": info.rate_hz,
        "unit": "m/s^2",
        "sign": "android",
        "source": info.source,
    }
    return pa.schema(
        [
            ("user", pa.string()),
            ("session", pa.string()),
            ("start_s", pa.float64()),
            ("end_s", pa.float64()),
            ("label", pa.string()),
            ("x", pa.list_(pa.float32(), samples * AXES)),
        ],
        metadata={"flsys": json.dumps(form)},
    )


def _table(entry: UserWindows, info: DatasetInfo) -> pa.Table:
    schema = _schema(info)
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
