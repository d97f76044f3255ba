"""Clips the norm of each update, then aggregates by any other rule: with the weighted mean, the norm-clipped mean.

Sun, Kairouz, Suresh, McMahan, "Can You Really Backdoor Federated Learning?", 2019 (arXiv 1911.07963), section 4, "norm
thresholding": `delta_k / max(1, |delta_k| / M)`. Clipping bounds what one device can do; alone it is not private.
"""

from typing import Literal

from pydantic import Field

from flsys_ray.core.aggregation.wrapping import Rescaling


class Clipping(Rescaling):
    """An update longer than `norm` keeps its direction and gets this length."""

    name: Literal["clipping"] = "clipping"
    norm: float = Field(1.0, gt=0, description="M: the largest L2 norm that an update keeps")

    def factor(self, norm: float) -> float:
        """Return `min(1, M / norm)`."""
        return self.norm / norm if norm > self.norm else 1.0
