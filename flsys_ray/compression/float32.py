"""As it is: 4 bytes a value."""

from collections.abc import Mapping
from typing import Literal

import numpy as np

from flsys_ray.compression.base import Encoding, Part, Parts
from flsys_ray.core.layout import Vector


class Float32(Encoding):
    """What every phone can send and every cloud takes."""

    name: Literal["float32"] = "float32"

    def form(self, size: int) -> Mapping[str, Part]:
        """One tensor: the delta."""
        return {"delta": Part("F32", size)}

    def encode(self, delta: Vector, rng: np.random.Generator) -> Parts:
        """Return the delta itself."""
        return {"delta": delta}

    def flaw(self, parts: Parts, size: int) -> str:
        """Nothing can be wrong but values, which are checked of every delta."""
        return ""

    def decode(self, parts: Parts, start: int, stop: int) -> Vector:
        """Return a view."""
        return parts["delta"][start:stop]


FLOAT32 = Float32()
