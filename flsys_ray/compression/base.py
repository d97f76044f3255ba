"""What an encoding is: how the delta of an update travels.

A phone encodes, the cloud decodes, and what is decoded is what counts: it is checked, folded, and read again, with the
same bits each time. An encoding is a frozen object whose fields are its hyper-parameters; both sides know them, since
the assignment names it and the file repeats it.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from flsys_ray.core.layout import Vector
from flsys_ray.core.registry import Extension, Registry

Parts = Mapping[str, NDArray[Any]]
DTYPES: Mapping[str, np.dtype[Any]] = {tag: np.dtype(kind) for tag, kind in (
    ("F32", "<f4"), ("F16", "<f2"), ("U32", "<u4"), ("I8", "i1"), ("I32", "<i4"),
)}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Part:
    """One tensor of one dimension: its dtype, as safetensors spells it, and its length."""

    dtype: Literal["F32", "F16", "U32", "I8"]
    length: int

    @property
    def num_bytes(self) -> int:
        """How many bytes its numbers take."""
        return DTYPES[self.dtype].itemsize * self.length


class Encoding(Extension, ABC):
    """A frozen object whose fields are its hyper-parameters. P is the number of parameters."""

    @property
    def keeps_error(self) -> bool:
        """Whether a phone adds what an encoded delta lost to its next one (error feedback)."""
        return False

    @abstractmethod
    def form(self, size: int) -> Mapping[str, Part]:
        """Return the tensors of an encoded delta of `size` = P values, by name: every delta has exactly these."""

    @abstractmethod
    def encode(self, delta: Vector, rng: np.random.Generator) -> Parts:
        """Return a finite delta, float32 [P], as the tensors of `form`. `rng` is all the randomness that it uses."""

    @abstractmethod
    def flaw(self, parts: Parts, size: int) -> str:
        """Return what is wrong with tensors that have the right form, or an empty text. They may be hostile."""

    @abstractmethod
    def decode(self, parts: Parts, start: int, stop: int) -> Vector:
        """Return elements `start:stop` of the delta, float32. A range has the same bits as it has in the whole."""


ENCODINGS: Registry[Encoding] = Registry(Encoding, __package__)
