"""Fast local training of chains of layers: devices beside each other, in numpy and its BLAS.

The mathematics is the program's, as in `fast_trainer`; here it is a fixed list of products and element-wise operations
on arrays that are kept, with nothing to compile. A few devices are trained side by side: as many as have room in a
core's cache, so that the cost of a call is shared. A device's bits do not depend on who they are.
"""

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from flsys_ray.programs.manifest import Manifest
from flsys_ray.simulation.blas.layers import Array
from flsys_ray.simulation.blas.network import Network, Room
from flsys_ray.simulation.blas.optimizers import OPTIMIZERS, Optimizer
from flsys_ray.simulation.blas.parts import Chain
from flsys_ray.simulation.training import Deltas, Feed, Group, TrainerSpec, Work, batches_of, feed_of

SIDE_BYTES = 10_000_000  # of arrays for devices side by side
MOST_DEVICES = 16


class BlasTrainer:
    """Trains groups of any size. For many threads: each has arrays of its own.

    Making one has numpy's BLAS compute on the thread that calls it, in the whole process: workers share the cores, and
    sums never depend on the machine's number of cores.
    """

    def __init__(self, spec: TrainerSpec, chain: Chain, manifest: Manifest) -> None:
        threadpool_limits(1, user_api="blas")
        self.spec, self.chain, self.manifest = spec, chain, manifest
        room = Room(1)
        self._network(room, 1)
        self.devices = min(MOST_DEVICES, max(1, SIDE_BYTES // room.num_bytes))
        self._local = threading.local()

    def train(self, group: Group, out: Array | None = None) -> Deltas:
        """Train all works of a group: those with the most steps first, so that who is done leaves at the end.

        `out` [D, P] takes the deltas; its rows may be the bases of the same works.
        """
        feeds = [self._feed(work) for work in group.works]
        order = sorted(range(len(group.works)), key=lambda i: -len(feeds[i].places))
        delta = np.empty((len(order), self.manifest.parameters), np.float32) if out is None else out
        loss, steps = np.empty(len(order)), np.array([len(feed.places) for feed in feeds], np.int64)
        sides = -(-len(order) // self.devices)
        for side_number in range(sides):
            chosen = order[side_number * len(order) // sides : (side_number + 1) * len(order) // sides]
            side = _Side([group.works[i] for i in chosen], [feeds[i] for i in chosen], group)
            weights, loss[chosen] = self._train_side(side)
            for row, i in enumerate(chosen):
                np.subtract(weights[row], side.bases[row], out=delta[i])
        return Deltas(delta, loss, steps)

    def _train_side(self, side: "_Side") -> tuple[Array, NDArray[np.float64]]:
        """Return the weights [n, P] that stay valid until the next call, and the mean losses [n]."""
        mu = np.float32(self.spec.local.proximal_mu)
        networks, optimizer = self._mine()
        weights = networks.of(len(side.bases)).weights
        for row, base in enumerate(side.bases):
            weights[row] = base
        optimizer.begin()
        losses = np.zeros(len(side.bases))
        for step in range(side.steps[0]):
            n = side.active(step)
            network = networks.of(n)
            places, mask = side.places[:n, step], side.mask[:n, step]
            np.take(side.x, places, axis=0, out=network.input.value, mode="clip")
            loss = network.step_gradients(side.y[places], mask)
            losses[:n] += loss * mask.sum(1)
            for row in range(n) if mu else ():
                network.gradients[row] += mu * (network.weights[row] - side.bases[row])
            optimizer.step(network.weights, network.gradients, side.rates[:n])
            for row, correction in side.corrections(n):
                network.weights[row] -= side.rates[row] * correction
        return weights, losses / side.mask.sum((1, 2))

    def _feed(self, work: Work) -> Feed:
        """Return what a work trains on: places in the pool itself, unless its windows are changed."""
        size, examples = self.manifest.batch_size, self.spec.training
        if self.spec.transforms:
            return feed_of(work, self.spec, size)
        places, mask = batches_of(work, self.spec.local, size)
        return Feed(examples.x, examples.y, work.rows[places].astype(np.int32), mask)

    def _mine(self) -> "tuple[_Networks, Optimizer]":
        """Return this thread's networks and optimizer."""
        if not hasattr(self._local, "made"):
            made = _Networks(self, Room(self.devices))
            self._local.made = made, OPTIMIZERS[self.manifest.local_optimizer](self.devices, self.manifest.parameters)
        mine: tuple[_Networks, Optimizer] = self._local.made
        return mine

    def _network(self, room: Room, n: int) -> Network:
        m = self.manifest
        return Network(self.chain, m.input_shape, m.batch_size, m.parameters, room, n)


class _Networks:
    """One thread's networks, by the number of devices; all on the same arrays."""

    def __init__(self, trainer: BlasTrainer, room: Room) -> None:
        self._trainer, self._room = trainer, room
        self._made: dict[int, Network] = {}

    def of(self, n: int) -> Network:
        """Return the network for n devices."""
        if n not in self._made:
            self._made[n] = self._trainer._network(self._room, n)
        return self._made[n]


class _Side:
    """Works that are trained side by side, most steps first.

    Examples x [N, ...] and y [N], places in them [n, S, B], mask [n, S, B], rates [n, 1].
    """

    def __init__(self, works: Sequence[Work], feeds: Sequence[Feed], group: Group) -> None:
        self.bases, self._works = [group.bases[work.base] for work in works], works
        self.steps = [len(feed.places) for feed in feeds]
        self.x, self.y, starts = _together(feeds)
        self.rates = np.array([[work.rate] for work in works], np.float32)
        shape = (len(works), self.steps[0], feeds[0].places.shape[1])
        self.places, self.mask = np.zeros(shape, np.int64), np.zeros(shape, np.float32)
        for i, (feed, start) in enumerate(zip(feeds, starts, strict=True)):
            self.places[i, : self.steps[i]], self.mask[i, : self.steps[i]] = feed.places + start, feed.mask

    def active(self, step: int) -> int:
        """Return how many works take a step: the first ones."""
        return sum(steps > step for steps in self.steps)

    def corrections(self, n: int) -> list[tuple[int, Array]]:
        """Return the corrections among the first n works."""
        return [(i, w.correction) for i, w in enumerate(self._works[:n]) if w.correction is not None]


def _together(feeds: Sequence[Feed]) -> tuple[NDArray[Any], NDArray[np.int32], list[int]]:
    """Return the examples of all feeds, x and y, and where each feed's begin; the pool itself is not copied."""
    if all(feed.x is feeds[0].x for feed in feeds):
        return feeds[0].x, feeds[0].y, [0] * len(feeds)
    starts = np.cumsum([0, *(len(feed.y) for feed in feeds[:-1])]).tolist()
    return np.concatenate([feed.x for feed in feeds]), np.concatenate([feed.y for feed in feeds]), starts
