"""The fast trainer computes what the phone's own program computes: same batches, same optimizer, same masks.

The tolerance is 2e-6 on parameters after all local steps (float32 sums in another order), 1e-5 on losses.
HAR-Wild is built without dropout here: which units are dropped follows from a fingerprint of sums to the bit, and
differs between runtimes.
"""

from dataclasses import replace
from functools import lru_cache, partial

import keras
import numpy as np
import pytest
from simulated import message_of

import flsys_ray
from flsys_ray.augmentation.jitter import Jitter
from flsys_ray.augmentation.permutation import Permutation
from flsys_ray.augmentation.rotation import Rotation
from flsys_ray.core.plan import LocalTraining, parse_plan
from flsys_ray.core.types import Assignment
from flsys_ray.device.examples import Batch
from flsys_ray.device.trainer import train_assignment
from flsys_ray.models import har_wild, sentiment
from flsys_ray.programs.compile import CompiledProgram
from flsys_ray.programs.runner import Program
from flsys_ray.simulation.fast_trainer import OneByOne, Together, make_fast_trainer
from flsys_ray.simulation.program_trainer import ProgramTrainer
from flsys_ray.simulation.training import Examples, Group, TrainerSpec, Work
from flsys_ray.wire.tensors import decode_update, encode_vector

TOLERANCE, LOSS_TOLERANCE = 2e-6, 1e-5


def narrow(padding: str = "same", filters: int = 8) -> keras.Model:
    window = keras.Input((30, 3))
    x = keras.layers.Conv1D(filters, 5, padding=padding, activation="relu")(window)
    x = keras.layers.Conv1D(filters, 4, strides=2, padding="same", use_bias=False)(x)
    x = keras.layers.BatchNormalization()(x)
    x = keras.layers.MaxPooling1D(2)(x)
    x = keras.layers.GlobalAveragePooling1D()(x)
    return keras.Model(window, keras.layers.Dense(4, activation="softmax")(x))


@lru_cache
def compiled_of(build, classes, batch_size, optimizer) -> CompiledProgram:
    return flsys_ray.compile(build(), classes=classes, batch_size=batch_size, local_optimizer=optimizer, name="m")


def spec_of(build, classes, *, local, batch_size=8, optimizer="sgd", examples=120, group_size=4) -> TrainerSpec:
    compiled = compiled_of(build, tuple(classes), batch_size, optimizer)
    rng, manifest = np.random.default_rng(5), compiled.manifest
    shape = (examples, *manifest.input_shape)
    x = rng.normal(0, 1, shape).astype(np.float32)
    if manifest.input_dtype == "int32":
        x = rng.integers(0, 500, shape).astype(np.int32)
    pool = Examples(x, rng.integers(0, len(classes), examples).astype(np.int32))
    return TrainerSpec("fast", compiled.data, build, local, group_size, pool, pool)


def group_of(spec: TrainerSpec, sizes=(50, 8, 31), *, corrected: bool = False) -> Group:
    program, rng = Program.load(spec.program), np.random.default_rng(6)
    bases = {0: program.init(1), 3: program.init(2)}
    trainable = program.manifest.to_layout().trainable_mask()

    def work(i: int, size: int) -> Work:
        rows = np.sort(rng.choice(len(spec.training.y), size, replace=False))
        correction = np.where(trainable, rng.normal(0, 0.01, len(trainable)), 0).astype(np.float32)
        rate = spec.local.learning_rate * 0.9 ** (i % 2)
        return Work(f"{i:08d}-aa", i, 3 * (i % 2), rows, rate, correction if corrected else None)

    return Group("m", tuple(work(i, size) for i, size in enumerate(sizes)), bases)


def compare(spec: TrainerSpec, form: type, group: Group) -> None:
    fast, phone = make_fast_trainer(spec), ProgramTrainer(spec)
    assert type(fast) is form
    found, expected = fast.train(group), phone.train(group)
    assert np.abs(expected.delta).max() > 1e-3
    np.testing.assert_allclose(found.delta, expected.delta, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(found.loss, expected.loss, rtol=0, atol=LOSS_TOLERANCE)
    assert found.steps.tolist() == expected.steps.tolist()
    parameters = group.bases[0]
    found_answers, answers = fast.evaluate(parameters), phone.evaluate(parameters)
    assert found_answers.chosen.tolist() == answers.chosen.tolist()
    assert found_answers.loss_sum == pytest.approx(answers.loss_sum, rel=1e-5)


def test_har_wild():
    spec = spec_of(partial(har_wild.build, dropout=0.0), har_wild.CLASSES, batch_size=32, local=LocalTraining(epochs=2))
    compare(spec, OneByOne, group_of(spec, (70, 32, 45)))


def test_sentiment():
    local = LocalTraining(epochs=3, learning_rate=1.0)
    spec = spec_of(sentiment.build, sentiment.CLASSES, local=local)
    compare(spec, OneByOne, group_of(spec))


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam"])
@pytest.mark.parametrize("form", [Together, OneByOne])
def test_every_local_optimizer_with_a_proximal_term_and_fewer_steps_than_epochs(optimizer, form, monkeypatch):
    monkeypatch.setattr("flsys_ray.simulation.fast_trainer.is_small", lambda manifest, model: form is Together)
    local = LocalTraining(epochs=3, learning_rate=0.01, proximal_mu=0.1, max_steps=9)
    spec = spec_of(narrow, list("abcd"), local=local, optimizer=optimizer)
    compare(spec, form, group_of(spec))


@pytest.mark.parametrize("form", [Together, OneByOne])
def test_a_corrected_gradient(form, monkeypatch):
    monkeypatch.setattr("flsys_ray.simulation.fast_trainer.is_small", lambda manifest, model: form is Together)
    spec = spec_of(narrow, list("abcd"), local=LocalTraining(epochs=2, learning_rate=0.05))
    compare(spec, form, group_of(spec, corrected=True))


TRANSFORMS = (Rotation(max_degrees=40), Jitter(sigma=0.3, share=0.5), Permutation(segments=3))


@pytest.mark.parametrize("form", [Together, OneByOne])
def test_transforms_are_drawn_anew_for_each_epoch(form, monkeypatch):
    monkeypatch.setattr("flsys_ray.simulation.fast_trainer.is_small", lambda manifest, model: form is Together)
    spec = spec_of(narrow, list("abcd"), local=LocalTraining(epochs=3, learning_rate=0.05, max_steps=9))
    group = group_of(spec)
    plain = ProgramTrainer(spec).train(group)
    spec = replace(spec, transforms=TRANSFORMS)
    compare(spec, form, group)
    assert np.abs(ProgramTrainer(spec).train(group).delta - plain.delta).max() > 100 * TOLERANCE


def test_the_program_is_fed_the_windows_that_the_phone_feeds_it():
    plan = parse_plan(
        {
            "local": {"epochs": 3, "learning_rate": 0.05, "max_steps": 9},
            "augmentation": {"transforms": [transform.model_dump() for transform in TRANSFORMS]},
        }
    )
    spec = replace(spec_of(narrow, list("abcd"), local=plan.local), transforms=plan.augmentation.transforms)
    group, program = group_of(spec), Program.load(spec.program)
    group = replace(group, works=tuple(replace(work, rate=plan.local.learning_rate) for work in group.works))
    deltas = ProgramTrainer(spec).train(group).delta
    for work, delta in zip(group.works, deltas, strict=True):
        assignment = Assignment(work.assignment_id, "m", work.round, work.base, "a", 60.0)
        weights = encode_vector("parameters", group.bases[work.base])
        own = Batch(spec.training.x[work.rows], spec.training.y[work.rows])
        found = train_assignment(program, weights, message_of(plan, assignment), (own, None), lambda: False)
        phone = decode_update(found.update, program.manifest.to_layout(), 1e3).delta
        assert np.array_equal(phone, delta)


@pytest.mark.parametrize("padding", ["valid", "same", "causal"])
@pytest.mark.parametrize("filters", [5, 16])
def test_convolutions_of_neighbours_at_once(padding, filters):
    spec = spec_of(partial(narrow, padding, filters), list("abcd"), local=LocalTraining(learning_rate=0.05))
    compare(spec, Together, group_of(spec, (20, 8)))


def test_a_device_has_the_same_bits_in_every_place_of_a_group():
    spec = spec_of(narrow, list("abcd"), local=LocalTraining(learning_rate=0.05))
    trainer, group = make_fast_trainer(spec), group_of(spec)
    again = trainer.train(Group("m", group.works[::-1], group.bases))
    assert np.array_equal(trainer.train(group).delta, again.delta[::-1])


def test_a_training_that_diverges_has_no_number():
    spec = spec_of(narrow, list("abcd"), local=LocalTraining(epochs=4, learning_rate=1e30))
    for trainer in (make_fast_trainer(spec), ProgramTrainer(spec)):
        assert not np.isfinite(trainer.train(group_of(spec)).delta).all()
