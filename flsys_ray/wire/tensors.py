"""Tensors on the wire: safetensors files of flat float32 vectors, checked before anything is computed with them.

An update is one tensor `delta` [P] with string metadata `num_examples`, `loss` and (optional) `num_steps`, and for a
rule that carries a control a second tensor `control` [P]; a version is one tensor `parameters` [P], a version's control
one tensor `control` [P]. Only float32 and only these names: what is not expected is refused by name.
"""

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors

from flsys_ray.core.layout import Layout, Vector
from flsys_ray.errors import UpdateUnusable

MAX_HEADER_BYTES = 64 * 1024
ENVELOPE_BYTES = 4 * 1024
MAX_FLOAT32 = float(np.finfo(np.float32).max)


def max_update_bytes(parameters: int, *, control: bool = False) -> int:
    """Return the most bytes that an update of P parameters may have on the wire, with a control or without."""
    return 4 * parameters * (2 if control else 1) + ENVELOPE_BYTES


@dataclass(frozen=True, slots=True, eq=False)
class DecodedUpdate:
    """A checked update: `delta` and (if it was asked for) `control` float32 [P], finite and within the limit."""

    delta: Vector
    num_examples: int
    loss: float
    num_steps: int = 1
    control: Vector | None = None


def encode_update(
    delta: Vector, num_examples: int, loss: float, num_steps: int = 1, *, control: Vector | None = None
) -> bytes:
    """Return the bytes of an update, as a device uploads them."""
    metadata = {"num_examples": str(num_examples), "loss": repr(float(loss)), "num_steps": str(num_steps)}
    return _encode({"delta": delta} | ({} if control is None else {"control": control}), metadata)


def encode_vector(name: str, vector: Vector, metadata: Mapping[str, str] | None = None) -> bytes:
    """Return a safetensors file with one float32 vector. Same input, same bytes."""
    return _encode({name: vector}, metadata)


def _encode(vectors: Mapping[str, Vector], metadata: Mapping[str, str] | None) -> bytes:
    """Return a safetensors file with vectors in their order.

    The header is written here since the library writes metadata in an order that changes from call to call.
    """
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    data = b""
    for name, vector in vectors.items():
        tensor = np.ascontiguousarray(vector, dtype="<f4")
        offsets = [len(data), len(data) + tensor.nbytes]
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": offsets}
        data += tensor.tobytes()
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def decode_update(body: bytes, layout: Layout, max_abs: float, *, control: bool = False) -> DecodedUpdate:
    """Return the update in `body`. `control`: whether its second tensor is asked for.

    Raises:
        UpdateUnusable: not safetensors, another name, dtype or length, a value that is not finite or above `max_abs`
            (naming the leaf that holds it), metadata that is missing or makes no sense, a control that is missing or
            not asked for.
    """
    names = ("delta", "control") if control else ("delta",)
    vectors = _decode(body, names, layout.size)
    _check_values(vectors["delta"], layout, max_abs, "")
    if control:
        _check_values(vectors["control"], layout, max_abs, "control of ")
    metadata = _metadata(body)
    return DecodedUpdate(
        vectors["delta"],
        _positive_int(metadata, "num_examples"),
        _finite_float32(metadata, "loss"),
        _positive_int(metadata, "num_steps") if "num_steps" in metadata else 1,
        vectors.get("control"),
    )


def data_offset(head: bytes) -> int:
    """Return where the numbers begin in a file of one vector, from its first 8 bytes."""
    return 8 + int.from_bytes(head[:8], "little")


def decode_vector(body: bytes, name: str, size: int) -> Vector:
    """Return the one float32 vector `name` [size] in a safetensors file (a read-only view). Raises `UpdateUnusable`."""
    return _decode(body, (name,), size)[name]


def _decode(body: bytes, names: tuple[str, ...], size: int) -> dict[str, Vector]:
    _header(body)
    try:
        tensors = safetensors.deserialize(body)  # type: ignore[no-untyped-call] # Rust, without stubs
    except (safetensors.SafetensorError, OverflowError, ValueError) as error:
        raise UpdateUnusable(f"not a safetensors file: {error}") from error
    if sorted(found for found, _ in tensors) != sorted(names):
        found = ", ".join(repr(key[:80]) for key, _ in tensors[:5]) or "none"
        wanted = "exactly one tensor" if len(names) == 1 else "the tensors"
        raise UpdateUnusable(f"expected {wanted} {' and '.join(map(repr, names))}, found {found}")
    return {name: _vector(name, entry, size) for name, entry in tensors}


def _vector(name: str, entry: Mapping[str, Any], size: int) -> Vector:
    if entry["dtype"] != "F32":
        raise UpdateUnusable(f"{name!r} has dtype {entry['dtype']}, expected F32")
    if entry["shape"] != [size]:
        raise UpdateUnusable(f"{name!r} has shape {entry['shape']}, the model has [{size}]")
    vector = np.frombuffer(entry["data"], dtype="<f4")
    vector.flags.writeable = False
    return vector


def _check_values(delta: Vector, layout: Layout, max_abs: float, what: str) -> None:
    # min and max carry NaN through: two passes say everything in the ordinary case.
    low, high = float(delta.min(initial=0.0)), float(delta.max(initial=0.0))
    if -max_abs <= low and high <= max_abs:
        return
    bad = int(np.flatnonzero(~(np.abs(delta) <= max_abs))[0])
    leaf = layout.leaf_at(bad)
    value = float(delta[bad])
    why = f"larger than the plan's limit {max_abs:g}" if math.isfinite(value) else "not finite"
    raise UpdateUnusable(f"{what}{leaf.name!r} holds {value} at its element {bad - leaf.offset}: {why}")


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
