"""A chain with its arrays, for up to so many devices: gradients of the loss for all of them at once."""

import numpy as np
from numpy.typing import NDArray

from flsys_ray.simulation.blas.activations import ACTIVATIONS
from flsys_ray.simulation.blas.chain import Chain, ConvolutionPart, DensePart, FlattenPart, MeanPart, paddings
from flsys_ray.simulation.blas.convolution import Convolution, Fold, Geometry
from flsys_ray.simulation.blas.layers import Array, Dense, Layer, MeanOverTime, Signal, Weights


class Room:
    """Arrays by name, for a number of devices; smaller numbers have the first part of the same arrays."""

    def __init__(self, devices: int) -> None:
        self.devices = devices
        self._arrays: dict[str, Array] = {}

    def array(self, name: str, n: int, *shape: int, of: float = 0.0) -> Array:
        """Return an array [n, *shape], which held `of` when it was first asked for."""
        if name not in self._arrays:
            self._arrays[name] = np.full((self.devices, *shape), of, np.float32)
        return self._arrays[name][:n]

    @property
    def num_bytes(self) -> int:
        """The size of all arrays."""
        return sum(array.nbytes for array in self._arrays.values())


class Network:
    """The layers of a chain for n devices and batches of B.

    `weights` and `gradients` are [n, P]. `step_gradients` fills `gradients`.
    """

    def __init__(self, chain: Chain, input_shape: tuple[int, ...], batch: int, parameters: int, room: Room, n: int):
        self.weights, self.gradients = room.array("weights", n, parameters), room.array("gradients", n, parameters)
        self._chain, self._batch, self._room, self._n = chain, batch, room, n
        self.layers: list[Layer] = []
        margins = [*paddings(chain), (0, 0)]
        self.input = signal = self._signal("input", input_shape, margins[0], gradient=False)
        for i in range(len(chain)):
            signal = self._add(i, signal, margins[i + 1])
        self.logits = signal
        self._places = np.arange(n * batch) * signal.value.shape[-1]

    def step_gradients(self, labels: NDArray[np.int32], mask: Array) -> Array:
        """Compute the gradients of the mean cross-entropy over real examples. Returns it, float32 [n].

        `input.value` has been set; labels [n, B]; mask [n, B] is 1 for a real example.
        """
        for layer in self.layers:
            layer.forward()
        loss = self._loss(labels, mask)
        for layer in reversed(self.layers):
            layer.backward()
        return loss

    def _loss(self, labels: NDArray[np.int32], mask: Array) -> Array:
        """Set the logits' gradient, return the loss: by log-softmax, as `losses.cross_entropy`."""
        scores, slope = self.logits.value, self.logits.gradient
        assert slope is not None
        scores -= scores.max(-1, keepdims=True)
        np.exp(scores, out=slope)
        total = slope.sum(-1)
        chosen = self._places + labels.reshape(-1)
        share = mask / np.maximum(mask.sum(-1, keepdims=True), np.float32(1.0))
        loss = (np.log(total) - scores.reshape(-1)[chosen].reshape(labels.shape)) * share
        slope /= total[..., None]
        slope.reshape(-1)[chosen] -= np.float32(1.0)
        slope *= share[..., None]
        made: Array = loss.sum(-1)
        return made

    # Making ------------------------------------------------------------------------------------------------------

    def _signal(self, name: str, shape: tuple[int, ...], margins: tuple[int, int], *, gradient: bool = True) -> Signal:
        """Return arrays for values [*shape], whose time axis has margins."""
        time = slice(margins[0], margins[0] + shape[0])
        larger = (shape[0] + sum(margins), *shape[1:])
        padded = self._room.array(f"{name}/value", self._n, self._batch, *larger)
        if not gradient:
            return Signal(padded[:, :, time], None, padded, None)
        array = self._room.array(f"{name}/gradient", self._n, self._batch, *larger)
        return Signal(padded[:, :, time], array[:, :, time], padded, array)

    def _add(self, i: int, source: Signal, following: tuple[int, int]) -> Signal:
        """Add part i, and return its output, which the next part pads."""
        part, name = self._chain[i], f"{i}"
        if isinstance(part, FlattenPart):
            return source.flat()
        if isinstance(part, MeanPart):
            target = self._signal(name, source.value.shape[3:], (0, 0))
            self.layers.append(MeanOverTime(source, target))
            return target
        if isinstance(part, DensePart):
            target = self._signal(name, (part.matrix.columns,), (0, 0))
            self.layers.append(Dense(source, self._weights(part), target, ACTIVATIONS[part.activation]))
            return target
        target = self._signal(name, (part.outputs, part.matrix.columns), following)
        self._convolve(name, part, source, target)
        return target

    def _weights(self, part: ConvolutionPart | DensePart) -> Weights:
        m = part.matrix
        held, shape = slice(m.offset, m.offset + m.rows * m.columns), (self._n, m.rows, m.columns)
        value, gradient = (array[:, held].reshape(shape, copy=False) for array in (self.weights, self.gradients))
        return Weights(value, gradient, m.bias)

    def _convolve(self, name: str, part: ConvolutionPart, source: Signal, target: Signal) -> None:
        w, array = part.windows, self._room.array
        shape = (self._n, part.pool, self._batch, part.outputs)
        geometry, weights = Geometry(w.size, w.stride, w.dilation, part.pool, part.outputs), self._weights(part)
        columns = array(f"{name}/columns", *shape, part.matrix.rows, of=1.0)
        sums = array(f"{name}/sums", *shape, part.matrix.columns)
        below = None
        if source.padded_gradient is not None:
            spare = array(f"{name}/spare", *source.padded_gradient.shape)
            below = Fold(source.padded_gradient, spare, weights, geometry, columns, sums)
        activation = ACTIVATIONS[part.activation]
        self.layers.append(Convolution(source, weights, target, activation, geometry, columns, sums, below))
