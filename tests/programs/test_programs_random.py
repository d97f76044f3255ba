"""`init` and dropout: the right distributions, and the same numbers for the same seed or the same inputs."""

import statistics
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import flsys_ray
from flsys_ray.programs.lowering.random import Noise, key_of_values, mix, mix_numpy, normal_quantile
from flsys_ray.programs.runner import Batch, Program

SHAPE = (40, 50)
SIZE = 2000


def _key(seed: int) -> Any:
    return tf.constant(seed, tf.uint32)


def test_the_mixer_is_the_reference_and_a_bijection() -> None:
    x = np.arange(2**16, dtype=np.uint32) * np.uint32(65521)
    mixed = mix(tf.constant(x)).numpy()
    assert np.array_equal(mixed, mix_numpy(x))
    assert len(np.unique(mixed)) == len(x)


def test_each_input_bit_moves_about_half_of_the_output_bits() -> None:
    x = np.arange(4096, dtype=np.uint32)
    for bit in range(32):
        changed = mix_numpy(x) ^ mix_numpy(x ^ np.uint32(1 << bit))
        ones = np.unpackbits(changed.view(np.uint8)).mean()
        assert abs(ones - 0.5) < 0.02


def test_quantiles_are_those_of_the_normal_distribution() -> None:
    p = np.concatenate([np.linspace(0.001, 0.999, 999), [2**-24, 1e-6, 1 - 2**-24]]).astype(np.float32)
    expected = [statistics.NormalDist().inv_cdf(float(v)) for v in p]
    np.testing.assert_allclose(normal_quantile(tf.constant(p)).numpy(), expected, atol=2e-5, rtol=2e-5)


def test_uniform_numbers_fill_the_unit_interval_evenly() -> None:
    u = np.sort(Noise(_key(5)).uniform((100_000,)).numpy())
    assert u[0] > 0.0
    assert u[-1] < 1.0
    # Kolmogorov and Smirnov: above 1.95 / sqrt(n) once in a thousand.
    assert np.abs(u - (np.arange(len(u)) + 0.5) / len(u)).max() < 1.95 / len(u) ** 0.5


def test_draws_do_not_share_numbers() -> None:
    noise = Noise(_key(5))
    one, two, other = noise.uniform((999,)), noise.uniform((999,)), Noise(_key(6)).uniform((999,))
    for a, b in ((one, two), (one, other)):
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.15
        assert len(np.intersect1d(a, b)) < 5


def test_a_fingerprint_depends_on_every_tensor() -> None:
    a, b = tf.constant([1.0, 2.0, 3.0]), tf.constant([4.0, 5.0])
    keys = {int(k) for k in (key_of_values(a, b), key_of_values(a, b + 1e-6), key_of_values(a * 1.001, b))}
    assert len(keys) == 3
    assert int(key_of_values(a, b)) in keys


GLOROT = np.sqrt(6 / (40 + 50))
INITIALIZERS: dict[str, tuple[Any, float, float, float]] = {
    # initialiser, mean, standard deviation, largest magnitude
    "glorot_uniform": ("glorot_uniform", 0.0, GLOROT / 3**0.5, GLOROT),
    "glorot_normal": ("glorot_normal", 0.0, (2 / 90) ** 0.5, 2 * (2 / 90) ** 0.5 / 0.8796),
    "he_uniform": ("he_uniform", 0.0, (2 / 40) ** 0.5, (6 / 40) ** 0.5),
    "he_normal": ("he_normal", 0.0, (2 / 40) ** 0.5, 2 * (2 / 40) ** 0.5 / 0.8796),
    "lecun_normal": ("lecun_normal", 0.0, (1 / 40) ** 0.5, 2 * (1 / 40) ** 0.5 / 0.8796),
    "random_uniform": (keras.initializers.RandomUniform(-0.2, 0.6), 0.2, 0.8 / 12**0.5, 0.6),
    "random_normal": (keras.initializers.RandomNormal(0.5, 0.1), 0.5, 0.1, 1.1),
    "truncated_normal": (keras.initializers.TruncatedNormal(0.0, 0.1), 0.0, 0.1 * 0.8796, 0.2),
    "zeros": ("zeros", 0.0, 0.0, 0.0),
    "ones": ("ones", 1.0, 0.0, 1.0),
    "constant": (keras.initializers.Constant(0.3), 0.3, 0.0, 0.3),
}


@pytest.fixture(scope="module")
def initialized() -> Program:
    """A program with one Dense [40, 50] of each initialiser."""
    x = keras.Input((40,))
    branches = [
        keras.layers.Dense(50, use_bias=False, kernel_initializer=how, name=name)(x)
        for name, (how, *_) in INITIALIZERS.items()
    ]
    out = keras.layers.Dense(2, name="logits")(keras.layers.Add()(branches))
    return Program.load(flsys_ray.compile(keras.Model(x, out), classes=("a", "b"), batch_size=1).data)


def _leaf(program: Program, vector: Any, name: str) -> Any:
    leaf = next(leaf for leaf in program.manifest.layout if leaf.name == f"{name}/kernel")
    return vector[leaf.offset : leaf.offset + SIZE]


@pytest.mark.parametrize("name", INITIALIZERS)
def test_init_has_the_distribution_of_the_layers_initialiser(initialized: Program, name: str) -> None:
    _, mean, deviation, largest = INITIALIZERS[name]
    values = np.concatenate([_leaf(initialized, initialized.init(seed), name) for seed in range(5)])
    assert abs(values.mean() - mean) <= 4 * deviation / len(values) ** 0.5 + 1e-6
    assert abs(values.std() - deviation) <= 0.03 * deviation + 1e-6
    assert np.abs(values).max() <= largest * 1.001
    if deviation and "normal" not in name:
        assert np.abs(values).max() > largest * 0.99


def test_init_follows_the_seed(initialized: Program) -> None:
    again = Program(initialized._data, initialized.manifest)
    assert np.array_equal(initialized.init(7), again.init(7))
    vectors = [_leaf(initialized, initialized.init(seed), "glorot_uniform") for seed in (0, 1, 2, -1, 2**31)]
    for i, one in enumerate(vectors):
        for other in vectors[:i]:
            assert abs(np.corrcoef(one, other)[0, 1]) < 0.1


def _dropout_seen(layer: Any, features: int) -> Callable[[Any, Any], Any]:
    """Return a function of (parameters, x) that gives what the layer makes of x.

    With a kernel of zeros the probabilities are 1/2, and a step of size 1 on one example moves `kernel[f, 0]` by
    `layer(x)[f] / 2` towards its label.
    """
    x = keras.Input((features,))
    model = keras.Model(x, keras.layers.Dense(2, use_bias=False, kernel_initializer="zeros")(layer(x)))
    program = Program.load(flsys_ray.compile(model, classes=("a", "b"), batch_size=1).data)
    zeros = program.init(0)

    def seen(shift: Any, x: Any) -> Any:
        batch = Batch(x[None], np.zeros(1, np.int32), np.ones(1, np.float32))
        start = zeros + np.float32(shift)
        step = program.train_step(start, batch, learning_rate=1.0, anchor=start, slots=program.fresh_slots())
        return (step.parameters - start).reshape(features, 2)[:, 0] * 2

    return seen


def test_dropout_drops_its_rate_and_scales_the_rest() -> None:
    seen = _dropout_seen(keras.layers.Dropout(0.3), SIZE)
    x = np.ones(SIZE, np.float32)
    first = seen(0.0, x)
    np.testing.assert_allclose(first[first != 0], 1 / 0.7, rtol=1e-5)
    draws = [seen(0.0, x * np.float32(1 + i / 10)) / (1 + i / 10) for i in range(10)]
    dropped = np.mean([draw == 0 for draw in draws])
    assert abs(dropped - 0.3) < 4 * (0.21 / (10 * SIZE)) ** 0.5
    assert abs(np.mean(draws) - 1.0) < 4 * (0.3 / 0.7 / (10 * SIZE)) ** 0.5


def test_dropout_is_the_same_for_the_same_inputs_and_new_for_others() -> None:
    seen = _dropout_seen(keras.layers.Dropout(0.5), SIZE)
    x = np.linspace(0.5, 1.5, SIZE, dtype=np.float32)
    kept = seen(0.0, x) != 0
    assert np.array_equal(kept, seen(0.0, x) != 0)
    for other in (seen(0.0, x * np.float32(1.01)), seen(0.001, x)):
        assert abs(np.corrcoef(kept, other != 0)[0, 1]) < 0.1


def test_gaussian_noise_has_its_deviation() -> None:
    seen = _dropout_seen(keras.layers.GaussianNoise(0.4), SIZE)
    noise = seen(0.0, np.ones(SIZE, np.float32)) - 1.0
    assert abs(noise.mean()) < 4 * 0.4 / SIZE**0.5
    assert abs(noise.std() - 0.4) < 4 * 0.4 / (2 * SIZE) ** 0.5


def test_spatial_dropout_drops_whole_channels() -> None:
    x = keras.Input((5, 200))
    hidden = keras.layers.SpatialDropout1D(0.5)(x)
    logits = keras.layers.Dense(2, use_bias=False, kernel_initializer="zeros")(keras.layers.Flatten()(hidden))
    program = Program.load(flsys_ray.compile(keras.Model(x, logits), classes=("a", "b"), batch_size=1).data)
    start = program.init(0)
    batch = Batch(np.ones((1, 5, 200), np.float32), np.zeros(1, np.int32), np.ones(1, np.float32))
    step = program.train_step(start, batch, learning_rate=1.0, anchor=start, slots=program.fresh_slots())
    kept = step.parameters.reshape(5, 200, 2)[:, :, 0] != 0
    assert (kept == kept[0]).all()
    assert 70 < kept[0].sum() < 130
