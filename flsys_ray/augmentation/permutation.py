"""The parts of a window in another order: what happens in it stays, when it happens does not."""

from typing import Literal

import numpy as np
from pydantic import Field

from flsys_ray.augmentation.base import Transform, Window


class Permutation(Transform):
    """Up to `segments` parts, cut at random instants."""

    name: Literal["permutation"] = "permutation"
    segments: int = Field(4, ge=2, le=64)

    def apply(self, window: Window, rng: np.random.Generator) -> Window:
        """Cut and join: no sample is lost, none is new."""
        cuts = np.sort(rng.choice(np.arange(1, len(window)), min(self.segments, len(window)) - 1, replace=False))
        parts = np.split(np.asarray(window, np.float32), cuts)
        return np.concatenate([parts[number] for number in rng.permutation(len(parts))])
