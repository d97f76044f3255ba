"""Half precision: 2 bytes a value, each rounded to the nearest one.

IEEE 754 binary16 has 11 significant bits: a value of 2**-14 to 65504 is off by at most 2**-11 of itself, a smaller one
by at most 2**-25. Larger ones become 65504.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np

from flsys_ray.compression.base import Encoding, Part, Parts
from flsys_ray.core.layout import Vector

LARGEST = np.float32(65504.0)


class Float16(Encoding):
    """Halves the upload."""

    name: Literal["float16"] = "float16"

    def form(self, size: int) -> Mapping[str, Part]:
        """One tensor: the delta."""
        return {"delta": Part("F16", size)}

    def encode(self, delta: Vector, rng: np.random.Generator) -> Parts:
        """Round to the nearest, ties to even."""
        return {"delta": np.clip(delta, -LARGEST, LARGEST).astype("<f2")}

    def flaw(self, parts: Parts, size: int) -> str:
        """Nothing can be wrong but values, which are checked of every delta."""
        return ""

    def decode(self, parts: Parts, start: int, stop: int) -> Vector:
        """Return float32: exact."""
        return parts["delta"][start:stop].astype(np.float32)
