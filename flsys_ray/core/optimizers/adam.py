"""FedAdam: Reddi et al. 2021 (arXiv 2003.00295), Algorithm 2, the line for FedAdam."""

from typing import Literal

from pydantic import Field

from flsys_ray.core.optimizers.adaptive import Adaptive
from flsys_ray.core.optimizers.base import Array


class Adam(Adaptive):
    """`v <- beta_2 v + (1 - beta_2) delta ** 2`."""

    name: Literal["adam"] = "adam"
    beta_2: float = Field(0.99, ge=0, lt=1)

    def second_moment(self, v: Array, squared: Array) -> Array:
        """Return the next `v`."""
        return self.beta_2 * v + (1 - self.beta_2) * squared
