"""Devices that have examples of the rare classes come first.

It is told how many examples of each class a device trains on, if the app on the phone agrees to say so: see
`docs/selection.md`. In the spirit of Zhang, Li, Chen, et al., "Fed-CBS: A Heterogeneity-Aware Client Sampling Mechanism
for Federated Learning via Class-Imbalance Reduction", ICML 2023 (arXiv 2209.15245), which draws whole cohorts whose
joint labels are even; here one device is judged at a time, against what the last versions have seen.
"""

from functools import lru_cache
from typing import ClassVar, Literal

from flsys_ray.core.selection.history import History, Known
from flsys_ray.core.selection.ranked import Ranked


class ClassBalance(Ranked):
    """Prefers devices whose labels were seldom in the last versions. Those that say nothing are drawn."""

    name: Literal["class_balance"] = "class_balance"
    reads_labels: ClassVar[bool] = True

    def score(self, known: Known, history: History, round_: int) -> float | None:
        """Return the mean rarity of the device's examples: 1 over the share of their class, up to `1 / 1e-3`."""
        if not known.labels or sum(known.labels) == 0:
            return None
        shares = seen_shares(history)
        weighed = (count / max(shares[label], 1e-3) for label, count in enumerate(known.labels))
        return sum(weighed) / sum(known.labels)


@lru_cache(maxsize=16)
def seen_shares(history: History) -> tuple[float, ...]:
    """Return the share of each class among the examples that all lines of the history tell of."""
    told = [line.labels for _, lines in history.versions for line in lines if line.labels]
    classes = max(map(len, told), default=0)
    totals = [sum(labels[label] for labels in told if label < len(labels)) for label in range(classes)]
    return tuple(total / max(1, sum(totals)) for total in totals)
