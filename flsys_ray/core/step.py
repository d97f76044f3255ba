"""From one version to the next: what a commit does with the aggregated delta, in the cloud and in a replay alike."""

import numpy as np
from numpy.typing import NDArray

from flsys_ray.core.layout import Layout
from flsys_ray.core.optimizers.base import ServerOptimizer
from flsys_ray.core.types import Version


def next_version(version: Version, delta: NDArray[np.float64], layout: Layout, optimizer: ServerOptimizer) -> Version:
    """Return the version after `version`: trained leaves move by the optimizer, others by `delta` itself.

    Args:
        version: the base, parameters float32 [P].
        delta: the aggregated delta, float64 [P].
        layout: says which leaves are trained.
        optimizer: whose state `version` carries.
    """
    trainable = layout.trainable_mask()
    state, movement = optimizer.step(version.optimizer_state, np.where(trainable, delta, 0.0))
    base = version.parameters.astype(np.float64)
    parameters = (base + np.where(trainable, movement, delta)).astype(np.float32)
    return Version(version.number + 1, parameters, state)
