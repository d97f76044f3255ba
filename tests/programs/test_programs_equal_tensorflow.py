"""`train`, `evaluate` and `infer` of a program equal TensorFlow's own autodiff, step by step, for every layer."""

import keras
import pytest
from keras_reference import check_equal
from layer_cases import CASES, batches

import flsys_ray
from flsys_ray.models import get
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


def test_har_wild_without_dropout() -> None:
    builtin = get("har-wild")
    model = builtin.build(builtin.classes, dropout=0.0)
    program = Program.load(flsys_ray.compile(model, classes=builtin.classes, batch_size=8).data)
    scaled = [(9.8 * x, y, real) for x, y, real in batches(model, 3, 8, seed=3)]
    check_equal(model, program, scaled, rate=0.01, mu=0.1)
