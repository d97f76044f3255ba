"""A power of the age: `s(t) = (1 + t)**-a`.

Xie, Koyejo, Gupta, "Asynchronous Federated Optimization", 2019 (arXiv 1903.03934), section 5.2. With a = 1/2 it is what
Nguyen et al., "Federated Learning with Buffered Asynchronous Aggregation", AISTATS 2022 (arXiv 2106.06639), use.
"""

from typing import Literal

from pydantic import Field

from flsys_ray.core.staleness.base import StalenessWeight


class Polynomial(StalenessWeight):
    """`s(t) = (1 + t)**-a`.

    >>> [Polynomial().factor(age) for age in (0, 3, 15)]
    [1.0, 0.5, 0.25]
    """

    name: Literal["polynomial"] = "polynomial"
    a: float = Field(0.5, gt=0, le=8)

    def factor(self, staleness: int) -> float:
        """Return `(1 + t)**-a`."""
        return float((1.0 + staleness) ** -self.a)
