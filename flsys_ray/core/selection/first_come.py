"""Every candidate is taken while there are slots: fast to fill, and biased to devices that check in often."""

from typing import Literal

from flsys_ray.core.selection.base import Candidacy, Selector


class FirstCome(Selector):
    """Takes everyone."""

    name: Literal["first_come"] = "first_come"

    def chooses(self, candidacy: Candidacy) -> bool:
        """Return True."""
        return True
