"""Reads safetensors files without copying their numbers: an update has a megabyte, and hundreds come in a second.

The format (https://github.com/huggingface/safetensors): 8 bytes with the length of the header, little-endian; the
header, JSON, which names each tensor's `dtype`, `shape` and `data_offsets`; the tensors' bytes, one after the other and
without gaps. A test compares what is read here with what the format's own library reads.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flsys_ray.errors import UpdateUnusable

MAX_HEADER_BYTES = 64 * 1024
_ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor of a file. `data` is a view of the file's bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: memoryview

    def as_array(self, dtype: np.dtype[Any]) -> NDArray[Any]:
        """Return the numbers: a read-only view [*shape], or a copy where the file has them at an odd address."""
        view = np.frombuffer(self.data, dtype).reshape(self.shape)
        made = view if view.flags.aligned else view.copy()
        made.flags.writeable = False
        return made


def header_of(body: bytes) -> dict[str, object]:
    """Return the header of a file, of which the first bytes are there at least. Raises `UpdateUnusable`."""
    length = int.from_bytes(body[:8], "little") if len(body) >= 8 else -1
    if not 0 < length <= min(MAX_HEADER_BYTES, len(body) - 8):
        raise _not_one("its header is missing, truncated or too long")
    try:
        header = json.loads(body[8 : 8 + length], object_pairs_hook=_no_name_twice)
    except (ValueError, RecursionError) as error:
        raise _not_one("its header is not JSON") from error
    if not isinstance(header, dict):
        raise _not_one("its header is not a JSON object")
    return header


def data_offset(head: bytes) -> int:
    """Return where the numbers begin in a file, from its first 8 bytes."""
    return 8 + int.from_bytes(head[:8], "little")


def read_tensors(body: bytes) -> list[Tensor]:
    """Return the tensors of a safetensors file in the order in which they lie there.

    Raises `UpdateUnusable` for any other file.
    """
    header = header_of(body)
    _check_metadata(header.get("__metadata__", {}))
    data = memoryview(body)[data_offset(body) :]
    ends, found = 0, []
    entries = ((name, _entry(name, entry)) for name, entry in header.items() if name != "__metadata__")
    for name, (dtype, shape, start, end) in sorted(entries, key=lambda item: item[1][2:]):
        if start != ends or end - start != _ITEM_BYTES[dtype] * math.prod(shape):
            raise _not_one(f"the bytes of {name[:80]!r} are not where they should be, or not as many")
        found.append(Tensor(name, dtype, shape, data[start:end]))
        ends = end
    if ends != len(data):
        raise _not_one(f"it has {len(data)} bytes of tensors, its header says {ends}")
    return found


def _entry(name: str, entry: object) -> tuple[str, tuple[int, ...], int, int]:
    """Return dtype, shape, start and end that a header says of a tensor."""
    if isinstance(entry, Mapping):
        dtype, shape, offsets = entry.get("dtype"), _sizes(entry.get("shape")), _sizes(entry.get("data_offsets"))
        known = isinstance(dtype, str) and dtype in _ITEM_BYTES
        if known and shape is not None and offsets is not None and len(offsets) == 2:
            return str(dtype), shape, offsets[0], offsets[1]
    raise _not_one(f"its header says nothing useful of {name[:80]!r}")


def _check_metadata(metadata: object) -> None:
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _not_one("its metadata is not names and texts")


def _sizes(value: object) -> tuple[int, ...] | None:
    if isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value):
        return tuple(value)
    return None


def _no_name_twice(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Two readers could take another one of two entries: what was checked must be what is computed with."""
    names = dict(pairs)
    if len(names) != len(pairs):
        raise _not_one("its header has a name twice")
    return names


def _not_one(why: str) -> UpdateUnusable:
    return UpdateUnusable(f"not a safetensors file: {why}")
