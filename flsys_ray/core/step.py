"""From one version to the next: what a commit does with the folded updates, in the cloud and in a replay alike."""

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flsys_ray.core.layout import Layout
from flsys_ray.core.optimizers.base import ServerOptimizer
from flsys_ray.core.plan import TrainingPlan
from flsys_ray.core.types import Version
from flsys_ray.core.updates import UpdateReader


def prepared(version: Version, plan: TrainingPlan) -> Version:
    """Return a version with the control that the plan's rule goes on from: zeros where it has none yet."""
    carries = plan.aggregation.carries_control
    if carries == (version.control is not None):
        return version
    return replace(version, control=np.zeros_like(version.parameters) if carries else None)


def committed(
    version: Version, fold: Any, updates: UpdateReader, layout: Layout, plan: TrainingPlan
) -> tuple[Version, NDArray[np.float64]]:
    """Return the version after `version`, which is prepared for the plan, and the aggregated delta, float64 [P].

    Not-trained leaves have no gradient: their control stays zero. Raises what the rule's `finish` raises.
    """
    rule = plan.aggregation
    delta = rule.finish(fold, updates)
    following = next_version(version, delta, layout, plan.server_optimizer)
    if version.control is None:
        return following, delta
    control = np.where(layout.trainable_mask(), rule.next_control(fold, version.control), np.float32(0))
    return replace(following, control=control), delta


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
