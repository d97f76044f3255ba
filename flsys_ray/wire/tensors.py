"""Tensors on the wire: safetensors files of flat float32 vectors, checked before anything is computed with them.

An update is one tensor `delta` [P] with string metadata `num_examples`, `loss` and (optional) `num_steps`, `train_s`
and `labels`, and for a rule that carries a control a second tensor `control` [P]; a version is one tensor `parameters`
[P], a version's control one tensor `control` [P]. Only float32 and only these names: what is not expected is refused by
name. An update whose metadata has an `encoding` holds that encoding's tensors in place of `delta`.
"""

import json
import math
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from flsys_ray.compression.base import DTYPES, ENCODINGS, Encoding, Part, Parts
from flsys_ray.compression.float32 import FLOAT32
from flsys_ray.core.layout import Layout, Vector
from flsys_ray.errors import UpdateUnusable
from flsys_ray.wire.container import Tensor, header_of, read_tensors

ENVELOPE_BYTES = 4 * 1024
MAX_FLOAT32 = float(np.finfo(np.float32).max)
MAX_TRAIN_S = 30 * 86_400.0
MAX_CLASSES = 1_000  # beyond that a device cannot say how many examples of each it has
_TAGS = {dtype: tag for tag, dtype in DTYPES.items()}


def max_update_bytes(parameters: int, *, control: bool = False, encoding: Encoding = FLOAT32) -> int:
    """Return the most bytes that an update of P parameters may have on the wire, with a control or without.

    It may be in `encoding` or, always, in float32: whichever is larger.
    """
    sizes = [sum(part.num_bytes for part in one.form(parameters).values()) for one in (FLOAT32, encoding)]
    return max(sizes) + (4 * parameters if control else 0) + ENVELOPE_BYTES


@dataclass(frozen=True, slots=True, eq=False)
class DecodedUpdate:
    """A checked update: `delta` and (if it was asked for) `control` float32 [P], finite and within the limit."""

    delta: Vector
    num_examples: int
    loss: float
    num_steps: int = 1
    control: Vector | None = None
    train_s: float | None = None
    labels: tuple[int, ...] | None = None


NOTHING: Mapping[str, str] = {}


def encode_update(
    delta: Vector,
    num_examples: int,
    loss: float,
    num_steps: int = 1,
    *,
    control: Vector | None = None,
    more: Mapping[str, str] = NOTHING,
) -> bytes:
    """Return the bytes of an update, as a device uploads them. `more` is metadata that may be left out."""
    tensors = {"delta": _float32(delta)} | ({} if control is None else {"control": _float32(control)})
    return encode_tensors(tensors, {**more, **_told(num_examples, loss, num_steps)})


def encode_compressed(
    encoding: Encoding,
    parts: Parts,
    num_examples: int,
    loss: float,
    num_steps: int = 1,
    *,
    more: Mapping[str, str] = NOTHING,
) -> bytes:
    """Return the bytes of an update whose delta is `parts`, the tensors of an encoding."""
    metadata = {**more, **_told(num_examples, loss, num_steps)}
    return encode_tensors(
        parts, metadata if encoding == FLOAT32 else metadata | {"encoding": encoding.model_dump_json()}
    )


def _told(num_examples: int, loss: float, num_steps: int) -> dict[str, str]:
    return {"num_examples": str(num_examples), "loss": repr(float(loss)), "num_steps": str(num_steps)}


def _float32(vector: Vector) -> Vector:
    return np.ascontiguousarray(vector, dtype="<f4")


def encode_vector(name: str, vector: Vector, metadata: Mapping[str, str] | None = None) -> bytes:
    """Return a safetensors file with one float32 vector. Same input, same bytes."""
    return encode_tensors({name: _float32(vector)}, metadata)


def encode_tensors(vectors: Parts, metadata: Mapping[str, str] | None) -> bytes:
    """Return a safetensors file with tensors in their order. Same input, same bytes.

    The header is written here since the library writes metadata in an order that changes from call to call.
    """
    header: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    data = b""
    for name, tensor in vectors.items():
        offsets = [len(data), len(data) + tensor.nbytes]
        header[name] = {"dtype": _TAGS[tensor.dtype], "shape": list(tensor.shape), "data_offsets": offsets}
        data += tensor.tobytes()
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + data


def decode_update(
    body: bytes,
    layout: Layout,
    max_abs: float,
    *,
    control: bool = False,
    accepted: Collection[Encoding] | None = None,
) -> DecodedUpdate:
    """Return the update in `body`. `control`: whether its second tensor is asked for.

    `accepted` are the encodings that it may be in beside float32; None: any, since it was accepted before.

    Raises:
        UpdateUnusable: not safetensors, another name, dtype or length, a value that is not finite or above `max_abs`
            (naming the leaf that holds it), metadata that is missing or makes no sense, an encoding that is not
            accepted or tensors that are none of it, a control that is missing or not asked for.
    """
    metadata = _metadata(body)
    encoding = _encoding(metadata)
    if accepted is not None and encoding not in (FLOAT32, *accepted):
        raise UpdateUnusable(f"the encoding {encoding.model_dump_json()} is none that the assignment takes")
    form = encoding.form(layout.size)
    tensors = decode_parts(body, {**form, "control": Part("F32", layout.size)} if control else form)
    if flaw := encoding.flaw(tensors, layout.size):
        raise UpdateUnusable(f"{encoding.name}: {flaw}")
    delta = encoding.decode(tensors, 0, layout.size)
    _check_values(delta, layout, max_abs, "")
    if control:
        _check_values(tensors["control"], layout, max_abs, "control of ")
    return DecodedUpdate(
        delta,
        _positive_int(metadata, "num_examples"),
        _finite_float32(metadata, "loss"),
        _positive_int(metadata, "num_steps") if "num_steps" in metadata else 1,
        tensors.get("control"),
        _seconds(metadata, "train_s") if "train_s" in metadata else None,
        _counts(metadata, "labels") if "labels" in metadata else None,
    )


def encoding_of(header: bytes) -> Encoding:
    """Return the encoding that the first bytes of an update name: its header, at least. Raises `UpdateUnusable`."""
    return _encoding(_metadata(header))


def decode_range(body: bytes, start: int, stop: int) -> Vector:
    """Return elements `start:stop` of the delta, float32, of an update that was checked before."""
    encoding = encoding_of(body)
    tensors = {tensor.name: tensor.as_array(DTYPES[tensor.dtype]) for tensor in read_tensors(body)}
    return encoding.decode(tensors, start, stop)


def decode_vector(body: bytes, name: str, size: int) -> Vector:
    """Return the one float32 vector `name` [size] in a safetensors file (a read-only view). Raises `UpdateUnusable`."""
    return decode_parts(body, {name: Part("F32", size)})[name]


def decode_parts(body: bytes, form: Mapping[str, Part]) -> dict[str, NDArray[Any]]:
    """Return the tensors of a safetensors file (read-only views), which has exactly those of `form`.

    Raises `UpdateUnusable`.
    """
    tensors = read_tensors(body)
    if sorted(tensor.name for tensor in tensors) != sorted(form):
        found = ", ".join(repr(tensor.name[:80]) for tensor in tensors[:5]) or "none"
        wanted = "exactly one tensor" if len(form) == 1 else "the tensors"
        raise UpdateUnusable(f"expected {wanted} {' and '.join(map(repr, form))}, found {found}")
    return {tensor.name: _vector(tensor, form[tensor.name]) for tensor in tensors}


def _vector(tensor: Tensor, part: Part) -> NDArray[Any]:
    if tensor.dtype != part.dtype:
        raise UpdateUnusable(f"{tensor.name!r} has dtype {tensor.dtype}, expected {part.dtype}")
    if tensor.shape != (part.length,):
        raise UpdateUnusable(f"{tensor.name!r} has shape {[*tensor.shape]}, the model has [{part.length}]")
    return tensor.as_array(DTYPES[part.dtype])


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


def _metadata(body: bytes) -> Mapping[str, object]:
    metadata = header_of(body).get("__metadata__", {})
    return metadata if isinstance(metadata, dict) else {}


@lru_cache(maxsize=1)
def _any_encoding() -> TypeAdapter[Any]:
    return TypeAdapter(ENCODINGS.union(FLOAT32.name))


def parse_encoding(value: object) -> Encoding | None:
    """Return the encoding that a mapping describes, None if there is none like that here."""
    try:
        found: Encoding = _any_encoding().validate_python(value)
    except ValidationError:
        return None
    return found


def knows_encoding(name: str) -> bool:
    """Return whether there is an encoding of this name here."""
    return name in ENCODINGS.classes


def _encoding(metadata: Mapping[str, object]) -> Encoding:
    if "encoding" not in metadata:
        return FLOAT32
    text = str(metadata["encoding"])
    try:
        found = parse_encoding(json.loads(text)) if len(text) <= 1000 else None
    except (ValueError, RecursionError):
        found = None
    if found is None:
        raise UpdateUnusable(f"metadata 'encoding' must describe an encoding, found {text[:80]!r}")
    return found


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


def _seconds(metadata: Mapping[str, object], key: str) -> float:
    value = _finite_float32(metadata, key)
    if not 0 <= value <= MAX_TRAIN_S:
        raise UpdateUnusable(f"metadata {key!r} must be seconds, 0 to {MAX_TRAIN_S:g}, found {value!r}")
    return value


def _counts(metadata: Mapping[str, object], key: str) -> tuple[int, ...]:
    text = str(metadata.get(key, ""))
    counts = text.split(",", MAX_CLASSES)
    if len(counts) > MAX_CLASSES or not all(c.isascii() and c.isdigit() and len(c) <= 9 for c in counts):
        raise UpdateUnusable(f"metadata {key!r} must be whole numbers joined by commas, found {text[:40]!r}")
    return tuple(map(int, counts))
