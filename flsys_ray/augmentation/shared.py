"""A shared set of examples, even over the classes, of which each device mixes a part into what it trains on.

Zhao, Li, Lai, Suda, Civin, Chandra, "Federated Learning with Non-IID Data", 2018 (arXiv 1806.00582), section 4: the
cloud has a set G, even over the classes; each device is given a random portion alpha of it, and trains on that portion
and its own examples together. alpha is the plan's `augmentation.share`.

The portion is trained on like the device's own examples, which it follows: it counts in the batches, the local steps
and the transforms. It does not count in the weight of the update, nor in what a device says of its examples (how many,
of which classes): these speak of what the device alone has. Zhao et al. do not say; their devices all have as many.
"""

import numpy as np
from numpy.typing import NDArray

from flsys_ray.core.rng import generator


def portion_of(count: int, share: float, *, seed: int, device_id: str) -> NDArray[np.int64]:
    """Return which of the `count` examples of the shared set a device mixes in: sorted rows, the same for ever.

    They are `share * count`, rounded, drawn evenly without replacement; a larger share holds all of a smaller one.

    Args:
        count: examples in the shared set.
        share: 0 to 1, the plan's.
        seed: the plan's.
        device_id: the device.
    """
    order = generator(seed, "shared-set", 0, device_id).permutation(count)
    return np.sort(order[: round(share * count)]).astype(np.int64)
