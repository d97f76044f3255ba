"""Tensors on the wire: safetensors files with one flat float32 vector, checked before anything is computed with them.

An update is one tensor `delta` [P] with string metadata `num_examples`, `loss` and (optional) `num_steps`; a version is
one tensor `parameters` [P]. Only float32 and only these names: what is not expected is refused by name.
"""

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import safetensors

from flsys_ray.core.layout import Layout, Vector
from flsys_ray.errors import UpdateUnusable

MAX_HEADER_BYTES = 64 * 1024
ENVELOPE_BYTES = 4 * 1024
MAX_FLOAT32 = float(np.finfo(np.float32).max)


def max_update_bytes(parameters: int) -> int:
    """Return the most bytes that an update of P parameters may have on the wire."""
    return 4 * parameters + ENVELOPE_BYTES


@dataclass(frozen=True, slots=True, eq=False)
class DecodedUpdate:
    """A checked update: `delta` float32 [P], finite and within the limit."""

    delta: Vector
    num_examples: int
    loss: float
    num_steps: int = 1


def encode_update(delta: Vector, num_examples: int, loss: float, num_steps: int = 1) -> bytes:
    """Return the bytes of an update, as a device uploads them."""
    metadata = {"num_examples": str(num_examples), "loss": repr(float(loss)), "num_steps": str(num_steps)}
    return encode_vector("delta", delta, metadata)


def encode_vector(name: str, vector: Vector, metadata: Mapping[str, str] | None = None) -> bytes:
    """Return a safetensors file with one float32 vector. Same input, same bytes.

    The header is written here since the library writes metadata in an order that changes from call to call.
    """
    tensor = np.ascontiguousarray(vector, dtype="<f4")
    entry = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [0, tensor.nbytes]}
    header = ({"__metadata__": dict(sorted(metadata.items()))} if metadata else {}) | {name: entry}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + tensor.tobytes()


def decode_update(body: bytes, layout: Layout, max_abs: float) -> DecodedUpdate:
    """Return the update in `body`.

    Raises:
        UpdateUnusable: not safetensors, another name, dtype or length, a value that is not finite or above `max_abs`
            (naming the leaf that holds it), or metadata that is missing or makes no sense.
    """
    delta = decode_vector(body, "delta", layout.size)
    _check_values(delta, layout, max_abs)
    metadata = _metadata(body)
    steps = _positive_int(metadata, "num_steps") if "num_steps" in metadata else 1
    return DecodedUpdate(delta, _positive_int(metadata, "num_examples"), _finite_float32(metadata, "loss"), steps)


def data_offset(head: bytes) -> int:
    """Return where the numbers begin in a file of one vector, from its first 8 bytes."""
    return 8 + int.from_bytes(head[:8], "little")


def decode_vector(body: bytes, name: str, size: int) -> Vector:
    """Return the one float32 vector `name` [size] in a safetensors file (a read-only view). Raises `UpdateUnusable`."""
    _header(body)
    try:
        tensors = safetensors.deserialize(body)  # type: ignore[no-untyped-call] # Rust, without stubs
    except (safetensors.SafetensorError, OverflowError, ValueError) as error:
        raise UpdateUnusable(f"not a safetensors file: {error}") from error
    if [found for found, _ in tensors] != [name]:
        found = ", ".join(repr(key[:80]) for key, _ in tensors[:5]) or "none"
        raise UpdateUnusable(f"expected exactly one tensor {name!r}, found {found}")
    entry = tensors[0][1]
    if entry["dtype"] != "F32":
        raise UpdateUnusable(f"{name!r} has dtype {entry['dtype']}, expected F32")
    if entry["shape"] != [size]:
        raise UpdateUnusable(f"{name!r} has shape {entry['shape']}, the model has [{size}]")
    vector = np.frombuffer(entry["data"], dtype="<f4")
    vector.flags.writeable = False
    return vector


def _check_values(delta: Vector, layout: Layout, max_abs: float) -> None:
    # min and max carry NaN through: two passes say everything in the ordinary case.
    low, high = float(delta.min(initial=0.0)), float(delta.max(initial=0.0))
    if -max_abs <= low and high <= max_abs:
        return
    bad = int(np.flatnonzero(~(np.abs(delta) <= max_abs))[0])
    leaf = layout.leaf_at(bad)
    value = float(delta[bad])
    what = f"larger than the plan's limit {max_abs:g}" if math.isfinite(value) else "not finite"
    raise UpdateUnusable(f"{leaf.name!r} holds {value} at its element {bad - leaf.offset}: {what}")


def _header(body: bytes) -> dict[str, object]:
    length = int.from_bytes(body[:8], "little") if len(body) >= 8 else -1
    if not 0 < length <= min(MAX_HEADER_BYTES, len(body) - 8):
        raise UpdateUnusable("not a safetensors file: its header is missing, truncated or too long")
    try:
        header = json.loads(body[8 : 8 + length])
    except (ValueError, RecursionError) as error:
        raise UpdateUnusable("not a safetensors file: its header is not JSON") from error
    if not isinstance(header, dict):
        raise UpdateUnusable("not a safetensors file: its header is not a JSON object")
    return header


def _metadata(body: bytes) -> Mapping[str, object]:
    metadata = _header(body).get("__metadata__", {})
    return metadata if isinstance(metadata, dict) else {}


def _positive_int(metadata: Mapping[str, object], key: str) -> int:
    text = str(metadata.get(key, ""))
    if not (text.isascii() and text.isdigit() and len(text) <= 12 and int(text) > 0):
        raise UpdateUnusable(f"metadata {key!r} must be a positive whole number, found {text[:40]!r}")
    return int(text)


def _finite_float32(metadata: Mapping[str, object], key: str) -> float:
    text = str(metadata.get(key, ""))
    try:
        value = float(text) if len(text) <= 40 else math.nan
    except ValueError:
        value = math.nan
    if not abs(value) <= MAX_FLOAT32:
        raise UpdateUnusable(f"metadata {key!r} must be a finite float32, found {text[:40]!r}")
    return value
