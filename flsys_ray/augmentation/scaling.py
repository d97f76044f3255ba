"""A sensor with another gain, or a body that moves harder: each axis is multiplied by one number."""

from typing import Literal

import numpy as np
from pydantic import Field

from flsys_ray.augmentation.base import Transform, Window


class Scaling(Transform):
    """One normal factor of mean 1 for each axis."""

    name: Literal["scaling"] = "scaling"
    sigma: float = Field(0.1, gt=0, le=1, description="the standard deviation of a factor")

    def apply(self, window: Window, rng: np.random.Generator) -> Window:
        """Multiply each axis."""
        return (window * rng.normal(1.0, self.sigma, window.shape[1])).astype(np.float32)
