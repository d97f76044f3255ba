"""Full weight up to an age, and less and less above it.

Xie, Koyejo, Gupta, "Asynchronous Federated Optimization", 2019 (arXiv 1903.03934), section 5.2; the defaults are those
of its experiments.
"""

from typing import Literal

from pydantic import Field

from flsys_ray.core.staleness.base import StalenessWeight


class Hinge(StalenessWeight):
    """`s(t) = 1` for t <= b, `1 / (a (t - b) + 1)` above.

    >>> [Hinge(a=1.0, b=4).factor(age) for age in (0, 4, 5, 7)]
    [1.0, 1.0, 0.5, 0.25]
    """

    name: Literal["hinge"] = "hinge"
    a: float = Field(10.0, gt=0, le=1000)
    b: int = Field(4, ge=0, le=1000)

    def factor(self, staleness: int) -> float:
        """Return 1 up to b, and a hyperbola above."""
        return 1.0 if staleness <= self.b else 1.0 / (self.a * (staleness - self.b) + 1.0)
