"""FedYogi: Reddi et al. 2021 (arXiv 2003.00295), Algorithm 2, the line for FedYogi."""

from typing import Literal

import numpy as np
from pydantic import Field

from flsys_ray.core.optimizers.adaptive import Adaptive
from flsys_ray.core.optimizers.base import Array


class Yogi(Adaptive):
    """`v <- v - (1 - beta_2) delta ** 2 sign(v - delta ** 2)`."""

    name: Literal["yogi"] = "yogi"
    beta_2: float = Field(0.99, ge=0, lt=1)

    def second_moment(self, v: Array, squared: Array) -> Array:
        """Return the next `v`."""
        return v - (1 - self.beta_2) * squared * np.sign(v - squared)
