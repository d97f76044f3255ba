"""Whole numbers of 8 bits with a scale for each block, rounded at random so that the mean is right.

Alistarh, Grubic, Li, Tomioka, Vojnovic, "QSGD: Communication-Efficient SGD via Gradient Quantization and Encoding",
NIPS 2017 (arXiv 1610.02132), section 3.1, with the largest value of a block in place of the norm, and blocks as in its
section 4. The unit of a block is its largest absolute value over 127; a value between two multiples of it becomes the
upper one with a probability equal to its distance from the lower: its expectation is the value itself, whatever the
value, and it is off by less than one unit. So errors of many phones cancel in a mean.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np
from pydantic import Field

from flsys_ray.compression.base import Encoding, Part, Parts
from flsys_ray.core.layout import Vector

LEVELS = 127


class Int8(Encoding):
    """A quarter of the upload, and 4 bytes a block."""

    name: Literal["int8"] = "int8"
    block: int = Field(256, ge=16, le=65536, description="values that share a scale")

    def form(self, size: int) -> Mapping[str, Part]:
        """Each block's largest absolute value, and the values as multiples of a 127th of it."""
        return {"peaks": Part("F32", -(-size // self.block)), "delta": Part("I8", size)}

    def encode(self, delta: Vector, rng: np.random.Generator) -> Parts:
        """Round each value up or down at random."""
        starts = np.arange(0, delta.size, self.block)
        peaks = np.maximum.reduceat(np.abs(delta), starts).astype("<f4") if delta.size else np.zeros(0, "<f4")
        spread = self._spread(peaks, 0, delta.size)
        scaled = np.zeros(delta.size)
        # The product first: a value is at most its peak, so that the quotient is at most 127, rounded or not.
        np.divide(delta * np.float64(LEVELS), spread, out=scaled, where=spread > 0)
        low = np.floor(scaled)
        return {"peaks": peaks, "delta": (low + (rng.random(delta.size) < scaled - low)).astype("i1")}

    def flaw(self, parts: Parts, size: int) -> str:
        """A peak is a size, and a code lies between -127 and 127."""
        peaks, codes = parts["peaks"], parts["delta"]
        if not (np.isfinite(peaks).all() and (peaks >= 0).all()):
            return "'peaks' holds a value that is negative or not finite"
        return "'delta' holds the code -128" if codes.size and int(codes.min()) < -LEVELS else ""

    def decode(self, parts: Parts, start: int, stop: int) -> Vector:
        """Return multiples of a 127th of each block's peak: none is larger than the peak."""
        spread = self._spread(parts["peaks"], start, stop)
        return (parts["delta"][start:stop] * (spread / LEVELS)).astype(np.float32)

    def _spread(self, peaks: Vector, start: int, stop: int) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
        """Return the peak of each element of `start:stop`, float64."""
        return peaks.astype(np.float64)[np.arange(start, stop) // self.block]
