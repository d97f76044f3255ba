"""Devices on which the model does badly come first: the training loss of their last update.

Cho, Wang, Joshi, "Client Selection in Federated Learning: Convergence Analysis and Power-of-Choice Selection
Strategies", 2020 (arXiv 2010.01243), section 4: of d devices that are drawn, the m with the highest local loss. This is
their variant "rpow-d", which takes the loss that a device had when it last took part, and asks nobody for a new one; d
is `choice * m`. There devices are drawn in proportion to their data, here evenly.
"""

from typing import Literal

from flsys_ray.core.selection.history import History, Known
from flsys_ray.core.selection.ranked import Ranked


class PowerOfChoice(Ranked):
    """Prefers a high loss. Faster at first, and biased: what it converges to favours the devices that are hard."""

    name: Literal["power_of_choice"] = "power_of_choice"

    def score(self, known: Known, history: History, round_: int) -> float | None:
        """Return the last loss."""
        return known.loss
