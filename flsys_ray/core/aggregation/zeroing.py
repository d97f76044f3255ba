"""Sets updates that are far too large to zero, then aggregates by any other rule.

As `tff.aggregators.zeroing_factory` does (TensorFlow Federated, with a fixed norm here): a device whose training broke
moves nothing. It stays a member of the cohort, with its weight.
"""

from typing import Literal

from pydantic import Field

from flsys_ray.core.aggregation.wrapping import Rescaling


class Zeroing(Rescaling):
    """An update longer than `norm` becomes zero."""

    name: Literal["zeroing"] = "zeroing"
    norm: float = Field(10.0, gt=0, description="the largest L2 norm of an update that counts")

    def factor(self, norm: float) -> float:
        """Return 0 or 1."""
        return 0.0 if norm > self.norm else 1.0
