"""A sensor with more noise: independent normal noise on each sample and axis."""

from typing import Literal

import numpy as np
from pydantic import Field

from flsys_ray.augmentation.base import Transform, Window


class Jitter(Transform):
    """Noise of mean 0."""

    name: Literal["jitter"] = "jitter"
    sigma: float = Field(0.2, gt=0, description="its standard deviation, in the unit of the window (m/s^2)")

    def apply(self, window: Window, rng: np.random.Generator) -> Window:
        """Add noise."""
        return (window + rng.normal(0.0, self.sigma, window.shape)).astype(np.float32)
