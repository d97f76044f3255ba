"""The independent reference of the program tests: a Keras model, TensorFlow's own autodiff, Keras' own optimizers.

It shares no code with the lowering. It sees the real examples of a batch only, never the padded ones.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from flsys_ray.programs.manifest import Manifest
from flsys_ray.programs.runner import Batch, Program

TOLERANCE = 1e-5


class Reference:
    """A Keras model whose variables are read and written as the flat vector of a manifest."""

    def __init__(self, model: Any, manifest: Manifest, optimizer: str = "sgd") -> None:
        self.model = model
        self.manifest = manifest
        variables = dict(_variables(model, ""))
        self.variables = [variables[leaf.name] for leaf in manifest.layout]
        self.trained = [v for v, leaf in zip(self.variables, manifest.layout, strict=True) if leaf.trainable]
        self.optimizer = {
            "sgd": lambda: keras.optimizers.SGD(),
            "momentum": lambda: keras.optimizers.SGD(momentum=0.9),
            "adam": lambda: keras.optimizers.Adam(),
        }[optimizer]()

    def set(self, vector: Any) -> None:
        for variable, leaf in zip(self.variables, self.manifest.to_layout().leaves, strict=True):
            variable.assign(vector[leaf.offset : leaf.offset + leaf.size].reshape(leaf.shape))

    def get(self) -> Any:
        return np.concatenate([np.asarray(v).reshape(-1) for v in self.variables])

    def losses(self, x: Any, y: Any, *, training: bool) -> Any:
        """Cross-entropy of each example, from logits or probabilities as the model ends."""
        out = self.model(x, training=training)
        if _ends_in_softmax(self.model):
            return -tf.math.log(tf.gather(out, y, axis=1, batch_dims=1))
        return tf.nn.sparse_softmax_cross_entropy_with_logits(labels=y, logits=out)

    def step(self, x: Any, y: Any, rate: float, anchor: Any, mu: float) -> float:
        layout = self.manifest.to_layout().leaves
        parts = [anchor[a.offset : a.offset + a.size].reshape(a.shape) for a in layout if a.trainable]
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(self.losses(x, y, training=True))
            near = tf.add_n([tf.reduce_sum((v - a) ** 2) for v, a in zip(self.trained, parts, strict=True)])
            objective = loss + mu / 2 * near + tf.add_n([*self.model.losses, 0.0])
        gradients = tape.gradient(objective, [v.value for v in self.trained])
        gradients = [tf.convert_to_tensor(g) if g is not None else tf.zeros(v.shape) for g, v in
                     zip(gradients, self.trained, strict=True)]  # fmt: skip
        self.optimizer.learning_rate = rate
        self.optimizer.apply(gradients, self.trained)
        return float(loss)


def check_equal(model: Any, program: Program, batches: list[tuple[Any, Any, int]], *, rate: float, mu: float) -> None:
    """Take one step a batch in both, from the same parameters, and compare after each; then evaluate and infer.

    Args:
        model: the Keras model.
        program: its program.
        batches: (x [B, ...], y [B], number of real rows).
        rate: learning rate.
        mu: of the proximal term; the anchor is another vector than the start.
    """
    reference = Reference(model, program.manifest, program.manifest.local_optimizer)
    parameters, anchor, slots = program.init(3), program.init(4), program.fresh_slots()
    reference.set(parameters)
    for x, y, real in batches:
        before = parameters
        mask = (np.arange(len(y)) < real).astype(np.float32)
        step = program.train_step(
            parameters, Batch(x, y, mask), learning_rate=rate, anchor=anchor, proximal_mu=mu, slots=slots
        )
        parameters, slots = step.parameters, step.slots
        loss = reference.step(x[:real], y[:real], rate, anchor, mu)
        assert abs(step.loss - loss) < TOLERANCE * max(1.0, abs(loss))
        _compare(program.manifest, before, parameters, reference.get())
    _check_evaluate_and_infer(reference, program, parameters, batches[-1])


def _compare(manifest: Manifest, before: Any, found: Any, expected: Any) -> None:
    for leaf in manifest.to_layout().leaves:
        part = slice(leaf.offset, leaf.offset + leaf.size)
        error = np.abs(found[part] - expected[part]).max()
        assert error < TOLERANCE, f"{leaf.name} differs by {error}"
        if leaf.trainable:
            assert np.abs(found[part] - before[part]).max() > 0, f"{leaf.name} did not move: the test sees nothing"


def _check_evaluate_and_infer(reference: Reference, program: Program, parameters: Any, batch: Any) -> None:
    x, y, real = batch
    reference.set(parameters)
    out = np.asarray(reference.model(x[:real], training=False))
    scores = out if _ends_in_softmax(reference.model) else np.asarray(tf.nn.softmax(out))
    expected = np.asarray(reference.losses(x[:real], y[:real], training=False)).sum()
    found = program.evaluate(parameters, x[:real], y[:real])
    assert abs(found.loss_sum - expected) < TOLERANCE * max(1.0, abs(expected)) * real
    assert found.correct == int((scores.argmax(1) == y[:real]).sum())
    assert found.examples == real
    np.testing.assert_allclose(program.infer(parameters, x[:real]), scores, atol=TOLERANCE)


def _ends_in_softmax(model: Any) -> bool:
    last = model.layers[-1]
    return isinstance(last, keras.layers.Softmax) or getattr(last, "activation", None) is keras.activations.softmax


def _variables(model: Any, prefix: str) -> list[tuple[str, Any]]:
    found = []
    for layer in model.layers:
        if isinstance(layer, (keras.Sequential, keras.models.Model)):
            found += _variables(layer, f"{prefix}{layer.name}/")
        else:
            found += [(f"{prefix}{layer.name}/{v.name}", v) for v in layer.variables]
    return found
