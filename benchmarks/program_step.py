"""One training step of HAR-Wild: the program in LiteRT against a TensorFlow graph, one core each, same batch.

    python benchmarks/program_step.py [--batch 32] [--steps 200] [--json]

Also the size of the program, the time to load it, memory an interpreter, how threads share (whether the runtime
releases Python's global lock), and the forms of product and convolution that the lowering chooses between.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import argparse
import json
import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np

import flsys_ray
from flsys_ray.models import get
from flsys_ray.programs.runner import Batch, Program

RATE = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description="Step time of HAR-Wild: LiteRT program against TensorFlow graph.")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures = measure(options.batch, options.steps)
    if options.json:
        print(json.dumps(figures, indent=1))
        return
    for name, value in figures.items():
        print(f"{name:32s} {value:.4g}" if isinstance(value, float) else f"{name:32s} {value}")


def measure(batch_size: int, steps: int) -> dict[str, Any]:
    """Return all figures. The two steps alternate, so that a busy machine disturbs both alike."""
    builtin = get("har-wild")
    model = builtin.build(builtin.classes)
    compiled = flsys_ray.compile(model, classes=builtin.classes, batch_size=batch_size, name="har-wild")
    rng = np.random.default_rng(0)
    batch = Batch(
        rng.normal(0, 9.8, (batch_size, *builtin.input_shape)).astype(np.float32),
        rng.integers(0, len(builtin.classes), batch_size).astype(np.int32),
        np.ones(batch_size, np.float32),
    )
    program = Program.load(compiled.data)
    lite, graph = _litert_step(program, batch), _tensorflow_step(model, batch)
    lite_s, graph_s = _alternate(lite, graph, steps)
    return {
        "parameters": compiled.manifest.parameters,
        "program_bytes": len(compiled.data),
        "batch": batch_size,
        "litert_step_ms_min": min(lite_s) * 1e3,
        "litert_step_ms_median": statistics.median(lite_s) * 1e3,
        "tensorflow_step_ms_min": min(graph_s) * 1e3,
        "tensorflow_step_ms_median": statistics.median(graph_s) * 1e3,
        "litert_over_tensorflow_min": min(lite_s) / min(graph_s),
        "litert_over_tensorflow_median": statistics.median(lite_s) / statistics.median(graph_s),
        **_loading(compiled.data, batch),
        **_threads(program, batch, steps),
        **_operator_forms(),
    }


def _litert_step(program: Program, batch: Batch) -> Callable[[], object]:
    start, slots = program.init(0), program.fresh_slots()
    return lambda: program.train_step(start, batch, learning_rate=RATE, anchor=start, slots=slots)


def _tensorflow_step(model: Any, batch: Batch) -> Callable[[], object]:
    """The usual way: Keras forward, tape, SGD, in one `tf.function`, oneDNN on one thread."""
    import keras
    import tensorflow as tf

    loss_of = keras.losses.SparseCategoricalCrossentropy()
    x, y = tf.constant(batch.x), tf.constant(batch.y)

    @tf.function
    def step() -> Any:
        with tf.GradientTape() as tape:
            loss = loss_of(y, model(x, training=True))
        weights = model.trainable_variables
        for variable, gradient in zip(weights, tape.gradient(loss, [w.value for w in weights]), strict=True):
            variable.assign_sub(RATE * gradient)
        return loss

    return lambda: step().numpy()


def _alternate(one: Callable[[], object], other: Callable[[], object], steps: int) -> tuple[list[float], list[float]]:
    times: tuple[list[float], list[float]] = ([], [])
    for i in range(steps + 10):
        for run, seen in zip((one, other), times, strict=True):
            start = time.perf_counter()
            run()
            if i >= 10:
                seen.append(time.perf_counter() - start)
    return times


def _loading(data: bytes, batch: Batch, copies: int = 10) -> dict[str, float]:
    """Time to the first result and resident memory of further interpreters, `train` allocated."""
    kept, before, start = [], _resident_bytes(), time.perf_counter()
    for _ in range(copies):
        program = Program.load(data)
        parameters = program.init(0)
        program.train_step(parameters, batch, learning_rate=RATE, anchor=parameters, slots=program.fresh_slots())
        kept.append(program)
    elapsed = time.perf_counter() - start
    return {
        "load_init_first_step_ms": elapsed / copies * 1e3,
        "memory_per_interpreter_mb": (_resident_bytes() - before) / copies / 2**20,
    }


def _resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _threads(program: Program, batch: Batch, steps: int) -> dict[str, float]:
    """A Python loop beside a training thread (1.0: undisturbed, so the lock is free), and two trainers at once."""
    alone = _spin()
    trainer = threading.Thread(target=_repeat, args=(_litert_step(program, batch), steps))
    trainer.start()
    beside = _spin()
    trainer.join()
    rates = {f"steps_per_s_{count}_threads": _rate(program, batch, steps, count) for count in (1, 2)}
    return {"python_loop_beside_training": beside / alone, **rates}


def _spin(seconds: float = 0.5) -> int:
    turns, until = 0, time.perf_counter() + seconds
    while time.perf_counter() < until:
        turns += 1
    return turns


def _repeat(step: Callable[[], object], times: int) -> None:
    for _ in range(times):
        step()


def _rate(program: Program, batch: Batch, steps: int, count: int) -> float:
    ready = threading.Barrier(count + 1)

    def work() -> None:
        step = _litert_step(program, batch)
        step()
        ready.wait()
        _repeat(step, steps)

    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    ready.wait()
    start = time.perf_counter()
    for thread in threads:
        thread.join()
    return count * steps / (time.perf_counter() - start)


def _operator_forms() -> dict[str, float]:
    """Forms of the same product and convolution in LiteRT: why the lowering chooses the ones it does."""
    import tensorflow as tf

    from flsys_ray.programs.lowering.layers.convolution import convolve
    from flsys_ray.programs.lowering.layers.dense import product
    from flsys_ray.programs.lowering.windows import Windows

    signal, kernel = tf.TensorSpec([32, 50, 32], name="a"), tf.TensorSpec([5, 32, 48], name="b")
    rows, matrix = tf.TensorSpec([1600, 160], name="a"), tf.TensorSpec([48, 160], name="b")
    windows = Windows.over(50, 5, 1, 1, "same")
    return {
        "conv_as_product_ms": _form_ms(lambda a, b: convolve(a, b, windows), signal, kernel),
        "conv_as_conv_2d_ms": _form_ms(lambda a, b: tf.nn.conv1d(a, b, 1, "SAME"), signal, kernel),
        "product_batch_matmul_ms": _form_ms(lambda a, b: product(a, tf.transpose(b)), rows, matrix),
        "product_fully_connected_ms": _form_ms(lambda a, b: tf.matmul(a, b, transpose_b=True), rows, matrix),
    }


def _form_ms(function: Callable[[Any, Any], Any], a: Any, b: Any) -> float:
    import tensorflow as tf
    from ai_edge_litert.interpreter import Interpreter

    from flsys_ray.programs.lowering.convert import to_flatbuffer

    traced = tf.function(lambda a, b: {"y": function(a, b)}, input_signature=[a, b], autograph=False)
    interpreter = Interpreter(model_content=to_flatbuffer({"form": traced}), num_threads=1)
    run = interpreter.get_signature_runner("form")
    inputs = {spec.name: np.random.default_rng(0).normal(size=spec.shape).astype(np.float32) for spec in (a, b)}
    times = []
    for _ in range(100):
        start = time.perf_counter()
        run(**inputs)
        times.append(time.perf_counter() - start)
    return min(times) * 1e3


if __name__ == "__main__":
    import tensorflow

    tensorflow.config.threading.set_intra_op_parallelism_threads(1)
    tensorflow.config.threading.set_inter_op_parallelism_threads(1)
    main()
