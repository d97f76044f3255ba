"""The largest values only, and what was left out is added to the phone's next delta (error feedback).

Stich, Cordonnier, Jaggi, "Sparsified SGD with Memory", NeurIPS 2018 (arXiv 1809.07599), Algorithm 1: v = memory +
delta; what is sent is top_k(v), and the memory becomes v - top_k(v). It is biased, each time; what makes up for it is
the memory, which the phone keeps: see `flsys_ray.compression.memory`.
"""

import math
from collections.abc import Mapping
from typing import Literal

import numpy as np
from pydantic import Field

from flsys_ray.compression.base import Encoding, Part, Parts
from flsys_ray.core.layout import Vector


class TopK(Encoding):
    """8 bytes for each value that is kept, exactly as it was."""

    name: Literal["top_k"] = "top_k"
    fraction: float = Field(0.05, gt=0, le=1, description="share of the values that is sent; at least one is")

    @property
    def keeps_error(self) -> bool:
        """It does: without it most of what a phone learns would be lost."""
        return True

    def kept(self, size: int) -> int:
        """Return k, how many of `size` values are sent."""
        return min(size, max(1, math.ceil(self.fraction * size)))

    def form(self, size: int) -> Mapping[str, Part]:
        """Where the values are, rising, and the values."""
        return {"indices": Part("U32", self.kept(size)), "values": Part("F32", self.kept(size))}

    def encode(self, delta: Vector, rng: np.random.Generator) -> Parts:
        """Keep the largest absolute values; of equals the first."""
        order = np.argsort(-np.abs(delta), kind="stable")
        indices = np.sort(order[: self.kept(delta.size)])
        return {"indices": indices.astype("<u4"), "values": delta[indices].astype("<f4")}

    def flaw(self, parts: Parts, size: int) -> str:
        """Indices rise, so that none comes twice, and lie inside the vector."""
        indices = parts["indices"].astype(np.int64)
        if (np.diff(indices) <= 0).any():
            return "'indices' do not rise"
        return f"'indices' reach beyond the {size} parameters" if indices.size and indices[-1] >= size else ""

    def decode(self, parts: Parts, start: int, stop: int) -> Vector:
        """Return zeros with the values in their places."""
        indices = parts["indices"].astype(np.int64)
        first, last = np.searchsorted(indices, [start, stop])
        delta = np.zeros(stop - start, np.float32)
        delta[indices[first:last] - start] = parts["values"][first:last]
        return delta
