"""The built-in models: how they are found, and what each promises."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from flsys_ray.core.plan import parse_plan
from flsys_ray.errors import NotFound
from flsys_ray.models import BuiltinModel, all_models, get
from flsys_ray.programs import flatbuffer
from flsys_ray.programs.compile import CompiledProgram, compile_builtin
from flsys_ray.programs.runner import Program


def test_models_are_found_by_name() -> None:
    assert "har-wild" in all_models()
    assert get("har-wild").name == "har-wild"
    with pytest.raises(NotFound, match=r"there are: .*har-wild"):
        get("har-wlid")


def test_listing_models_loads_no_tensorflow() -> None:
    script = (
        "import sys; import flsys_ray.models as m; print(list(m.all_models())); "
        "print([x for x in ('tensorflow', 'keras', 'ai_edge_litert') if x in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("name", list(all_models()))
def test_every_model_says_what_it_is(name: str) -> None:
    model = get(name)
    assert len(set(model.classes)) == len(model.classes) >= 2
    assert model.summary
    assert model.input_meaning
    assert parse_plan(model.default_plan()).local.epochs >= 1


def test_a_default_plan_is_a_copy() -> None:
    get("har-wild").default_plan()["local"]["epochs"] = 99
    assert get("har-wild").default_plan()["local"]["epochs"] != 99


@pytest.fixture(scope="module")
def har() -> tuple[BuiltinModel, CompiledProgram]:
    model = get("har-wild")
    return model, compile_builtin(model)


def test_har_wild_is_sized_for_phones(har: Any) -> None:
    model, compiled = har
    manifest = compiled.manifest
    assert manifest.name == "har-wild"
    assert manifest.classes == model.classes
    assert manifest.input_shape == model.input_shape == (100, 3)
    assert manifest.parameters < 100_000
    assert len(compiled.data) < 250_000
    flatbuffer.check(compiled.data)


def test_har_wild_compiles_to_the_same_bytes(har: Any) -> None:
    model, compiled = har
    assert compile_builtin(model).sha256 == compiled.sha256


def test_har_wild_learns_to_tell_motions_apart(har: Any) -> None:
    """Five synthetic motions, told apart by frequency and size of the swing, in any orientation of the phone."""
    program = Program.load(har[1].data)
    rng = np.random.default_rng(0)
    x, y = _motions(160, rng)
    trained = program.train(program.init(0), x, y, epochs=12, learning_rate=0.05, rng=rng)
    held_out = program.evaluate(trained.parameters, *_motions(160, rng))
    assert held_out.correct / held_out.examples > 0.8


@pytest.mark.parametrize(
    "turn",
    [
        [[0, 1, 0], [-1, 0, 0], [0, 0, 1]],  # a quarter about gravity
        [[-1, 0, 0], [0, 1, 0], [0, 0, -1]],  # face out
        [[-1, 0, 0], [0, -1, 0], [0, 0, 1]],  # head down
    ],
)
def test_har_wild_does_not_mind_how_the_phone_was_put_in(har: Any, turn: list[list[int]]) -> None:
    """Turned about gravity or put in the other way round, a phone has the same scores; lying flat, it has not."""
    program = Program.load(har[1].data)
    rng = np.random.default_rng(1)
    x = rng.normal(0, 2.0, (8, 50, 3))
    x = np.concatenate([x, -x], axis=1)
    x[:, :, 2] += 9.8  # the mean is exactly along z
    parameters = program.init(0)
    scores = program.infer(parameters, x.astype(np.float32))
    np.testing.assert_allclose(program.infer(parameters, (x @ np.array(turn)).astype(np.float32)), scores, atol=1e-5)
    assert np.abs(program.infer(parameters, x[:, :, [2, 0, 1]].astype(np.float32)) - scores).max() > 1e-3
    assert np.ptp(scores, axis=0).max() > 1e-3


def _motions(count: int, rng: np.random.Generator) -> tuple[Any, Any]:
    y = rng.integers(0, 5, count).astype(np.int32)
    time_s = np.arange(100) / 20
    swing = y[:, None] * 1.5 * np.sin(2 * np.pi * (0.7 + 0.5 * y[:, None]) * time_s + rng.uniform(0, 6, (count, 1)))
    down = rng.normal(size=(count, 3))
    down /= np.linalg.norm(down, axis=1, keepdims=True)
    x = (9.8 + swing)[:, :, None] * down[:, None, :] + rng.normal(0, 0.3, (count, 100, 3))
    return x.astype(np.float32), y
