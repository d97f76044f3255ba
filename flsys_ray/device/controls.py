"""The phone's side of SCAFFOLD: how two controls correct its training, and what its own becomes.

Karimireddy et al. 2020 (arXiv 1910.06378), Algorithm 1: lines 10 (the corrected step) and 12, option II. The server's
control c comes with the assignment; the phone's own, c_i, stays in its database and starts from zero. Leaves that are
not trained have no gradient: there both are zero, whatever was sent.
"""

from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flsys_ray.core.layout import Vector
from flsys_ray.errors import UpdateUnusable
from flsys_ray.programs.manifest import Manifest
from flsys_ray.wire.tensors import decode_vector, encode_vector


@dataclass(frozen=True, slots=True)
class Controls:
    """The bytes (safetensors) of the server's control, and of the phone's own; None: it has none yet."""

    server: bytes
    own: bytes | None


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

    def after(self, change: Vector) -> bytes:
        """Return the phone's own control (safetensors) once a change is counted."""
        return encode_vector("control", np.where(self.trainable, self.own + change, np.float32(0)))


def decode_controls(controls: Controls, manifest: Manifest) -> ControlPair:
    """Return both controls of a program. One of the phone's own that is of another program counts as none.

    Raises `UpdateUnusable` if the server's is not of this program.
    """
    size = manifest.parameters
    own = np.zeros(size, np.float32)
    if controls.own is not None:
        with suppress(UpdateUnusable):
            own = decode_vector(controls.own, "control", size)
    trainable = manifest.to_layout().trainable_mask()
    return ControlPair(decode_vector(controls.server, "control", size), own, trainable)
