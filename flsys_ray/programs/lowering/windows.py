"""Sliding windows over the time axis, out of slices and reshapes: what LiteRT's built-in operators can differentiate.

A strided slice has no built-in gradient, a plain slice has: so a stride becomes a reshape that puts `stride` neighbours
beside each other, and a slice that takes one of them.
"""

from dataclasses import dataclass
from typing import Any

import tensorflow as tf

Tensor = Any


@dataclass(frozen=True)
class Windows:
    """How windows of `size` lie over a time axis of `length`.

    Attributes:
        size: elements in a window.
        stride: from one window's start to the next one's.
        dilation: distance between neighbours in a window.
        count: number of windows.
        left: padding before the first element.
    """

    size: int
    stride: int
    dilation: int
    count: int
    left: int

    @classmethod
    def over(cls, length: int, size: int, stride: int, dilation: int, padding: str) -> "Windows":
        """Place windows as Keras does for `padding` "valid", "same" or "causal". `count` may be 0 or less."""
        reach = (size - 1) * dilation + 1
        if padding == "valid":
            return cls(size, stride, dilation, (length - reach) // stride + 1, 0)
        if padding == "causal":
            return cls(size, stride, dilation, -(-length // stride), reach - 1)
        count = -(-length // stride)
        total = max((count - 1) * stride + reach - length, 0)
        return cls(size, stride, dilation, count, total // 2)

    def pad(self, x: Tensor, value: float = 0.0) -> Tensor:
        """Pad (or cut) the time axis of x [B, T, C] so that every tap below is in range."""
        length = x.shape[1]
        # The last tap takes `count * stride` elements, so that they reshape to [count, stride].
        needed = (self.size - 1) * self.dilation // self.stride * self.stride + self.count * self.stride
        right = needed - self.left - length
        if right < 0:
            x = tf.slice(x, [0, 0, 0], [x.shape[0], length + right, x.shape[2]])
        if self.left or right > 0:
            x = tf.pad(x, [[0, 0], [self.left, max(right, 0)], [0, 0]], constant_values=value)
        return x

    def taps(self, x: Tensor, value: float = 0.0) -> list[Tensor]:
        """Return, for each place in a window, its elements of all windows: `size` tensors [B, count, C]."""
        x = self.pad(x, value)
        batch, length, channels = x.shape
        if self.stride > 1:
            x = tf.reshape(x, [batch, length // self.stride, self.stride, channels])
        return [self._tap(x, i * self.dilation) for i in range(self.size)]

    def _tap(self, x: Tensor, offset: int) -> Tensor:
        batch, channels = x.shape[0], x.shape[-1]
        if self.stride == 1:
            return tf.slice(x, [0, offset, 0], [batch, self.count, channels])
        start, phase = divmod(offset, self.stride)
        tap = tf.slice(x, [0, start, phase, 0], [batch, self.count, 1, channels])
        return tf.reshape(tap, [batch, self.count, channels])
