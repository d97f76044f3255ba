"""FedAdagrad: Reddi et al. 2021 (arXiv 2003.00295), Algorithm 2, the line for FedAdagrad."""

from typing import Literal

from pydantic import Field

from flsys_ray.core.optimizers.adaptive import Adaptive
from flsys_ray.core.optimizers.base import Array


class Adagrad(Adaptive):
    """`v <- v + delta ** 2`."""

    name: Literal["adagrad"] = "adagrad"
    beta_1: float = Field(0.0, ge=0, lt=1)

    def second_moment(self, v: Array, squared: Array) -> Array:
        """Return the next `v`."""
        return v + squared
