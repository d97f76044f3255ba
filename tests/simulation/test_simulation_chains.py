"""Chains of layers, trained by numpy: which models are chains, and that the phone's program computes the same."""

from dataclasses import replace

import keras
import numpy as np
import pytest
from keras import layers
from test_simulation_trainers import TRANSFORMS, compare, group_of, spec_of

from flsys_ray.core.plan import LocalTraining
from flsys_ray.models import har_wild, sentiment
from flsys_ray.programs.lowering.blueprint import blueprint_of
from flsys_ray.simulation import blas_trainer
from flsys_ray.simulation.blas.chain import ConvolutionPart, chain_of
from flsys_ray.simulation.fast_trainer import SideBySide, make_fast_trainer
from flsys_ray.simulation.training import Group

CLASSES = list("abcd")
LOCAL = LocalTraining(epochs=2, learning_rate=0.05)


def chain(*parts, shape=(30, 3)) -> keras.Model:
    return keras.Sequential([keras.Input(shape), *parts])


def pooled() -> keras.Model:
    return chain(
        layers.Conv1D(8, 5, padding="same", activation="relu"),
        layers.MaxPooling1D(2),
        layers.Conv1D(16, 4, padding="same", activation="relu"),
        layers.MaxPooling1D(4),
        layers.GlobalAveragePooling1D(),
        layers.Dense(12, activation="relu"),
        layers.Dense(4, activation="softmax"),
    )


def flat() -> keras.Model:
    return chain(
        layers.Conv1D(6, 3, use_bias=False, activation="tanh"),
        layers.Conv1D(70, 3, strides=2),
        layers.MaxPooling1D(3),
        layers.Activation("relu"),
        layers.Flatten(),
        layers.Dense(9, activation="tanh", use_bias=False),
        layers.Dense(4),
        layers.Softmax(),
    )


def plain() -> keras.Model:
    return chain(layers.Dense(10), layers.ReLU(), layers.Dense(4), shape=(7,))


def convolution(**options) -> keras.Model:
    parts = layers.Conv1D(5, activation="relu", **options), layers.Conv1D(7, **options)
    return chain(*parts, layers.GlobalAveragePooling1D(), layers.Dense(4))


@pytest.mark.parametrize("build", [pooled, flat, plain])
def test_models(build):
    spec = spec_of(build, CLASSES, local=LOCAL)
    compare(spec, SideBySide, group_of(spec))


def test_transforms():
    spec = replace(spec_of(pooled, CLASSES, local=LocalTraining(epochs=3, max_steps=9)), transforms=TRANSFORMS)
    compare(spec, SideBySide, group_of(spec))


@pytest.mark.parametrize(
    ("padding", "steps"),
    [("valid", {"strides": 2}), ("same", {"strides": 1}), ("same", {"strides": 4}), ("causal", {"dilation_rate": 3})],
)
def test_convolutions(padding, steps):
    def build() -> keras.Model:
        return convolution(kernel_size=3, padding=padding, **steps)

    spec = spec_of(build, CLASSES, local=LOCAL, examples=40)
    compare(spec, SideBySide, group_of(spec, (20, 8)))


@pytest.mark.parametrize(("optimizer", "rate"), [("sgd", 0.05), ("momentum", 0.01), ("adam", 0.001)])
def test_every_local_optimizer_with_a_proximal_term_and_fewer_steps_than_epochs(optimizer, rate):
    """Adam at its usual rate: where a gradient is nearly 0, it makes the last bits of its sum as large as a step."""
    local = LocalTraining(epochs=3, learning_rate=rate, proximal_mu=0.1, max_steps=9)
    spec = spec_of(pooled, CLASSES, local=local, optimizer=optimizer)
    compare(spec, SideBySide, group_of(spec))


def test_a_corrected_gradient():
    spec = spec_of(pooled, CLASSES, local=LOCAL)
    compare(spec, SideBySide, group_of(spec, corrected=True))


def constant_windows() -> keras.Model:
    return chain(
        layers.Conv1D(6, 3, activation="relu", bias_initializer="ones"),
        layers.MaxPooling1D(4),
        layers.Flatten(),
        layers.Dense(4),
    )


def test_the_first_of_equal_neighbours_gets_the_gradient():
    spec = spec_of(constant_windows, CLASSES, local=LOCAL)
    spec.training.x[...] = np.repeat(spec.training.x[:, :1], 30, 1)
    compare(spec, SideBySide, group_of(spec))


def test_bits_depend_neither_on_the_group_nor_on_how_many_are_side_by_side(monkeypatch):
    spec = spec_of(pooled, CLASSES, local=LOCAL)
    group = group_of(spec, (50, 8, 31, 8, 40))
    deltas = make_fast_trainer(spec).train(group).delta
    alone = [make_fast_trainer(spec).train(Group("m", (work,), group.bases)).delta[0] for work in group.works]
    assert np.array_equal(deltas, np.stack(alone))
    monkeypatch.setattr(blas_trainer, "MOST_DEVICES", 2)
    trainer = make_fast_trainer(spec)
    backwards = Group("m", group.works[::-1], group.bases)
    assert np.array_equal(trainer.train(backwards).delta[::-1], deltas)
    assert np.array_equal(trainer.train(group).delta, deltas)


def test_a_training_that_diverges_has_no_number():
    spec = spec_of(pooled, CLASSES, local=LocalTraining(epochs=4, learning_rate=1e30))
    with np.errstate(all="ignore"):
        assert not np.isfinite(make_fast_trainer(spec).train(group_of(spec)).delta).all()


def test_pooling_is_part_of_the_convolution():
    blueprint = blueprint_of(pooled(), CLASSES, 8, "sgd")
    parts = [part for part in chain_of(blueprint) or () if isinstance(part, ConvolutionPart)]
    assert [(part.pool, part.activation) for part in parts] == [(2, "relu"), (4, "relu")]


def shared_layer() -> keras.Model:
    dense = layers.Dense(7, activation="relu")
    return chain(dense, dense, layers.Dense(4), shape=(7,))


def branches() -> keras.Model:
    x = keras.Input((7,))
    return keras.Model(x, layers.Dense(4)(layers.Add()([layers.Dense(5)(x), layers.Dense(5)(x)])))


def frozen() -> keras.Model:
    model = plain()
    model.layers[0].trainable = False
    return model


def regularised() -> keras.Model:
    return chain(layers.Dense(10, kernel_regularizer="l2"), layers.Dense(4), shape=(7,))


@pytest.mark.parametrize(
    "build",
    [
        har_wild.build,
        sentiment.build,
        shared_layer,
        branches,
        frozen,
        regularised,
        lambda: chain(layers.Conv1D(6, 3, groups=3), layers.Flatten(), layers.Dense(4)),
        lambda: chain(layers.Conv1D(6, 3), layers.BatchNormalization(), layers.Flatten(), layers.Dense(4)),
        lambda: chain(layers.Conv1D(6, 3, activation="gelu"), layers.Flatten(), layers.Dense(4)),
        lambda: chain(layers.Conv1D(6, 3), layers.MaxPooling1D(3, strides=2), layers.Flatten(), layers.Dense(4)),
        lambda: chain(layers.Conv1D(6, 3, activation="tanh"), layers.MaxPooling1D(), layers.Flatten(), layers.Dense(4)),
        lambda: chain(layers.MaxPooling1D(2), layers.Flatten(), layers.Dense(4)),
        lambda: chain(layers.Dense(4), layers.Flatten(), layers.Dense(4)),
        lambda: chain(layers.Dropout(0.2), layers.Dense(4), shape=(7,)),
    ],
)  # fmt: skip
def test_other_models_are_no_chains(build):
    model = build()
    classes = [str(i) for i in range(model.outputs[0].shape[-1])]
    assert chain_of(blueprint_of(model, classes, 8, "sgd")) is None
