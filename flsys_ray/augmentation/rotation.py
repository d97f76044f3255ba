"""The phone lies another way: all samples of a window are turned by one rotation."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from flsys_ray.augmentation.base import Transform, Window


class Rotation(Transform):
    """About an axis drawn evenly from all directions, by an angle drawn evenly up to `max_degrees` either way."""

    name: Literal["rotation"] = "rotation"
    max_degrees: float = Field(180.0, gt=0, le=180)

    def misfit(self, shape: Sequence[int], dtype: str) -> str:
        """Three axes are needed."""
        if found := super().misfit(shape, dtype):
            return found
        return "" if shape[1] == 3 else f"rotation turns windows of 3 axes, and none of {shape[1]}"

    def apply(self, window: Window, rng: np.random.Generator) -> Window:
        """Turn all samples by one matrix: their lengths stay."""
        axis = rng.normal(0.0, 1.0, 3)
        axis = axis / max(float(np.linalg.norm(axis)), 1e-12)
        angle = np.deg2rad(self.max_degrees) * rng.uniform(-1.0, 1.0)
        return (window.astype(np.float64) @ _matrix(axis, angle).T).astype(np.float32)


def _matrix(axis: NDArray[np.float64], angle: float) -> NDArray[np.float64]:
    """Return the rotation about a unit vector, float64 [3, 3]: Rodrigues' formula."""
    a, b, c = axis
    cross = np.array([[0.0, -c, b], [c, 0.0, -a], [-b, a, 0.0]])
    turned: NDArray[np.float64] = np.eye(3) + np.sin(angle) * cross + (1.0 - np.cos(angle)) * (cross @ cross)
    return turned
