"""SGD on the server, with momentum if asked: FedAvg and FedAvgM.

FedAvg is `learning_rate` 1 and `momentum` 0 (Reddi et al. 2021, arXiv 2003.00295, Algorithm 1 with SERVEROPT = SGD).
FedAvgM: Hsu, Qi, Brown, "Measuring the Effects of Non-Identical Data Distribution for Federated Visual Classification",
2019 (arXiv 1909.06335), section 4.3: `v <- beta v + delta`, `w <- w + learning_rate v`.
"""

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from flsys_ray.core.optimizers.base import Array, ServerOptimizer, stored
from flsys_ray.core.types import OptimizerState


class Sgd(ServerOptimizer):
    """`v <- momentum v + delta`; movement `learning_rate v`."""

    name: Literal["sgd"] = "sgd"
    learning_rate: float = Field(1.0, gt=0)
    momentum: float = Field(0.0, ge=0, lt=1)

    slots: ClassVar[tuple[str, ...]] = ("velocity",)

    def step(self, state: OptimizerState, delta: Array) -> tuple[OptimizerState, Array]:
        """Take one step."""
        velocity = self.momentum * state.vectors[0].astype(np.float64) + delta
        return stored(state.step + 1, velocity), self.learning_rate * velocity
