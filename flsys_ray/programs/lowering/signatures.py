"""The four signatures of a program, as functions of one flat parameter vector."""

from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from flsys_ray.programs.lowering import losses
from flsys_ray.programs.lowering.initializers import start_vector
from flsys_ray.programs.lowering.layers.dense import dense_logits
from flsys_ray.programs.lowering.leaves import Leaves
from flsys_ray.programs.lowering.optimizers import LocalOptimizer
from flsys_ray.programs.lowering.random import Noise, key_of_seed, key_of_values
from flsys_ray.programs.lowering.replay import Call, Replay, run_graph

Tensor = Any


@dataclass(frozen=True)
class Logits:
    """Where in the graph the logits are: a KerasTensor, and the Dense layer on top of it whose softmax is left out."""

    tensor: Any
    dense: Any = None


@dataclass(frozen=True)
class Blueprint:
    """All that the signatures are made of.

    Attributes:
        graph: the functional graph of the model.
        logits: where in the graph the logits are.
        leaves: the model's variables.
        optimizer: the local optimizer.
        batch_size: B.
        input_shape: without the batch.
        input_dtype: "float32" or "int32".
    """

    graph: Any
    logits: Logits
    leaves: Leaves
    optimizer: LocalOptimizer
    batch_size: int
    input_shape: tuple[int, ...]
    input_dtype: str


def logits_of(blueprint: Blueprint, x: Tensor, replay: Replay) -> Tensor:
    """Return the model's logits [B, C]."""
    y = run_graph(blueprint.graph, x, replay, blueprint.logits.tensor)
    dense = blueprint.logits.dense
    return y if dense is None else dense_logits(y, Call(dense, replay))


def init(blueprint: Blueprint, seed: Tensor) -> dict[str, Tensor]:
    """Return fresh parameters."""
    return {"parameters": start_vector(blueprint.leaves.variables, Noise(key_of_seed(seed)))}


@dataclass(frozen=True)
class Batch:
    """One batch: x [B, ...], y int32 [B], mask [B]."""

    x: Tensor
    y: Tensor
    mask: Tensor


@dataclass(frozen=True)
class Hyper:
    """What steers one step: learning_rate [], anchor [P], proximal_mu []."""

    learning_rate: Tensor
    anchor: Tensor
    proximal_mu: Tensor


def train(
    blueprint: Blueprint, parameters: Tensor, batch: Batch, hyper: Hyper, slots: Tensor | None
) -> dict[str, Tensor]:
    """One step of the local optimizer on one batch.

    The objective is the mean cross-entropy of the real examples, plus the model's own weight penalties, plus FedProx's
    `mu / 2 ||w - anchor||^2` over trained parameters (Li et al. 2020, arXiv 1812.06127, equation 2). The
    `loss` that is returned is the first of these only, before the step.
    """
    leaves = blueprint.leaves
    gradient, loss, replay = _gradient(blueprint, parameters, batch)
    trained = leaves.trained
    weights = tf.slice(parameters, [0], [trained])
    gradient += hyper.proximal_mu * (weights - tf.slice(hyper.anchor, [0], [trained]))
    weights, slots = blueprint.optimizer.step(weights, gradient, hyper.learning_rate, slots)
    state = [replay.values[id(v.source)] for v in leaves.variables if not v.trainable]
    results = {"parameters": leaves.pack([weights, *state]), "loss": loss}
    return results if slots is None else {**results, "slots": slots}


def _gradient(blueprint: Blueprint, parameters: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Replay]:
    """Return the flat gradient [T] of loss and penalties, the loss, and the finished replay."""
    noise = Noise(key_of_values(parameters, tf.cast(batch.x, tf.float32)))
    replay = Replay(blueprint.leaves.unpack(parameters), training=True, rows=batch.mask, noise=noise)
    gradients, loss = gradients_of(blueprint, batch, replay)
    return blueprint.leaves.pack(gradients), loss, replay


def gradients_of(blueprint: Blueprint, batch: Batch, replay: Replay) -> tuple[list[Tensor], Tensor]:
    """Return the gradient of loss and penalties for each trained leaf, and the loss; `replay` holds the values."""
    leaves, values = blueprint.leaves, dict(replay.values)
    sources = [values[id(v.source)] for v in leaves.variables if v.trainable]
    with tf.GradientTape() as tape:
        tape.watch(sources)
        logits = logits_of(blueprint, batch.x, replay)
        loss = losses.masked_mean(losses.cross_entropy(logits, batch.y), batch.mask)
        penalty = leaves.regularization(values)
        objective = loss if penalty is None else loss + penalty
    return tape.gradient(objective, sources, unconnected_gradients=tf.UnconnectedGradients.ZERO), loss


def evaluate(blueprint: Blueprint, parameters: Tensor, batch: Batch) -> dict[str, Tensor]:
    """Sums over the real examples of one batch."""
    replay = Replay(blueprint.leaves.unpack(parameters), training=False)
    logits = logits_of(blueprint, batch.x, replay)
    return {
        "loss_sum": tf.reduce_sum(losses.cross_entropy(logits, batch.y) * batch.mask),
        "correct": losses.correct(logits, batch.y, batch.mask),
        "count": tf.reduce_sum(batch.mask),
    }


def infer(blueprint: Blueprint, parameters: Tensor, x: Tensor) -> dict[str, Tensor]:
    """Probabilities of one example."""
    replay = Replay(blueprint.leaves.unpack(parameters), training=False)
    return {"scores": tf.nn.softmax(logits_of(blueprint, x, replay))}


def functions_of(blueprint: Blueprint) -> dict[str, Any]:
    """Return `init`, `train`, `evaluate` and `infer` as `tf.function`s, each of its one shape."""
    size, batch = blueprint.leaves.layout.size, blueprint.batch_size
    slots = blueprint.optimizer.slots_of(blueprint.leaves.trained)
    vector, scalar = tf.TensorSpec([size]), tf.TensorSpec([])
    x = tf.TensorSpec([batch, *blueprint.input_shape], getattr(tf, blueprint.input_dtype))
    batch_specs = [x, tf.TensorSpec([batch], tf.int32), tf.TensorSpec([batch])]
    step_specs = [vector, *batch_specs, scalar, vector, scalar] + ([tf.TensorSpec([slots])] if slots else [])
    names = ["parameters", "x", "y", "mask", "learning_rate", "anchor", "proximal_mu", "slots"]

    def step(p: Tensor, x: Tensor, y: Tensor, mask: Tensor, *rest: Tensor) -> dict[str, Tensor]:
        return train(blueprint, p, Batch(x, y, mask), Hyper(*rest[:3]), rest[3] if slots else None)

    def score(p: Tensor, x: Tensor, y: Tensor, mask: Tensor) -> dict[str, Tensor]:
        return evaluate(blueprint, p, Batch(x, y, mask))

    one = tf.TensorSpec([1, *blueprint.input_shape], x.dtype)
    return {
        "init": _traced(lambda seed: init(blueprint, seed), ["seed"], [tf.TensorSpec([], tf.int32)]),
        "train": _traced(step, names[: len(step_specs)], step_specs),
        "evaluate": _traced(score, names[:4], [vector, *batch_specs]),
        "infer": _traced(lambda p, x: infer(blueprint, p, x), names[:2], [vector, one]),
    }


def _traced(function: Any, names: list[str], specs: list[Any]) -> Any:
    named = [tf.TensorSpec(spec.shape, spec.dtype, name) for spec, name in zip(specs, names, strict=True)]
    return tf.function(function, input_signature=named, autograph=False)
