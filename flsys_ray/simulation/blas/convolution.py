"""Convolutions over time as one product for each device: windows side by side (im2col), and back."""

from dataclasses import dataclass

import numpy as np
from numpy.lib.stride_tricks import as_strided

from flsys_ray.simulation.blas.activations import Activation
from flsys_ray.simulation.blas.layers import Array, Signal, Weights


@dataclass(frozen=True, slots=True)
class Geometry:
    """How windows lie over a padded time axis: window t begins at `t * stride`, its places are `dilation` apart.

    `pool` neighbouring windows belong together; there are `length` such groups.
    """

    size: int
    stride: int
    dilation: int
    pool: int
    length: int

    def windows(self, padded: Array) -> Array:
        """Return a view of all windows of padded [n, B, L, C]: [n, pool, B, length, size, C]."""
        n, batch, _, channels = padded.shape
        device, example, time, channel = padded.strides
        shape = (n, self.pool, batch, self.length, self.size, channels)
        strides = (device, self.stride * time, example, self.pool * self.stride * time, self.dilation * time, channel)
        return as_strided(padded, shape, strides)

    @property
    def apart(self) -> int:
        """How many groups lie between two windows that do not overlap."""
        return -(-((self.size - 1) * self.dilation + 1) // (self.pool * self.stride))


class Convolution:
    """max over `pool` neighbours of activation(conv(x) + b).

    Windows lie in the order [pool, B, length], so that the maximum is over whole blocks. The bias is a row of the
    kernel that meets a column of ones, and has its gradient from the same product.

    Args:
        source: its `padded` has room for all windows.
        weights: rows are (place in the window, channel).
        target: [n, B, length, F].
        activation: one that keeps ties, if `pool` is not 1.
        geometry: of the windows.
        columns: work space of ones, [n, pool, B, length, rows].
        sums: work space [n, pool, B, length, F]; its gradient takes its place.
        below: makes the gradient of the input; None: nobody asks for it.
    """

    def __init__(
        self,
        source: Signal,
        weights: Weights,
        target: Signal,
        activation: Activation,
        geometry: Geometry,
        columns: Array,
        sums: Array,
        below: "Fold | None",
    ) -> None:
        self.weights, self.target, self.activation, self.below = weights, target, activation, below
        n, rows = columns.shape[0], weights.kernel.shape[1]
        self._taken = geometry.windows(source.padded)
        self._placed = columns[..., :rows].reshape(self._taken.shape, copy=False)
        self._columns, self._products = columns.reshape(n, -1, columns.shape[-1]), sums.reshape(n, -1, sums.shape[-1])
        self._sums = [sums[:, i] for i in range(geometry.pool)]

    def forward(self) -> None:
        """Lay the windows out, multiply, take the maximum, activate."""
        y, sums = self.target.value, self._sums
        np.copyto(self._placed, self._taken)
        np.matmul(self._columns, self.weights.value, out=self._products)
        best = sums[0]
        for other in sums[1:]:
            np.maximum(best, other, out=y)
            best = y
        self.activation.forward(best, y)

    def backward(self) -> None:
        """Give each gradient to the first of its neighbours that is the maximum; then multiply."""
        y, dy, sums = self.target.value, self.target.gradient, self._sums
        assert dy is not None
        self.activation.backward(y, dy, sums[0] if len(sums) == 1 else dy)
        for i in range(len(sums) - 1):
            np.multiply(dy, sums[i] >= y, out=sums[i])
            np.subtract(dy, sums[i], out=sums[-1] if i == len(sums) - 2 else dy)
        np.matmul(self._columns.swapaxes(1, 2), self._products, out=self.weights.gradient)
        if self.below is not None:
            self.below.backward()


class Fold:
    """Makes the gradient of a convolution's input: each window's is added where the window was taken from.

    Windows that do not overlap are laid out at once, and added as a whole: many short additions would take longer.

    Args:
        gradient: of the padded input, [n, B, L, C].
        spare: work space like `gradient`.
        weights: the convolution's.
        geometry: of its windows.
        columns: work space, as of the convolution: it is overwritten but for the ones that meet the bias.
        changes: the gradient of the convolution's output, [n, pool, B, length, F].
    """

    def __init__(
        self, gradient: Array, spare: Array, weights: Weights, geometry: Geometry, columns: Array, changes: Array
    ) -> None:
        n, rows = columns.shape[0], weights.kernel.shape[1]
        self._gradient, self._spare, self._kernel = gradient, spare, weights.kernel.swapaxes(1, 2)
        self._changes = changes.reshape(n, -1, changes.shape[-1])
        self._spread = columns.reshape(n, -1, columns.shape[-1])[:, :, :rows]
        taken, places = geometry.windows(gradient), geometry.windows(spare)
        placed, apart = columns[..., :rows].reshape(taken.shape, copy=False), geometry.apart
        first = [(p, t) for p in range(geometry.pool) for t in range(min(apart, geometry.length))]
        self._copies = [
            ((taken if i == 0 else places)[:, p, :, t::apart], placed[:, p, :, t::apart])
            for i, (p, t) in enumerate(first)
        ]

    def backward(self) -> None:
        """Multiply, and add."""
        np.matmul(self._changes, self._kernel, out=self._spread)
        self._gradient.fill(0.0)
        np.copyto(*self._copies[0])
        for place, change in self._copies[1:]:
            self._spare.fill(0.0)
            np.copyto(place, change)
            np.add(self._gradient, self._spare, out=self._gradient)
