"""How a device encodes a delta, and what it keeps of what an encoding left out (error feedback).

Some encodings leave most of a delta out. What one update lost is kept as the model's residual and added to the next
delta (Stich et al. 2018, arXiv 1809.07599, Algorithm 1). The residual of leaves that are not trained is zero: they are
a state, of which the next delta tells all again.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from flsys_ray.compression.base import Encoding, Parts
from flsys_ray.core.layout import Vector
from flsys_ray.core.rng import generator
from flsys_ray.errors import UpdateUnusable


@dataclass(frozen=True, slots=True, eq=False)
class Encoded:
    """The tensors of an update, and the residual, float32 [P], once it is counted; None: the encoding keeps none."""

    parts: Parts
    residual: Vector | None


def encoded(
    encoding: Encoding,
    delta: Vector,
    memory: Vector | None,
    trainable: NDArray[np.bool_],
    *,
    round_: int,
    assignment_id: str,
) -> Encoded:
    """Encode an assignment's delta, float32 [P]. The same arguments give the same tensors.

    `memory` [P] is the residual before it, None if there is none; `trainable` [P] says which parameters are trained.
    Raises `UpdateUnusable` if delta and residual add up to no number.
    """
    kept = memory if memory is not None and encoding.keeps_error else np.zeros_like(delta)
    if not np.isfinite(delta + kept).all():
        raise UpdateUnusable(f"delta and residual of {assignment_id} are not finite")
    parts, left = with_memory(encoding, delta, kept, generator(0, "compression", round_, assignment_id))
    return Encoded(parts, np.where(trainable, left, np.float32(0)) if encoding.keeps_error else None)


def with_memory(encoding: Encoding, delta: Vector, memory: Vector, rng: np.random.Generator) -> tuple[Parts, Vector]:
    """Return the tensors of `delta + memory`, and what they leave out of it, float32 [P]."""
    total = delta + memory
    parts = encoding.encode(total, rng)
    return parts, total - encoding.decode(parts, 0, delta.size)


def payload_bytes(encoding: Encoding, size: int) -> int:
    """Return what the tensors of an update of `size` = P parameters weigh, without the file's header."""
    return sum(part.num_bytes for part in encoding.form(size).values())
