"""Public forms of versions on the wire: whole, in half precision, and as encoded steps. See `compression.public`."""

import numpy as np

from flsys_ray.compression.base import Encoding, Part, Parts
from flsys_ray.core.layout import Vector
from flsys_ray.errors import UpdateUnusable
from flsys_ray.wire.tensors import decode_parts, encode_tensors, encoding_of


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
