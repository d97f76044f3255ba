"""Running a program: local training, its refusals, threads, and what it loads."""

import pickle
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flsys_ray.errors import DataInvalid, InvalidInput, ProgramInvalid, UpdateUnusable
from flsys_ray.programs.compile import CompiledProgram
from flsys_ray.programs.runner import Batch, Program


def _examples(count: int, seed: int = 0) -> tuple[Any, Any]:
    """Examples that can be learned: the class is the channel with the largest mean."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, 3, count).astype(np.int32)
    x = rng.normal(0, 0.5, (count, 12, 3)).astype(np.float32)
    x[np.arange(count), :, y] += 1.0
    return x, y


def _rng() -> np.random.Generator:
    return np.random.default_rng(5)


def test_training_learns(small_program: Program) -> None:
    x, y = _examples(60)
    start = small_program.init(0)
    before = small_program.evaluate(start, x, y)
    trained = small_program.train(start, x, y, epochs=40, learning_rate=0.02, rng=_rng())
    after = small_program.evaluate(trained.parameters, *_examples(60, seed=1))
    assert trained.completed
    assert trained.steps == 40 * 8
    assert after.loss_sum < before.loss_sum / 2
    assert after.correct > 54
    assert after.examples == 60


def test_training_does_not_change_what_it_is_given(small_program: Program) -> None:
    x, y = _examples(10)
    start = small_program.init(0)
    kept = start.copy(), x.copy(), y.copy()
    small_program.train(start, x, y, epochs=2, learning_rate=0.1, rng=_rng())
    for now, then in zip((start, x, y), kept, strict=True):
        assert np.array_equal(now, then)


def test_training_is_the_sum_of_its_steps(small_program: Program) -> None:
    """The loop is train_step over shuffled batches; the last is filled with real examples of mask 0."""
    x, y = _examples(11)
    start, order = small_program.init(0), _rng().permutation(11)
    first, second = order[:8], np.concatenate([order[8:], order[:5]])
    current, slots = start, small_program.fresh_slots()
    losses = []
    for rows, real in ((first, 8), (second, 3)):
        batch = Batch(x[rows], y[rows], (np.arange(8) < real).astype(np.float32))
        current, loss, slots = small_program.train_step(
            current, batch, learning_rate=0.1, anchor=start, proximal_mu=0.2, slots=slots
        )
        losses.append(loss)
    trained = small_program.train(start, x, y, epochs=1, learning_rate=0.1, proximal_mu=0.2, rng=_rng())
    assert np.array_equal(trained.parameters, current)
    assert trained.loss == pytest.approx((losses[0] * 8 + losses[1] * 3) / 11)


def test_the_same_generator_gives_the_same_training(small_program: Program) -> None:
    x, y = _examples(20)
    start = small_program.init(0)
    runs = [small_program.train(start, x, y, epochs=2, learning_rate=0.1, rng=_rng()).parameters for _ in range(2)]
    other = small_program.train(start, x, y, epochs=2, learning_rate=0.1, rng=np.random.default_rng(6)).parameters
    assert np.array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], other)


def test_a_strong_proximal_term_holds_the_parameters(small_program: Program) -> None:
    x, y = _examples(40)
    start = small_program.init(0)
    moved = []
    for mu in (0.0, 10.0):
        trained = small_program.train(start, x, y, epochs=20, learning_rate=0.02, proximal_mu=mu, rng=_rng())
        change = (trained.parameters - start)[small_program.manifest.to_layout().trainable_mask()]
        moved.append(float(np.linalg.norm(change)))
    assert moved[1] < moved[0] / 3


def test_training_stops_between_steps(small_program: Program) -> None:
    x, y = _examples(40)
    start = small_program.init(0)
    asked: list[int] = []

    def should_stop() -> bool:
        asked.append(1)
        return len(asked) > 3

    stopped = small_program.train(start, x, y, epochs=9, learning_rate=0.1, rng=_rng(), should_stop=should_stop)
    limited = small_program.train(start, x, y, epochs=9, learning_rate=0.1, rng=_rng(), max_steps=3)
    assert (stopped.steps, stopped.completed) == (3, False)
    assert (limited.steps, limited.completed) == (3, True)
    assert np.array_equal(stopped.parameters, limited.parameters)
    at_once = small_program.train(start, x, y, epochs=9, learning_rate=0.1, rng=_rng(), should_stop=lambda: True)
    assert np.array_equal(at_once.parameters, start)
    assert (at_once.steps, at_once.loss) == (0, 0.0)


def test_the_batch_size_of_evaluation_does_not_show(small_program: Program) -> None:
    x, y = _examples(21)
    parameters = small_program.init(0)
    whole = small_program.evaluate(parameters, x, y)
    parts = [small_program.evaluate(parameters, x[i : i + 3], y[i : i + 3]) for i in range(0, 21, 3)]
    assert whole.loss_sum == pytest.approx(sum(p.loss_sum for p in parts), rel=1e-5)
    assert whole.correct == sum(p.correct for p in parts)


def test_infer_takes_one_example_or_many(small_program: Program) -> None:
    x, _ = _examples(4)
    parameters = small_program.init(0)
    many = small_program.infer(parameters, x)
    assert many.shape == (4, 3)
    np.testing.assert_allclose(many.sum(1), 1.0, rtol=1e-6)
    assert np.array_equal(small_program.infer(parameters, x[2]), many[2])
    assert small_program.infer(parameters, x[:0]).shape == (0, 3)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda x, y: (x[:, :11], y), r"takes x \(N, 12, 3\)"),
        (lambda x, y: (x, y[:-1]), r"y \(N,\)"),
        (lambda x, y: (x[:0], y[:0]), "no examples"),
        (lambda x, y: (x, y + 1), "labels lie in"),
        (lambda x, y: (x, y - 1), "labels lie in"),
        (lambda x, y: (np.where(x > 1, np.nan, x), y), "x holds a value that is not finite"),
    ],
)
def test_examples_that_do_not_fit_are_refused(small_program: Program, change: Any, says: str) -> None:
    x, y = change(*_examples(30))
    with pytest.raises(DataInvalid, match=says):
        small_program.train(small_program.init(0), x, y, epochs=1, learning_rate=0.1, rng=_rng())
    with pytest.raises(DataInvalid, match=says):
        small_program.evaluate(small_program.init(0), x, y)


def test_parameters_that_do_not_fit_are_refused(small_program: Program) -> None:
    x, y = _examples(8)
    broken = small_program.init(0)
    broken[3] = np.inf
    for parameters, says in ((broken[:-1], "parameters have shape"), (broken, "'conv/kernel' holds a value")):
        with pytest.raises(InvalidInput, match=says):
            small_program.train(parameters, x, y, epochs=1, learning_rate=0.1, rng=_rng())
        with pytest.raises(InvalidInput, match=says):
            small_program.evaluate(parameters, x, y)
        with pytest.raises(InvalidInput, match=says):
            small_program.infer(parameters, x)
    with pytest.raises(DataInvalid, match="infer: x has shape"):
        small_program.infer(small_program.init(0), x[:, :5])


def test_divergence_is_an_error_and_not_an_update(small_program: Program) -> None:
    x, y = _examples(16)
    with pytest.raises(UpdateUnusable, match="lower the learning rate"):
        small_program.train(small_program.init(0), x * 1e30, y, epochs=5, learning_rate=1e38, rng=_rng())


def test_what_is_no_program_is_refused(small: CompiledProgram, tmp_path: Path) -> None:
    with pytest.raises(ProgramInvalid):
        Program.load(b"not a program")
    path = small.save(tmp_path / "small.tflite")
    assert Program.load(path).sha256 == small.sha256
    garbage = Program(small.data[:4] + b"TFL3" + b"\0" * 100, small.manifest)
    with pytest.raises(ProgramInvalid, match="LiteRT cannot load it"):
        garbage.init(0)


def test_many_threads_share_one_program(small_program: Program) -> None:
    x, y = _examples(24)
    start = small_program.init(0)
    expected = small_program.train(start, x, y, epochs=3, learning_rate=0.1, rng=_rng()).parameters
    results: dict[int, Any] = {}

    def work(i: int) -> None:
        results[i] = small_program.train(start, x, y, epochs=3, learning_rate=0.1, rng=_rng()).parameters

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(results[i], expected) for i in range(6))


def test_a_program_travels_to_another_process(small_program: Program) -> None:
    copy = pickle.loads(pickle.dumps(small_program))
    assert copy.sha256 == small_program.sha256
    assert np.array_equal(copy.init(3), small_program.init(3))


def test_results_are_the_callers_own(small_program: Program) -> None:
    """The runtime's buffers are reused by the next call: what was returned must not change."""
    first = small_program.init(1)
    kept = first.copy()
    small_program.init(2)
    assert np.array_equal(first, kept)


def test_a_phone_loads_no_tensorflow(small: CompiledProgram, tmp_path: Path) -> None:
    path = small.save(tmp_path / "small.tflite")
    script = (
        "import sys; from pathlib import Path; from flsys_ray.programs.runner import Program; "
        f"Program.load(Path({str(path)!r})).init(0); "
        "print([m for m in ('tensorflow', 'keras', 'ray', 'fastapi', 'pyarrow') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_correction_is_added_to_the_gradient_of_each_step(small_sgd: Program) -> None:
    """Plain SGD is linear in its gradient: each step ends `learning_rate * correction` further back."""
    x, y = _examples(11)
    start = small_sgd.init(0)
    correction = np.random.default_rng(2).normal(0, 1, start.size).astype(np.float32)
    current, order = start, _rng().permutation(11)
    for rows, real in ((order[:8], 8), (np.concatenate([order[8:], order[:5]]), 3)):
        batch = Batch(x[rows], y[rows], (np.arange(8) < real).astype(np.float32))
        slots = small_sgd.fresh_slots()
        current = small_sgd.train_step(current, batch, learning_rate=0.1, anchor=start, slots=slots).parameters
        current = current - np.float32(0.1) * correction
    trained = small_sgd.train(start, x, y, epochs=1, learning_rate=0.1, rng=_rng(), correction=correction)
    assert np.array_equal(trained.parameters, current)
    plain = small_sgd.train(start, x, y, epochs=1, learning_rate=0.1, rng=_rng())
    assert not np.array_equal(trained.parameters, plain.parameters)


def test_a_stateful_local_optimizer_is_not_corrected(small_program: Program) -> None:
    start = small_program.init(0)
    with pytest.raises(InvalidInput, match="has a state, only SGD is corrected"):
        small_program.train(start, *_examples(8), epochs=1, learning_rate=0.1, rng=_rng(), correction=start)
