"""A built-in model trained in one place: on the pooled examples of users (the ceiling), or on one user's (the floor).

AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101), the rate falling to 0 along a cosine, batches of 64, windows
changed by the plan's transforms as a phone changes them.
"""

import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from tasks import Part, Task

from flsys_ray.augmentation.base import augmented
from flsys_ray.core.rng import generator
from flsys_ray.models import get

BATCH = 64
WEIGHT_DECAY = 1e-3
JUDGED_AT_ONCE = 512


def train(task: Task, part: Part, seed: int, epochs: int | None = None) -> Any:
    """Return the Keras model, trained."""
    keras.utils.set_random_seed(seed)
    model = get(task.builtin).build(task.classes)
    transforms = task.plan_with({}, seed).augmentation.transforms
    epochs, count = epochs or task.epochs, len(part.y)
    batch = min(BATCH, count)
    per_epoch = count // batch
    step, optimizer = _step_of(model)
    for epoch in range(epochs):
        rng = generator(seed, "pooled", epoch)
        order = rng.permutation(count)
        x = augmented(transforms, part.x, assignment_id=f"pooled-{seed}", epoch=epoch) if transforms else part.x
        for i in range(per_epoch):
            done = (epoch * per_epoch + i) / (epochs * per_epoch)
            optimizer.learning_rate.assign(task.rate * 0.5 * (1 + math.cos(math.pi * done)))
            rows = order[i * batch : (i + 1) * batch]
            step(tf.constant(x[rows]), tf.constant(part.y[rows]))
    return model


def _step_of(model: Any) -> tuple[Any, Any]:
    optimizer = keras.optimizers.AdamW(1e-3, weight_decay=WEIGHT_DECAY)
    optimizer.build(model.trainable_variables)
    loss_of = keras.losses.SparseCategoricalCrossentropy()

    @tf.function(reduce_retracing=True)
    def step(x: Any, y: Any) -> None:
        with tf.GradientTape() as tape:
            loss = loss_of(y, model(x, training=True))
        optimizer.apply_gradients(
            zip(tape.gradient(loss, model.trainable_variables), model.trainable_variables, strict=True)
        )

    return step, optimizer


def answers(model: Any, x: NDArray[Any]) -> NDArray[np.int32]:
    """Return the class that a model chooses for each example."""
    parts = [model(x[i : i + JUDGED_AT_ONCE], training=False) for i in range(0, len(x), JUDGED_AT_ONCE)]
    return np.concatenate([np.asarray(part).argmax(axis=1) for part in parts]).astype(np.int32)
