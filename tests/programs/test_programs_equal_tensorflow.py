"""`train`, `evaluate` and `infer` of a program equal TensorFlow's own autodiff, step by step, for every layer."""

import keras
import numpy as np
import pytest
from keras_reference import check_equal
from layer_cases import CASES, batches

import flsys_ray
from flsys_ray.models import get
from flsys_ray.programs.compile import compile_builtin
from flsys_ray.programs.runner import Program

CLASSES = ("a", "b", "c")


@pytest.mark.parametrize("case", CASES)
def test_every_layer(case: str) -> None:
    model = CASES[case]()
    program = Program.load(flsys_ray.compile(model, classes=CLASSES, batch_size=6, name=case).data)
    check_equal(model, program, batches(model, 3, 6, seed=1), rate=0.02, mu=0.0)


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
def test_every_local_optimizer_with_the_proximal_term(optimizer: str) -> None:
    model = keras.Sequential(
        [
            keras.Input((12, 3)),
            keras.layers.Conv1D(6, 3, use_bias=False, name="conv"),
            keras.layers.BatchNormalization(name="bn"),
            keras.layers.ReLU(),
            keras.layers.GlobalAveragePooling1D(),
            keras.layers.Dense(3, name="logits"),
        ]
    )
    compiled = flsys_ray.compile(model, classes=CLASSES, batch_size=8, local_optimizer=optimizer)
    program = Program.load(compiled.data)
    assert program.manifest.slots == {"sgd": 0, "momentum": 87, "adam": 175}[optimizer]
    check_equal(model, program, batches(model, 6, 8, seed=2), rate=0.01, mu=0.5)


@pytest.mark.parametrize("axes", [False, True])
def test_har_wild_without_dropout(axes: bool) -> None:
    builtin = get("har-wild")
    model = builtin.build(builtin.classes, dropout=0.0, axes=axes)
    program = Program.load(flsys_ray.compile(model, classes=builtin.classes, batch_size=8).data)
    scaled = [(9.8 * x, y, real) for x, y, real in batches(model, 3, 8, seed=3)]
    check_equal(model, program, scaled, rate=0.01, mu=0.1)


def test_sentiment() -> None:
    """Ids with padding behind them; the table's first row is padding's, and must not move."""
    builtin = get("sentiment")
    model = builtin.build(builtin.classes)
    program = Program.load(compile_builtin(builtin).data)
    rng = np.random.default_rng(4)
    drawn = []
    for real in (8, 8, 5):
        lengths = rng.integers(1, 41, 8)
        x = np.where(np.arange(40) < lengths[:, None], rng.integers(1, 8192, (8, 40)), 0).astype(np.int32)
        drawn.append((x, rng.integers(0, 2, 8).astype(np.int32), real))
    check_equal(model, program, drawn, rate=0.5, mu=0.1)
    start = program.init(0)
    x, y, _ = drawn[0]
    trained = program.train(start, x, y, epochs=1, learning_rate=1.0, rng=rng)
    moved = (trained.parameters - start)[: 8192 * 16].reshape(8192, 16).any(axis=1)
    assert program.manifest.layout[0].name == "words/embeddings"
    assert set(np.flatnonzero(moved)) <= set(np.unique(x)) - {0}


def test_a_text_without_words_does_no_harm() -> None:
    """Keras divides by the number of words, and gets NaN; a phone must survive an empty text."""
    x = keras.Input((4,), dtype="int32")
    words = keras.layers.Embedding(5, 3, mask_zero=True, name="words")(x)
    model = keras.Model(x, keras.layers.Dense(2)(keras.layers.GlobalAveragePooling1D()(words)))
    program = Program.load(flsys_ray.compile(model, classes=("a", "b"), batch_size=2).data)
    texts = np.array([[0, 0, 0, 0], [1, 2, 0, 0]], np.int32)
    start = program.init(0)
    trained = program.train(start, texts, np.array([0, 1]), epochs=3, learning_rate=0.5, rng=np.random.default_rng(0))
    assert np.isfinite(program.infer(trained.parameters, texts)).all()
