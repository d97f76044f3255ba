"""Read the files of a folder, and those inside zip files (and zip files in them), without unpacking to disk."""

import io
import re
import shutil
import tempfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
import pyarrow.csv as pv

from flsys_ray.errors import DataInvalid


@dataclass(frozen=True)
class Member:
    """One file: its path below the folder, with the paths inside zip files appended, and its bytes."""

    path: str
    read: bytes


def members(folder: Path, pattern: str) -> Iterator[Member]:
    """Yield the files whose path ends in a match of a regular expression, in order of their paths.

    Paths are compared with `/` between their parts. A file that is there twice, say unpacked and in its zip, is
    taken once: paths are compared from the match on.

    Raises:
        DataInvalid: a zip file is damaged.
    """
    wanted = re.compile(f"(?:^|.*/)({pattern})$")
    seen: set[str] = set()
    for path, file in _walk(folder):
        if (match := wanted.match(path)) and match[1] not in seen:
            seen.add(match[1])
            yield Member(match[1], file.read())


def _walk(folder: Path) -> Iterator[tuple[str, IO[bytes]]]:
    paths = sorted(p for p in folder.rglob("*") if p.is_file()) if folder.is_dir() else [folder]
    for path in sorted(paths, key=lambda p: p.suffix.lower() == ".zip"):  # unpacked files first
        with path.open("rb") as file:
            if path.suffix.lower() == ".zip":
                yield from _walk_zip(path.name, file)
            else:
                yield path.relative_to(folder).as_posix(), file


def _walk_zip(name: str, file: IO[bytes]) -> Iterator[tuple[str, IO[bytes]]]:
    try:
        with zipfile.ZipFile(file) as archive:
            for entry in sorted(archive.namelist()):
                if entry.lower().endswith(".zip"):
                    with tempfile.TemporaryFile() as whole, archive.open(entry) as packed:
                        shutil.copyfileobj(packed, whole)  # zip needs to seek, which a packed stream does badly
                        yield from _walk_zip(entry, whole)
                elif not entry.endswith("/") and not entry.startswith("__MACOSX/"):
                    with archive.open(entry) as member:
                        yield entry, member
    except (zipfile.BadZipFile, EOFError) as problem:
        raise DataInvalid(f"{name} is not a whole zip file ({problem}): fetch it again") from problem


def parsed_csv(
    member: Member,
    columns: dict[str, pa.DataType],
    *,
    header: bool,
    delimiter: str = ",",
    encoding: str = "utf8",
    multiline: bool = False,
) -> pa.Table:
    """Read a table of the given columns; without a header they are all that each line has.

    With `multiline`, quoted values may hold line breaks.

    Raises:
        DataInvalid: a line or a number cannot be read; the message names the file.
    """
    try:
        return pv.read_csv(
            io.BytesIO(member.read),
            read_options=pv.ReadOptions(column_names=None if header else list(columns), encoding=encoding),
            parse_options=pv.ParseOptions(delimiter=delimiter, newlines_in_values=multiline),
            convert_options=pv.ConvertOptions(column_types=columns, include_columns=list(columns)),
        )
    except (pa.ArrowInvalid, KeyError) as problem:
        raise DataInvalid(f"{member.path}: {problem}") from problem


def stacked(table: pa.Table, columns: tuple[str, str, str]) -> "np.ndarray[tuple[int, int], np.dtype[np.float64]]":
    """Return three columns as `[T, 3]` float64."""
    return np.stack([table[c].to_numpy().astype(np.float64) for c in columns], axis=1)
