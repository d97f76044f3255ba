"""The parts of a chain of layers, as plain numbers: they travel to processes that know no Keras."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Matrix:
    """Where a layer's weights lie in the flat vector: `rows * columns` elements; with `bias` that is the last row."""

    offset: int
    rows: int
    columns: int
    bias: bool


@dataclass(frozen=True, slots=True)
class Sliding:
    """Windows over time: the t-th of `count` begins `left` before place `t * stride`, its places `dilation` apart."""

    size: int
    stride: int
    dilation: int
    count: int
    left: int


@dataclass(frozen=True, slots=True)
class ConvolutionPart:
    """max over `pool` neighbours of activation(conv(x) + b), for an input [length, channels]."""

    matrix: Matrix
    windows: Sliding
    length: int
    channels: int
    activation: str
    pool: int = 1

    @property
    def outputs(self) -> int:
        """The number of outputs over time."""
        return self.windows.count // self.pool

    @property
    def padding(self) -> tuple[int, int]:
        """How many zeros the input's time axis needs before and after it."""
        w = self.windows
        reach = (self.outputs * self.pool - 1) * w.stride + (w.size - 1) * w.dilation + 1
        return w.left, max(0, reach - w.left - self.length)


@dataclass(frozen=True, slots=True)
class DensePart:
    """activation(x W + b)."""

    matrix: Matrix
    activation: str


@dataclass(frozen=True, slots=True)
class MeanPart:
    """The mean over time."""


@dataclass(frozen=True, slots=True)
class FlattenPart:
    """Time and channels as one axis."""


Part = ConvolutionPart | DensePart | MeanPart | FlattenPart
Chain = tuple[Part, ...]
