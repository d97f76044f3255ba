"""Every model that wants devices has the same chance: what most systems do, and what others are compared with."""

from typing import Literal

from flsys_ray.core.rng import unit
from flsys_ray.core.scheduling.base import CheckIn, Scheduler


class RandomOrder(Scheduler):
    """A fresh lot for each check-in; models without a free slot come last."""

    name: Literal["random"] = "random"

    def order(self, check_in: CheckIn) -> tuple[str, ...]:
        """Return the models in the order of their lots, drawn from (seed, time, device, model)."""

        def lot(model: str) -> float:
            return unit(check_in.seed, f"schedule:{check_in.now!r}:{model}", 0, check_in.device_id)

        ranked = sorted(check_in.candidates, key=lambda c: (c.demand.free_slots <= 0, lot(c.model), c.model))
        return tuple(candidate.model for candidate in ranked)
