"""The built-in models: how they are found, and what each promises."""

import hashlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from flsys_ray.core.plan import parse_plan
from flsys_ray.data import synthetic_texts
from flsys_ray.errors import NotFound, ProgramInvalid
from flsys_ray.models import BuiltinModel, all_models, get
from flsys_ray.models.sentiment import CLASSES
from flsys_ray.programs import flatbuffer
from flsys_ray.programs.compile import CompiledProgram, compile_builtin
from flsys_ray.programs.manifest import pack, read_tokenizer
from flsys_ray.programs.runner import Program
from flsys_ray.tokenizer import ASSET, Tokenizer


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


# Sentiment ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def texts() -> tuple[BuiltinModel, CompiledProgram]:
    model = get("sentiment")
    return model, compile_builtin(model)


def flatbuffer_of(compiled: CompiledProgram) -> bytes:
    """The program without the archive behind it."""
    return compiled.data[: compiled.data.rindex(b"PK\x03\x04", 0, compiled.data.index(b"manifest.json"))]


def test_sentiment_is_sized_for_phones(texts: Any) -> None:
    model, compiled = texts
    manifest = compiled.manifest
    assert (manifest.name, manifest.classes) == ("sentiment", ("negative", "positive"))
    assert (manifest.input_shape, manifest.input_dtype) == (model.input_shape, "int32") == ((40,), "int32")
    assert manifest.parameters < 150_000
    assert len(compiled.data) < 100_000
    flatbuffer.check(compiled.data)
    assert compile_builtin(model).sha256 == compiled.sha256


def test_the_tokenizer_travels_in_the_program_and_is_part_of_its_hash(texts: Any) -> None:
    model, compiled = texts
    tokenizer = read_tokenizer(compiled.data)
    assert tokenizer == Tokenizer.from_json(model.assets()[ASSET])
    assert tokenizer is not None
    assert (tokenizer.length,) == compiled.manifest.input_shape
    other = pack(flatbuffer_of(compiled), compiled.manifest, {ASSET: Tokenizer().to_json()})
    assert read_tokenizer(other) == Tokenizer()
    assert hashlib.sha256(other).hexdigest() != compiled.sha256


def test_a_program_without_a_tokenizer_takes_no_texts(texts: Any) -> None:
    without = pack(flatbuffer_of(texts[1]), texts[1].manifest)
    assert read_tokenizer(without) is None
    bad = pack(flatbuffer_of(texts[1]), texts[1].manifest, {ASSET: b'{"algorithm": "other"}'})
    with pytest.raises(ProgramInvalid, match=r"program: tokenizer\.json cannot be read"):
        read_tokenizer(bad)


def test_sentiment_learns_what_words_mean(texts: Any) -> None:
    """Synthetic writers, held out by user: far better than the mood of the others, which is 50 %."""
    tokenizer = read_tokenizer(texts[1].data)
    assert tokenizer is not None
    program = Program.load(texts[1].data)
    rng = np.random.default_rng(0)

    def written(users: range) -> tuple[Any, Any]:
        y = rng.integers(0, 2, 12 * len(users)).astype(np.int32)
        people = [synthetic_texts.writer(f"user-{i}", 0) for i in users for _ in range(12)]
        said = [synthetic_texts.text_of(who, CLASSES[label], rng) for who, label in zip(people, y, strict=True)]
        return tokenizer.batch(said), y

    x, y = written(range(40))
    trained = program.train(program.init(0), x, y, epochs=12, learning_rate=1.0, rng=rng)
    found = program.evaluate(trained.parameters, *written(range(40, 60)))
    assert 0.7 < found.correct / found.examples < 0.99
