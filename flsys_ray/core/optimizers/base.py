"""What a server optimizer is: a step from (state, aggregated delta) to (state, movement).

The notation is that of Reddi, Charles, Zaheer, Garrett, Rush, Konečný, Kumar, McMahan, "Adaptive Federated
Optimization", ICLR 2021 (arXiv 2003.00295), Algorithms 1 and 2. The delta is not negated: it points where the devices
went, so that `next = base + movement`. The arithmetic is element by element in float64 and is stored as float32:
the same bits on every machine.
"""

from abc import ABC, abstractmethod
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from flsys_ray.core.layout import Vector
from flsys_ray.core.registry import Extension, Registry
from flsys_ray.core.types import OptimizerState

Array = NDArray[np.float64]


class ServerOptimizer(Extension, ABC):
    """A frozen object whose fields are its hyper-parameters."""

    slots: ClassVar[tuple[str, ...]] = ()

    def init(self, size: int) -> OptimizerState:
        """Return the state before the first step: one float32 vector of length `size` a slot."""
        return OptimizerState(0, tuple(self.initial(slot, size) for slot in self.slots))

    def initial(self, slot: str, size: int) -> Vector:
        """Return the first value of one slot; zeros unless an optimizer says otherwise."""
        return np.zeros(size, dtype=np.float32)

    @abstractmethod
    def step(self, state: OptimizerState, delta: Array) -> tuple[OptimizerState, Array]:
        """Return the next state and the movement, float64 [P], for an aggregated delta, float64 [P]."""


def stored(step: int, *vectors: Array) -> OptimizerState:
    """Return a state with its vectors rounded to float32, as the store keeps them."""
    return OptimizerState(step, tuple(vector.astype(np.float32) for vector in vectors))


OPTIMIZERS: Registry[ServerOptimizer] = Registry(ServerOptimizer, __package__)
