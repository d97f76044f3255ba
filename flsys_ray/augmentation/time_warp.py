"""The same motion, faster here and slower there: the time of a window is bent, its ends stay where they are.

Um et al. 2017 bend time by a cubic spline through random speeds. Here the speeds are joined by straight lines, and are
log-normal: time never stands still or runs backwards.
"""

from typing import Literal

import numpy as np
from pydantic import Field

from flsys_ray.augmentation.base import Transform, Window


class TimeWarp(Transform):
    """Speeds at `knots` instants, evenly spread over the window; all axes are bent alike."""

    name: Literal["time_warp"] = "time_warp"
    sigma: float = Field(0.2, gt=0, le=1, description="the standard deviation of the logarithm of a speed")
    knots: int = Field(4, ge=2, le=64)

    def apply(self, window: Window, rng: np.random.Generator) -> Window:
        """Read each axis at the bent instants, between samples by straight lines."""
        length = len(window)
        speeds = np.exp(rng.normal(0.0, self.sigma, self.knots))
        instants = np.arange(length, dtype=np.float64)
        speed = np.interp(instants[1:] - 0.5, np.linspace(0, length - 1, self.knots), speeds)
        reached = np.concatenate([[0.0], np.cumsum(speed)])
        bent = reached * ((length - 1) / max(reached[-1], 1e-12))
        axes = [np.interp(bent, instants, window[:, axis]) for axis in range(window.shape[1])]
        return np.stack(axes, axis=1).astype(np.float32)
