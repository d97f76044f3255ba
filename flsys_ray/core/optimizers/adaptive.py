"""What FedAdagrad, FedAdam and FedYogi share: Reddi et al. 2021 (arXiv 2003.00295), Algorithm 2.

`m <- beta_1 m + (1 - beta_1) delta`; `v` by the optimizer; movement `learning_rate m / (sqrt(v) + tau)`. There is no
bias correction: `v` starts at `tau ** 2`, as the paper requires (`v_{-1} >= tau^2`).
"""

from abc import abstractmethod
from typing import ClassVar

import numpy as np
from pydantic import Field

from flsys_ray.core.layout import Vector
from flsys_ray.core.optimizers.base import Array, ServerOptimizer, stored
from flsys_ray.core.types import OptimizerState


class Adaptive(ServerOptimizer):
    """Algorithm 2, less the line that updates `v`."""

    learning_rate: float = Field(0.01, gt=0)
    beta_1: float = Field(0.9, ge=0, lt=1)
    tau: float = Field(1e-3, gt=0, description="adaptivity: the larger, the nearer to SGD with momentum")

    slots: ClassVar[tuple[str, ...]] = ("m", "v")

    def initial(self, slot: str, size: int) -> Vector:
        """Return zeros for `m`, `tau ** 2` for `v`."""
        return np.full(size, self.tau**2 if slot == "v" else 0.0, dtype=np.float32)

    @abstractmethod
    def second_moment(self, v: Array, squared: Array) -> Array:
        """Return the next `v`, float64 [P], from `v` and `delta ** 2`."""

    def step(self, state: OptimizerState, delta: Array) -> tuple[OptimizerState, Array]:
        """Take one step."""
        m, v = (vector.astype(np.float64) for vector in state.vectors)
        m = self.beta_1 * m + (1 - self.beta_1) * delta
        v = self.second_moment(v, delta * delta)
        return stored(state.step + 1, m, v), self.learning_rate * m / (np.sqrt(v) + self.tau)
