"""How long honest updates are: what `limits.max_norm` must let through.

    python benchmarks/update_norms.py --model har-wild --data wisdm2019 --splits 0 --versions 8
    python benchmarks/update_norms.py --model sentiment --data airline_tweets --splits 0 --versions 20

Runs `federated_accuracy.py` with the same options, and prints the L2 norms of the updates that were counted in it.
"""

import federated_accuracy
import numpy as np

from flsys_ray.core.coordinator import Coordinator
from flsys_ray.core.types import Counted, Rejected, Update

NORMS: list[float] = []


class Measuring(Coordinator):
    """Notes the norm of each update that is counted."""

    def submit(self, update: Update, now: float) -> Counted | Rejected:
        outcome = super().submit(update, now)
        if isinstance(outcome, Counted):
            NORMS.append(float(np.linalg.norm(update.delta.astype(np.float64))))
        return outcome


def main() -> None:
    federated_accuracy.Coordinator = Measuring  # type: ignore[misc]
    federated_accuracy.main()
    half, most = np.quantile(NORMS, [0.5, 0.99])
    print(f"{len(NORMS)} updates: norm {min(NORMS):.2f} to {max(NORMS):.2f}, median {half:.2f}, 99 % below {most:.2f}")


if __name__ == "__main__":
    main()
