"""A device's side of SCAFFOLD: how two controls correct its training, and what its own becomes.

Karimireddy et al. 2020 (arXiv 1910.06378), Algorithm 1: lines 10 (the corrected step) and 12, option II. Leaves that
are not trained have no gradient: there both controls are zero, whatever was sent.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flsys_ray.core.layout import Vector
from flsys_ray.errors import UpdateUnusable


@dataclass(frozen=True, slots=True, eq=False)
class ControlPair:
    """c and c_i, float32 [P], and which elements are trained."""

    server: Vector
    own: Vector
    trainable: NDArray[np.bool_]

    @property
    def correction(self) -> Vector:
        """c - c_i: what a step adds to its gradient, float32 [P]."""
        return np.where(self.trainable, self.server - self.own, np.float32(0))

    def change(self, delta: Vector, steps: int, learning_rate: float) -> Vector:
        """Return c_i+ - c_i after so many steps that moved the version by `delta`: float32 [P].

        Raises `UpdateUnusable` if no step was taken, or a value is not finite.
        """
        if steps < 1:
            raise UpdateUnusable("no step was taken: a control cannot be estimated")
        change = -self.server.astype(np.float64) - delta.astype(np.float64) / (steps * learning_rate)
        made = np.where(self.trainable, change, 0.0).astype(np.float32)
        if not np.isfinite(made).all():
            raise UpdateUnusable("the change of the control is not finite")
        return made

    def after(self, change: Vector) -> Vector:
        """Return the device's own control, float32 [P], once a change is counted."""
        return np.where(self.trainable, self.own + change, np.float32(0))
