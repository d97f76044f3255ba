"""A chain with its arrays, for up to so many devices: gradients of the loss for all of them at once."""

import numpy as np
from numpy.typing import NDArray

from flsys_ray.simulation.blas.activations import ACTIVATIONS
from flsys_ray.simulation.blas.convolution import Convolution, Fold, Geometry, InputGradient, Transposed
from flsys_ray.simulation.blas.layers import Array, Dense, Layer, MeanOverTime, Signal, Weights
from flsys_ray.simulation.blas.parts import Chain, ConvolutionPart, DensePart, FlattenPart, MeanPart

NARROW = 16  # columns of a product that are better than fewer


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
        self.input = signal = Signal(room.array("input", n, batch, *input_shape), None)
        for i in range(len(chain)):
            signal = self._add(i, signal)
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

    def _signal(self, name: str, *shape: int) -> Signal:
        array = self._room.array
        return Signal(array(f"{name}/value", self._n, *shape), array(f"{name}/gradient", self._n, *shape))

    def _add(self, i: int, source: Signal) -> Signal:
        """Add part i, and return its output."""
        part, name = self._chain[i], f"{i}"
        if isinstance(part, FlattenPart):
            return source.flat()
        if isinstance(part, MeanPart):
            target = self._signal(name, self._batch, *source.value.shape[3:])
            self.layers.append(MeanOverTime(source, target))
            return target
        if isinstance(part, DensePart):
            target = self._signal(name, self._batch, part.matrix.columns)
            self.layers.append(Dense(source, self._weights(part), target, ACTIVATIONS[part.activation]))
            return target
        return self._convolve(name, part, source)

    def _weights(self, part: ConvolutionPart | DensePart) -> Weights:
        m = part.matrix
        held, shape = slice(m.offset, m.offset + m.rows * m.columns), (self._n, m.rows, m.columns)
        value, gradient = (array[:, held].reshape(shape, copy=False) for array in (self.weights, self.gradients))
        return Weights(value, gradient, m.bias)

    def _convolve(self, name: str, part: ConvolutionPart, source: Signal) -> Signal:
        w, array, n, batch = part.windows, self._room.array, self._n, self._batch
        geometry, weights = Geometry(w.size, w.stride, w.dilation, part.pool, part.outputs), self._weights(part)
        shape, out = (part.pool, batch, part.outputs), (batch, part.outputs, part.matrix.columns)
        sums = array(f"{name}/sums", n, *shape, part.matrix.columns)
        value = sums[:, 0] if part.pool == 1 else array(f"{name}/value", n, *out)
        target = Signal(value, array(f"{name}/gradient", n, *out))
        columns = array(f"{name}/columns", n, *shape, part.matrix.rows, of=1.0)
        padded = self._padded(f"{name}/padded", part, source.value)
        first = array(f"{name}/first", n, batch, part.outputs, -(-part.matrix.columns // 4)).view(np.bool_)
        below = None
        if source.gradient is not None:
            changes = sums if part.pool > 1 else target.gradient[:, None]  # type: ignore[index]
            below = self._below(name, part, source, weights, geometry, columns, changes)
        self.layers.append(
            Convolution(
                source,
                padded,
                w.left,
                weights,
                target,
                ACTIVATIONS[part.activation],
                geometry,
                columns,
                sums,
                first[..., : part.matrix.columns],
                below,
            )
        )
        return target

    def _padded(self, name: str, part: ConvolutionPart, like: Array) -> Array:
        """Return zeros with room for the windows; the array itself if it has that."""
        if not any(part.padding):
            return like
        return self._room.array(name, self._n, self._batch, part.length + sum(part.padding), part.channels)

    def _below(
        self,
        name: str,
        part: ConvolutionPart,
        source: Signal,
        weights: Weights,
        geometry: Geometry,
        columns: Array,
        changes: Array,
    ) -> InputGradient:
        """Return what makes the gradient of a convolution's input, in the way that moves fewer numbers."""
        assert source.gradient is not None
        w, array, n, filters = part.windows, self._room.array, self._n, part.matrix.columns
        folded = 3 * geometry.apart * part.pool * part.channels  # cleared, copied and added, for each place
        if w.stride > 1 or w.dilation > 1 or 2 * w.size * filters > folded:
            padded = self._padded(f"{name}/padded-gradient", part, source.gradient)
            spare = array(f"{name}/spare", *padded.shape)
            return Fold(source, padded, w.left, spare, weights, geometry, columns, changes)
        beside = max(1, NARROW // part.channels)
        beside = beside if part.length % beside == 0 else 1
        reach = w.size + beside - 1
        padded = array(f"{name}/padded-changes", n, self._batch, part.length + w.size - 1, filters)
        laid = array(f"{name}/laid", n, 1, self._batch, part.length // beside, reach, filters)
        turned = array(f"{name}/turned", n, beside, part.channels, reach, filters)
        return Transposed(source, padded, w.left, weights, laid, turned, changes)
