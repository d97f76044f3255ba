"""Fast local training: many devices' at once, or the whole of a device's in one TensorFlow graph. On one core.

The mathematics is the program's (`programs.lowering.signatures.train`): same loss, optimizers, batches, masks,
batch statistics. What differs is the order of sums, and so the last bits, and dropout: its key is a fingerprint of
sums to the bit (`programs.lowering.random`), so another runtime drops other units.

Three forms, chosen by the model alone, so that the bits of a result depend on no clock:

- `OneByOne`, for large models: a loop over steps, one device after the other; operators are large enough by themselves;
- `SideBySide`, for small ones that are chains of layers (`blas.chain`): numpy and its BLAS, some devices at once;
- `Together`, for other small ones: all devices of a group take a step at once, compiled by XLA, so that the cost of
  starting operators is shared. A device that has no step left, or a place that no device has, is masked.

Each trainer computes on one thread; workers share the cores. XLA is asked for within the loop only.
"""

import math
import os
import threading
from typing import Any

import numpy as np

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras
import tensorflow as tf

from flsys_ray.core.layout import Layout, Vector
from flsys_ray.errors import InvalidInput
from flsys_ray.programs.lowering.blueprint import blueprint_of
from flsys_ray.programs.lowering.losses import cross_entropy
from flsys_ray.programs.lowering.random import Noise, key_of_values, mix
from flsys_ray.programs.lowering.replay import Replay
from flsys_ray.programs.lowering.signatures import Batch, Blueprint, gradients_of, logits_of
from flsys_ray.programs.manifest import Manifest, read_manifest
from flsys_ray.simulation.blas.chain import chain_of
from flsys_ray.simulation.blas_trainer import BlasTrainer
from flsys_ray.simulation.crew import Recipe
from flsys_ray.simulation.forms import BLOCKED, NATIVE
from flsys_ray.simulation.training import Answers, Deltas, Feed, Group, TrainerSpec, Work, feed_of

Tensor = Any
SMALL_PARAMETERS = 65_536
SMALL_OUTPUTS = 131_072  # of all layers, for one batch
EVALUATION_ROWS = 256
THREADS = "TF_NUM_INTRAOP_THREADS"  # which TensorFlow reads when it starts


def is_small(manifest: Manifest, model: Any) -> bool:
    """Return whether devices of a Keras model are trained together: a step is then mostly the start of operators."""
    outputs = sum(math.prod(layer.output.shape[1:]) for layer in model.layers if not isinstance(layer, keras.Model))
    return manifest.parameters < SMALL_PARAMETERS and manifest.batch_size * outputs < SMALL_OUTPUTS


def make_fast_trainer(spec: TrainerSpec) -> "OneByOne | SideBySide | Together":
    """Return the trainer for a model of this kind. Raises `InvalidInput` if its Keras model is not known."""
    if spec.build is None:
        raise InvalidInput("simulation: the fast trainer needs the Keras model; a program alone takes `program`")
    one_thread()
    model, manifest = spec.build(), read_manifest(spec.program)
    if not is_small(manifest, model):
        return OneByOne(spec, model, manifest)
    made = SideBySide(spec, model, manifest)
    return made if made.fits else Together(spec, model, manifest)


def one_thread() -> None:
    """Have TensorFlow compute each operator on the thread that calls it: sums then never depend on the machine.

    Raises:
        InvalidInput: TensorFlow has started already, with more threads.
    """
    if os.environ.get(THREADS) == "1" or tf.config.threading.get_intra_op_parallelism_threads() == 1:
        return
    try:
        tf.config.threading.set_intra_op_parallelism_threads(1)
    except RuntimeError as error:
        raise InvalidInput(
            "simulation: TensorFlow runs with several threads in this process, and results would depend on them: "
            f"set {THREADS}=1 in the environment"
        ) from error


def _shapes(layout: Layout) -> list[tuple[tuple[int, ...], bool]]:
    return [(leaf.shape, leaf.trainable) for leaf in layout.leaves]  # names count a process's models


class _Graphs:
    """What both forms share: the blueprint, one step as a function of a list of leaves, and evaluation."""

    def __init__(self, spec: TrainerSpec, model: Any, manifest: Manifest) -> None:
        self.spec, self.manifest = spec, manifest
        m = manifest
        self.blueprint: Blueprint = blueprint_of(model, m.classes, m.batch_size, m.local_optimizer)
        if _shapes(self.blueprint.leaves.layout) != _shapes(m.to_layout()):
            raise InvalidInput(f"simulation: the Keras model is not the one that program {m.name!r} was made of")
        self.lock = threading.Lock()
        self._answers = tf.function(self._answer_batch, autograph=False)

    def step(
        self, leaves: list[Tensor], slots: list[Tensor], batch: Batch, anchor: list[Tensor], rate: Tensor, key: Tensor
    ) -> tuple[Any, ...]:
        """Return the leaves, slots and loss after one step at a rate; see `signatures.train`. `key` is the noise's."""
        local, variables = self.spec.local, self.blueprint.leaves.variables
        values = {id(v.source): leaf for v, leaf in zip(variables, leaves, strict=True)}
        replay = Replay(values, training=True, rows=batch.mask, noise=Noise(key), instead=self.instead)
        gradients, loss = gradients_of(self.blueprint, batch, replay)
        made, made_slots = [], []
        for leaf, gradient, slot, start in zip(leaves, gradients, slots, anchor, strict=False):
            if local.proximal_mu:
                gradient += local.proximal_mu * (leaf - start)
            flat, after = tf.reshape(leaf, [-1]), tf.reshape(gradient, [-1])
            flat, slot = self.blueprint.optimizer.step(flat, after, rate, slot)
            made.append(tf.reshape(flat, leaf.shape))
            made_slots.append(tf.zeros([0]) if slot is None else slot)
        made += [replay.values[id(v.source)] for v in variables if not v.trainable]
        return made, made_slots, loss

    instead = NATIVE
    at_once = 0

    def recipe(self) -> Recipe | None:
        """Return None: TensorFlow computes."""
        return None

    def fresh_slots(self) -> list[Tensor]:
        """Return zeros: each trained leaf has its own part of the optimizer's state."""
        layout = self.blueprint.leaves.layout
        return [tf.zeros([self.blueprint.optimizer.slots_of(leaf.size)]) for leaf in layout.leaves if leaf.trainable]

    def unpack(self, vector: Tensor) -> list[Tensor]:
        """Return the leaves in a flat vector [P]."""
        values = self.blueprint.leaves.unpack(vector)
        return [values[id(v.source)] for v in self.blueprint.leaves.variables]

    def evaluate(self, parameters: Vector) -> Answers:
        """Return a version's answers on the held-out examples."""
        x, y = self.spec.held_out.x, self.spec.held_out.y
        chosen, loss_sum = [], 0.0
        for first in range(0, len(y), EVALUATION_ROWS):
            rows = np.arange(first, first + EVALUATION_ROWS)
            mask = (rows < len(y)).astype(np.float32)
            rows = np.minimum(rows, len(y) - 1)
            with self.lock:
                answers = self._answers.get_concrete_function(*self._answer_specs())
            found, loss = answers(*(tf.constant(a) for a in (parameters, x[rows], y[rows], mask)))
            chosen.append(found.numpy()[: int(mask.sum())])
            loss_sum += float(loss)
        return Answers(np.concatenate(chosen).astype(np.int32), loss_sum)

    def _answer_specs(self) -> tuple[Any, ...]:
        rows, m = EVALUATION_ROWS, self.manifest
        x = tf.TensorSpec([rows, *m.input_shape], getattr(tf, m.input_dtype))
        return tf.TensorSpec([m.parameters]), x, tf.TensorSpec([rows], tf.int32), tf.TensorSpec([rows])

    def _answer_batch(self, parameters: Tensor, x: Tensor, y: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        replay = Replay(self.blueprint.leaves.unpack(parameters), training=False, instead=NATIVE)
        logits = logits_of(self.blueprint, x, replay)
        return tf.argmax(logits, -1, output_type=tf.int32), tf.reduce_sum(cross_entropy(logits, y) * mask)

    def feed(self, work: Work) -> Feed:
        """Return what a work trains on."""
        return feed_of(work, self.spec, self.manifest.batch_size)

    def shift(self, work: Work) -> Vector:
        """Return what each step takes off besides its gradient, [P]; [0] if nothing."""
        return np.zeros(0, np.float32) if work.correction is None else np.float32(work.rate) * work.correction


class OneByOne(_Graphs):
    """Trains one device after the other."""

    at_once = 1

    def __init__(self, spec: TrainerSpec, model: Any, manifest: Manifest) -> None:
        super().__init__(spec, model, manifest)
        self._graphs: dict[int, Any] = {}

    def train(self, group: Group) -> Deltas:
        """Train all works of a group."""
        deltas, losses, steps = [], [], []
        for work in group.works:
            feed, base, shift = self.feed(work), group.bases[work.base], self.shift(work)
            arguments = (base, feed.x, feed.y, feed.places, feed.mask, np.float32(work.rate), shift)
            vector, loss_sum = self._graph(shift.size)(*(tf.constant(a) for a in arguments))
            deltas.append(vector.numpy() - base)
            losses.append(float(loss_sum) / float(feed.mask.sum()))
            steps.append(len(feed.places))
        return Deltas(np.stack(deltas), np.array(losses, np.float64), np.array(steps, np.int64))

    def _graph(self, shift: int) -> Any:
        with self.lock:
            if shift not in self._graphs:
                m = self.manifest
                x = tf.TensorSpec([None, *m.input_shape], getattr(tf, m.input_dtype))
                rows = tf.TensorSpec([None, m.batch_size], tf.int32)
                specs = [tf.TensorSpec([m.parameters]), x, tf.TensorSpec([None], tf.int32), rows]
                specs += [tf.TensorSpec([None, m.batch_size]), tf.TensorSpec([]), tf.TensorSpec([shift])]
                function = tf.function(self._local_training, input_signature=specs, autograph=False)
                self._graphs[shift] = function.get_concrete_function()
            return self._graphs[shift]

    def _local_training(
        self, base: Tensor, x: Tensor, y: Tensor, rows: Tensor, mask: Tensor, rate: Tensor, shift: Tensor
    ) -> Any:
        anchor, slots, size = self.unpack(base), self.fresh_slots(), self.manifest.batch_size
        shifts = self.unpack(shift) if shift.shape[0] else []

        def body(i: Tensor, leaves: Any, slots: Any, loss_sum: Tensor) -> tuple[Any, ...]:
            bx = tf.ensure_shape(tf.gather(x, rows[i]), [size, *self.manifest.input_shape])
            batch = Batch(bx, tf.gather(y, rows[i]), mask[i])
            key = key_of_values(*leaves, tf.cast(bx, tf.float32))
            leaves, slots, loss = self.step(list(leaves), list(slots), batch, anchor, rate, key)
            if shifts:
                leaves = [leaf - off for leaf, off in zip(leaves, shifts, strict=True)]
            return i + 1, leaves, slots, loss_sum + loss * tf.reduce_sum(mask[i])

        state = (tf.constant(0), anchor, slots, tf.zeros([]))
        _, leaves, _, loss_sum = tf.while_loop(lambda i, *_: i < tf.shape(rows)[0], body, state, parallel_iterations=1)
        return self.blueprint.leaves.pack(list(leaves)), loss_sum


class SideBySide(_Graphs):
    """Trains some devices of a group at once, in numpy; evaluates in TensorFlow.

    `fits`: whether the model is a chain. If not, it cannot train.
    """

    def __init__(self, spec: TrainerSpec, model: Any, manifest: Manifest) -> None:
        super().__init__(spec, model, manifest)
        chain = chain_of(self.blueprint)
        self.fits = chain is not None
        self._chain, self._blas = chain, None if chain is None else BlasTrainer(spec, chain, manifest)
        self.at_once = self._blas.devices if self._blas is not None else 0

    def recipe(self) -> Recipe | None:
        """Return what processes make their trainers of."""
        return None if self._chain is None else Recipe.of(self.spec, self._chain, self.manifest)

    def train(self, group: Group) -> Deltas:
        """Train all works of a group."""
        assert self._blas is not None
        return self._blas.train(group)


class Together(_Graphs):
    """Trains all devices of a group at once."""

    instead = BLOCKED

    def __init__(self, spec: TrainerSpec, model: Any, manifest: Manifest) -> None:
        super().__init__(spec, model, manifest)
        self._graphs: dict[tuple[int, int], Any] = {}
        self._compiled: dict[tuple[int, int], Any] = {}

    def train(self, group: Group) -> Deltas:
        """Train all works of a group, which has `group_size` works at most."""
        devices, size = self.spec.group_size, self.manifest.batch_size
        feeds = [self.feed(work) for work in group.works]
        steps = np.array([len(feed.places) for feed in feeds], np.int64)
        most, longest = int(steps.max()), max(len(feed.y) for feed in feeds)
        rows = np.zeros((devices, most, size), np.int32)
        mask = np.zeros((devices, most, size), np.float32)
        x = np.zeros((devices, longest, *self.manifest.input_shape), feeds[0].x.dtype)
        y = np.zeros((devices, longest), np.int32)
        bases = np.zeros((devices, self.manifest.parameters), np.float32)
        rates = np.zeros(devices, np.float32)
        shifts = np.zeros((devices, self.manifest.parameters if self._corrected(group) else 0), np.float32)
        for i, (work, feed) in enumerate(zip(group.works, feeds, strict=True)):
            rows[i, : steps[i]], mask[i, : steps[i]] = feed.places, feed.mask
            x[i, : len(feed.y)], y[i, : len(feed.y)] = feed.x, feed.y
            bases[i], rates[i] = group.bases[work.base], work.rate
            if work.correction is not None:
                shifts[i] = self.shift(work)
        run = self._graph(devices, shifts.shape[1])
        found, loss_sum = run(*(tf.constant(a) for a in (bases, x, y, rows, mask, rates, shifts)))
        count = len(group.works)
        delta = found.numpy()[:count] - bases[:count]
        return Deltas(delta, loss_sum.numpy()[:count] / mask[:count].sum((1, 2)), steps)

    def _corrected(self, group: Group) -> bool:
        return any(work.correction is not None for work in group.works)

    def _graph(self, devices: int, shift: int) -> Any:
        with self.lock:
            if (devices, shift) not in self._graphs:
                self._graphs[devices, shift] = self._trace(devices, shift)
            return self._graphs[devices, shift]

    def _trace(self, devices: int, shift: int) -> Any:
        m = self.manifest
        self._compiled[devices, shift] = self._compile(devices, shift)
        x = tf.TensorSpec([devices, None, *m.input_shape], getattr(tf, m.input_dtype))
        rows = tf.TensorSpec([devices, None, m.batch_size], tf.int32)
        specs = [tf.TensorSpec([devices, m.parameters]), x, tf.TensorSpec([devices, None], tf.int32), rows]
        specs += [
            tf.TensorSpec([devices, None, m.batch_size]),
            tf.TensorSpec([devices]),
            tf.TensorSpec([devices, shift]),
        ]
        return tf.function(self._local_training, input_signature=specs, autograph=False).get_concrete_function()

    def _compile(self, devices: int, shift: int) -> Any:
        """Return one step of all devices, compiled. Vectorised first: within XLA some gradients have no such form."""
        m = self.manifest
        leaves = [tf.TensorSpec([devices, *leaf.shape]) for leaf in m.to_layout().leaves]
        slots = [tf.TensorSpec([devices, *slot.shape]) for slot in self.fresh_slots()]
        x = tf.TensorSpec([devices, m.batch_size, *m.input_shape], getattr(tf, m.input_dtype))
        batch = (x, tf.TensorSpec([devices, m.batch_size], tf.int32), tf.TensorSpec([devices, m.batch_size]))
        arguments = (leaves, slots, batch, leaves, tf.TensorSpec([devices]), leaves if shift else [])
        vectorised = tf.function(self._step_of_all, autograph=False).get_concrete_function(*arguments)
        return tf.function(lambda *given: vectorised(*given), jit_compile=True, autograph=False)

    def _local_training(
        self, base: Tensor, x: Tensor, y: Tensor, rows: Tensor, mask: Tensor, rate: Tensor, shift: Tensor
    ) -> Any:
        devices, size = base.shape[0], self.manifest.batch_size
        anchor = self._unpack_all(base)
        shifts = self._unpack_all(shift) if shift.shape[1] else []
        slots = [tf.zeros([devices, *slot.shape]) for slot in self.fresh_slots()]
        step_of_all = self._compiled[devices, shift.shape[1]]

        def body(i: Tensor, leaves: Any, slots: Any, loss_sum: Tensor) -> tuple[Any, ...]:
            bx = tf.ensure_shape(tf.gather(x, rows[:, i], batch_dims=1), [devices, size, *self.manifest.input_shape])
            batch = (bx, tf.gather(y, rows[:, i], batch_dims=1), mask[:, i])
            leaves, slots, loss = step_of_all(list(leaves), list(slots), batch, anchor, rate, shifts)
            return i + 1, leaves, slots, loss_sum + loss

        state = (tf.constant(0), anchor, slots, tf.zeros([devices]))
        _, leaves, _, loss_sum = tf.while_loop(lambda i, *_: i < tf.shape(rows)[1], body, state, parallel_iterations=1)
        return tf.concat([tf.reshape(leaf, [devices, -1]) for leaf in leaves], 1), loss_sum

    def _unpack_all(self, vectors: Tensor) -> list[Tensor]:
        """Return the leaves in flat vectors [D, P], each [D, ...]."""
        variables = self.blueprint.leaves.variables
        parts = tf.split(vectors, [leaf.size for leaf in self.blueprint.leaves.layout.leaves], axis=1)
        return [tf.reshape(part, [vectors.shape[0], *v.shape]) for part, v in zip(parts, variables, strict=True)]

    def _step_of_all(
        self, leaves: Any, slots: Any, batch: Any, anchor: Any, rate: Tensor, shifts: Any
    ) -> tuple[Any, ...]:
        """Take one step on each device that has examples in its batch."""

        def one(arguments: Any) -> tuple[Any, ...]:
            leaves, slots, (x, y, mask), anchor, rate, shifts, key = arguments
            made, made_slots, loss = self.step(leaves, slots, Batch(x, y, mask), anchor, rate, key)
            if shifts:
                made = [leaf - off for leaf, off in zip(made, shifts, strict=True)]
            count = tf.reduce_sum(mask)
            kept = [tf.where(count > 0, new, old) for new, old in zip(made, leaves, strict=True)]
            kept_slots = [tf.where(count > 0, new, old) for new, old in zip(made_slots, slots, strict=True)]
            return kept, kept_slots, loss * count

        everything = (leaves, slots, batch, anchor, rate, shifts, _keys(*leaves, tf.cast(batch[0], tf.float32)))
        result: tuple[Any, ...] = tf.vectorized_map(one, everything, fallback_to_while_loop=False)
        return result


def _keys(*values: Tensor) -> Tensor:
    """Return a key for each device [D], as `key_of_values` makes one; all values are [D, ...]."""
    keys = tf.fill([values[0].shape[0]], tf.constant(0x9E3779B9, tf.uint32))
    for value in values:
        flat = tf.reshape(value, [value.shape[0], -1])
        for total in (tf.reduce_sum(flat, 1), tf.reduce_sum(flat * flat, 1)):
            keys = mix(tf.bitwise.bitwise_xor(keys, tf.bitcast(total, tf.uint32)))
    return keys
