"""How the leaves of a model lie in its flat parameter vector.

A device program works on one float32 vector. The layout names each slice of it, so that an error can say
`'conv1/kernel' has shape ...` and so that state which is not trained (batch-norm statistics) can be told apart.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flsys_ray.errors import InvalidInput

Vector = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Leaf:
    """One named array inside the flat vector: elements `offset : offset + size`, C order."""

    name: str
    shape: tuple[int, ...]
    offset: int
    trainable: bool = True

    @property
    def size(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class Layout:
    """Leaves in the order of their offsets, without gaps. Raises `InvalidInput` if they overlap or leave a gap."""

    leaves: tuple[Leaf, ...]

    def __post_init__(self) -> None:
        expected = 0
        for leaf in self.leaves:
            if leaf.offset != expected:
                raise InvalidInput(f"layout: leaf {leaf.name!r} starts at {leaf.offset}, expected {expected}")
            expected += leaf.size
        names = [leaf.name for leaf in self.leaves]
        if len(set(names)) != len(names):
            raise InvalidInput("layout: two leaves have the same name")

    @classmethod
    def of(cls, parts: Iterable[tuple[str, tuple[int, ...], bool]]) -> "Layout":
        """Lay out `(name, shape, trainable)` one after the other.

        >>> Layout.of([("kernel", (2, 3), True), ("bias", (3,), True)]).size
        9
        """
        leaves: list[Leaf] = []
        offset = 0
        for name, shape, trainable in parts:
            leaves.append(Leaf(name, shape, offset, trainable))
            offset += leaves[-1].size
        return cls(tuple(leaves))

    @property
    def size(self) -> int:
        """P, the number of parameters, state that is not trained included."""
        return sum(leaf.size for leaf in self.leaves)

    def leaf_at(self, index: int) -> Leaf:
        """Return the leaf that holds element `index` of the flat vector."""
        for leaf in self.leaves:
            if leaf.offset <= index < leaf.offset + leaf.size:
                return leaf
        raise InvalidInput(f"layout: no leaf holds element {index} of {self.size}")

    def trainable_mask(self) -> NDArray[np.bool_]:
        """Return a bool vector of length P that is true where a server optimizer may act."""
        mask = np.zeros(self.size, dtype=np.bool_)
        for leaf in self.leaves:
            mask[leaf.offset : leaf.offset + leaf.size] = leaf.trainable
        return mask
