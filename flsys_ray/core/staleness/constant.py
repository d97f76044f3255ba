"""Every update counts alike, however old: the constant of Xie, Koyejo, Gupta, "Asynchronous Federated Optimization",
2019 (arXiv 1903.03934), section 5.2.
"""

from typing import Literal

from flsys_ray.core.staleness.base import StalenessWeight


class Constant(StalenessWeight):
    """`s(t) = 1`.

    >>> Constant().units(120, 9)
    120
    """

    name: Literal["constant"] = "constant"

    @property
    def bits(self) -> int:
        """None are needed: weights stay examples."""
        return 0

    def factor(self, staleness: int) -> float:
        """Return 1."""
        return 1.0
