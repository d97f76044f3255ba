"""The phone's side of SCAFFOLD: how two controls correct its training, and what its own becomes.

Karimireddy et al. 2020 (arXiv 1910.06378), Algorithm 1: lines 10 (the corrected step) and 12, option II. The server's
control c comes with the assignment; the phone's own, c_i, stays in its database and starts from zero. Leaves that are
not trained have no gradient: there both are zero, whatever was sent.
"""

from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from flsys_ray.core.controls import ControlPair
from flsys_ray.core.layout import Vector
from flsys_ray.errors import UpdateUnusable
from flsys_ray.programs.manifest import Manifest
from flsys_ray.wire.tensors import decode_vector, encode_vector


@dataclass(frozen=True, slots=True)
class Controls:
    """The bytes (safetensors) of the server's control, and of the phone's own; None: it has none yet."""

    server: bytes
    own: bytes | None


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


def own_control(pair: ControlPair, change: Vector) -> bytes:
    """Return the phone's own control (safetensors) once a change is counted."""
    return encode_vector("control", pair.after(change))
