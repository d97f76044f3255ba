"""Public forms of versions on the wire: whole, in half precision, and as encoded steps. See `compression.public`."""

from collections.abc import Sequence

import numpy as np

from flsys_ray.compression.base import Encoding, Part, Parts
from flsys_ray.compression.public import half, step_to, stepped
from flsys_ray.core.layout import Vector
from flsys_ray.errors import UpdateUnusable
from flsys_ray.wire.tensors import decode_parts, encode_tensors, encoding_of

STEPS = 32  # the most that a form names: each takes some 300 bytes of every assignment


def encode_half(public: Vector) -> bytes:
    """Return a safetensors file with one tensor `parameters` F16 [P]: exact for a public form."""
    return encode_tensors({"parameters": public.astype("<f2")}, None)


def decode_half(body: bytes, size: int) -> Vector:
    """Return the public form [size] in such a file, float32. Raises `UpdateUnusable`."""
    return decode_parts(body, {"parameters": Part("F16", size)})["parameters"].astype(np.float32)


def encode_step(encoding: Encoding, parts: Parts) -> bytes:
    """Return a safetensors file with an encoding's tensors, and the encoding in its metadata as an update has it."""
    return encode_tensors(parts, {"encoding": encoding.model_dump_json()})


def decode_step(body: bytes, size: int) -> tuple[Encoding, Parts]:
    """Return the encoding and the tensors of a step of P = `size` values. Raises `UpdateUnusable`."""
    encoding = encoding_of(body)
    parts = decode_parts(body, encoding.form(size))
    if flaw := encoding.flaw(parts, size):
        raise UpdateUnusable(f"{encoding.name}: {flaw}")
    return encoding, parts


def form_after(
    parameters: Vector, earlier: Vector | None, encoding: Encoding, rng: np.random.Generator
) -> tuple[Vector, bytes | None]:
    """Return a version's public form, and the file of the step that leads to it; float32 [P] all.

    The step is from the form of the version before, `earlier`. None: there is none, or a step is no smaller than a
    whole form, and the form is the version rounded.
    """
    if earlier is not None:
        parts = step_to(parameters, earlier, encoding, rng)
        step = encode_step(encoding, parts)
        if len(step) < len(encode_half(earlier)):
            return stepped(earlier, encoding, parts), step
    return half(parameters), None


def worth(sizes: Sequence[int], limit: int) -> int:
    """Return how many of the last steps, of these sizes, have less than `limit` bytes together; at most `STEPS`."""
    total = 0
    for kept, size in enumerate(reversed(sizes[-STEPS:])):
        total += size
        if total >= limit:
            return kept
    return min(len(sizes), STEPS)
