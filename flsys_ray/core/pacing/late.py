"""What plans say of updates whose base version is not the newest any more."""

from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from flsys_ray.core.staleness.base import WEIGHTS, Staleness, StalenessWeight

if TYPE_CHECKING:
    AnyWeight = StalenessWeight
else:
    AnyWeight = WEIGHTS.union("polynomial")

MAX_STALENESS = 1000


class LateUpdates(BaseModel):
    """Rounds that fold late updates in: what missed its own round counts in the open one, with less weight."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    max_staleness: int = Field(1, ge=1, le=MAX_STALENESS, description="an update may be so many versions old")
    weight: AnyWeight = Field("polynomial", validate_default=True, description="what an old update counts")

    @property
    def staleness(self) -> Staleness:
        """Both, as the coordinator reads them."""
        return Staleness(self.max_staleness, self.weight)
