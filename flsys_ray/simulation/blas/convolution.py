"""Convolutions over time as one product for each device: windows side by side (im2col), and back.

numpy is quick where memory lies in one piece: so values have no padding between examples, and what needs padding is
copied into arrays that have it.
"""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.lib.stride_tricks import as_strided
from numpy.typing import NDArray

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


class InputGradient(Protocol):
    """Makes the gradient of a convolution's input from the gradient of its output."""

    def backward(self) -> None:
        """Set it. The convolution's columns may be overwritten, but for the ones that meet the bias."""


class Convolution:
    """max over `pool` neighbours of activation(conv(x) + b).

    Windows lie in the order [pool, B, length], so that the maximum is over whole blocks. The bias is a row of the
    kernel that meets a column of ones, and has its gradient from the same product.

    Args:
        source: the input, [n, B, T, C].
        padded: the input with zeros around its time axis, and room for all windows: [n, B, L, C].
        left: where the input lies in it.
        weights: rows are (place in the window, channel).
        target: [n, B, length, F].
        activation: one that keeps ties, if `pool` is not 1.
        geometry: of the windows.
        columns: work space of ones, [n, pool, B, length, rows].
        sums: work space [n, pool, B, length, F]; its gradient takes its place. With `pool` 1 it is the output's value.
        first: work space bool [n, B, length, F].
        below: makes the gradient of the input; None: nobody asks for it.
    """

    def __init__(
        self,
        source: Signal,
        padded: Array,
        left: int,
        weights: Weights,
        target: Signal,
        activation: Activation,
        geometry: Geometry,
        columns: Array,
        sums: Array,
        first: NDArray[np.bool_],
        below: InputGradient | None,
    ) -> None:
        self.source, self.weights, self.target, self.activation, self.below = source, weights, target, activation, below
        n, rows = columns.shape[0], weights.kernel.shape[1]
        self._inner = padded[:, :, left : left + source.value.shape[2]] if padded is not source.value else None
        self._taken = geometry.windows(padded)
        self._placed = columns[..., :rows].reshape(self._taken.shape, copy=False)
        self._columns, self._products = _matrices(columns), _matrices(sums)
        self._sums, self._first = [sums[:, i] for i in range(geometry.pool)], first
        assert target.gradient is not None
        self._changes = self._products if geometry.pool > 1 else target.gradient.reshape(n, -1, sums.shape[-1])

    def forward(self) -> None:
        """Lay the windows out, multiply, take the maximum, activate."""
        y, sums = self.target.value, self._sums
        if self._inner is not None:
            np.copyto(self._inner, self.source.value)
        np.copyto(self._placed, self._taken)
        np.matmul(self._columns, self.weights.value, out=self._products)
        best = sums[0]
        for other in sums[1:]:
            np.maximum(best, other, out=y)
            best = y
        self.activation.forward(best, y)

    def backward(self) -> None:
        """Give each gradient to the first of its neighbours that is the maximum; then multiply."""
        y, dy, sums, first = self.target.value, self.target.gradient, self._sums, self._first
        assert dy is not None
        self.activation.backward(y, dy, dy)
        for i in range(len(sums) - 1):
            np.greater_equal(sums[i], y, out=first)
            np.multiply(dy, first, out=sums[i])
            np.subtract(dy, sums[i], out=sums[-1] if i == len(sums) - 2 else dy)
        np.matmul(self._columns.swapaxes(1, 2), self._changes, out=self.weights.gradient)
        if self.below is not None:
            self.below.backward()


class Fold:
    """Adds each window's gradient where the window was taken from.

    Windows that do not overlap are laid out at once, and added as a whole: many short additions would take longer.

    Args:
        source: the input.
        padded: work space for its gradient, [n, B, L, C], and the input's place `left` in it.
        spare: work space like `padded`.
        weights: the convolution's.
        geometry: of its windows.
        columns: the convolution's.
        changes: the gradient of the convolution's output, [n, pool, B, length, F].
    """

    def __init__(
        self,
        source: Signal,
        padded: Array,
        left: int,
        spare: Array,
        weights: Weights,
        geometry: Geometry,
        columns: Array,
        changes: Array,
    ) -> None:
        rows = weights.kernel.shape[1]
        self._gradient, self._inner = source.gradient, padded[:, :, left : left + source.value.shape[2]]
        self._padded, self._spare, self._kernel = padded, spare, weights.kernel.swapaxes(1, 2)
        self._changes, self._spread = _matrices(changes), _matrices(columns)[:, :, :rows]
        taken, places = geometry.windows(padded), geometry.windows(spare)
        placed, apart = columns[..., :rows].reshape(taken.shape, copy=False), geometry.apart
        first = [(p, t) for p in range(geometry.pool) for t in range(min(apart, geometry.length))]
        self._copies = [
            ((taken if i == 0 else places)[:, p, :, t::apart], placed[:, p, :, t::apart])
            for i, (p, t) in enumerate(first)
        ]

    def backward(self) -> None:
        """Multiply, and add."""
        np.matmul(self._changes, self._kernel, out=self._spread)
        self._padded.fill(0.0)
        np.copyto(*self._copies[0])
        for place, change in self._copies[1:]:
            self._spare.fill(0.0)
            np.copyto(place, change)
            np.add(self._padded, self._spare, out=self._padded)
        if self._gradient is not self._padded:
            assert self._gradient is not None
            np.copyto(self._gradient, self._inner)


class Transposed:
    """Computes the gradient of the input as a convolution of the output's with the kernel turned around.

    For windows of stride and dilation 1. `beside` neighbouring places are computed at once, with a kernel that holds
    the turned one once for each, shifted: a wider product, and fewer copies.

    Args:
        source: the input, [n, B, T, C]; T is a multiple of `beside`.
        padded: zeros, [n, B, T + K - 1, F].
        left: the padding before the convolution's input.
        weights: the convolution's.
        columns: work space, [n, 1, B, T / beside, K + beside - 1, F].
        turned: zeros, [n, beside, C, K + beside - 1, F].
        changes: the gradient of the convolution's output, [n, pool, B, length, F].
    """

    def __init__(
        self, source: Signal, padded: Array, left: int, weights: Weights, columns: Array, turned: Array, changes: Array
    ) -> None:
        assert source.gradient is not None
        n, beside, channels, reach, filters = turned.shape
        size, pool, count = reach - beside + 1, changes.shape[1], changes.shape[1] * changes.shape[3]
        begin = size - 1 - left
        self._places = [(padded[:, :, begin + p : begin + count : pool], changes[:, p]) for p in range(pool)]
        self._taken = Geometry(reach, beside, 1, 1, columns.shape[3]).windows(padded)
        kernel = weights.kernel.reshape(n, size, channels, filters, copy=False)[:, ::-1].swapaxes(1, 2)
        self._turns = [(turned[:, q, :, q : q + size], kernel) for q in range(beside)]
        self._placed, self._columns = columns, columns.reshape(n, -1, reach * filters)
        self._kernel = turned.reshape(n, beside * channels, -1).swapaxes(1, 2)
        self._gradient = source.gradient.reshape(n, -1, beside * channels)

    def backward(self) -> None:
        """Lay out, and multiply."""
        for place, change in self._places + self._turns:
            np.copyto(place, change)
        np.copyto(self._placed, self._taken)
        np.matmul(self._columns, self._kernel, out=self._gradient)


def _matrices(array: Array) -> Array:
    """Return [n, ..., columns] as [n, rows, columns], without a copy."""
    return array.reshape(array.shape[0], -1, array.shape[-1])
