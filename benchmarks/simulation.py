"""Local trainings a second of a simulation, beside the same mathematics without any framework: same machine, one run.

    python benchmarks/simulation.py [--workloads har,small] [--forms flsys,flsys-ray,bare] [--repeats 2] [--json]
    python benchmarks/simulation.py --peer NAME=PYTHON:SCRIPT

A peer runs in its own environment: its script is called with the workload's name, and prints the JSON line that
`--one` prints. Two workloads (`simulation_workloads.py`): one of a HAR model's size (210,438 parameters, 100 windows,
25 steps of 20, a cohort of 20 of 100 devices), and one of small devices (25,334 parameters, 20 windows, 2 steps of 10,
200 of 1,000). Everything is float32, on two workers of one thread each. A run is a process of its own, and the runs of
the competitors alternate. A figure is trainings a second from the end of the first round (which compiles) to the end;
the wall time of the whole run, compilation included; the peak of the proportional set size (PSS) of its processes; and
the CPU time of a training, which other work on the machine disturbs less.

- `flsys`: the engine: coordinator, traces (equal devices that are always there; a training takes minutes of virtual
  time), exact aggregation, two threads in one process. `flsys-ray`: on two Ray workers; Ray's own processes count.
- `bare`: two processes, one TensorFlow graph a device (a loop of steps, oneDNN convolutions), plain averages in numpy.
- `matmul`: what the arithmetic alone would give, at the speed of a product of two 1,024 x 1,024 matrices on both cores.
"""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ["TF_NUM_INTRAOP_THREADS"] = "1"
os.environ["OPENBLAS_NUM_THREADS"] = "1"

import argparse
import json
import multiprocessing
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from simulation_workloads import CLASSES, RATE, WORKLOADS, Workload, build, examples_of

WORKERS = 2
FORMS = ("flsys", "flsys-ray", "bare")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", default="har,small")
    parser.add_argument("--forms", default=",".join(FORMS))
    parser.add_argument("--peer", action="append", default=[])
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--one", help="FORM:WORKLOAD; run it in this process")
    options = parser.parse_args()
    if options.one:
        form, _, workload = options.one.partition(":")
        print(json.dumps(run(form, WORKLOADS[workload])))
        return
    figures = {}
    commands = {form: [sys.executable, __file__, "--one", f"{form}:"] for form in options.forms.split(",")}
    for peer in options.peer:
        name, _, rest = peer.partition("=")
        commands[name] = [*rest.split(":"), ""]
    for workload in options.workloads.split(","):
        gflops = matmul_gflops()
        runs = [
            (form, watched([*c[:-1], c[-1] + workload])) for _ in range(options.repeats) for form, c in commands.items()
        ]
        best = {form: max((r for f, r in runs if f == form), key=lambda r: r["per_s"]) for form in commands}
        limit = WORKERS * gflops * 1e9 / WORKLOADS[workload].flops
        figures[workload] = {"matmul_gflops_a_core": gflops, "matmul_per_s": limit, **best}
        if not options.json:
            print(f"{workload}: matmul {gflops:.0f} GFLOP/s a core, by arithmetic alone {limit:.0f} trainings/s")
            for form, figure in best.items():
                each = [round(r["per_s"], 1) for f, r in runs if f == form]
                cpu = f"{figure['cpu_ms']:.2f} ms CPU" if "cpu_ms" in figure else ""
                seconds, memory = f"{figure['wall_s']:.1f} s", f"{figure['peak_mb']:.0f} MB"
                print(f"  {form:10s} {figure['per_s']:8.1f}/s {seconds:>8s} {memory:>8s} {cpu:>14s}  {each}")
    if options.json:
        print(json.dumps(figures, indent=1))


def matmul_gflops(size: int = 1024) -> float:
    a = np.random.default_rng(0).normal(0, 1, (size, size)).astype(np.float32)
    best = min(_timed(lambda: a @ a) for _ in range(20))
    return 2 * size**3 / best / 1e9


def _timed(call: Any) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


# Watching a run --------------------------------------------------------------------------------------------------


def watched(command: list[str]) -> dict[str, float]:
    """Run a command; return what its last line says, with its wall time and the peak memory of its processes."""
    start = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    peak, over = [0.0], threading.Event()

    def watch() -> None:
        while not over.wait(0.2):
            peak[0] = max(peak[0], sum(pss_mb(pid) for pid in family(process.pid)))

    watcher = threading.Thread(target=watch)
    watcher.start()
    said, _ = process.communicate()
    over.set()
    watcher.join()
    if process.returncode:
        raise RuntimeError(f"{command} failed: {said[-500:]}")
    figures: dict[str, float] = json.loads(said.strip().splitlines()[-1])
    return {**figures, "wall_s": time.perf_counter() - start, "peak_mb": peak[0]}


def family(pid: int) -> list[int]:
    """Return a process and all that descend from it."""
    found, queue = [], [pid]
    while queue:
        one = queue.pop()
        found.append(one)
        try:
            queue += [int(child) for child in Path(f"/proc/{one}/task/{one}/children").read_text().split()]
        except OSError:
            continue
    return found


def pss_mb(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


# The forms -------------------------------------------------------------------------------------------------------


def run(form: str, workload: Workload) -> dict[str, float]:
    ends = bare(workload) if form == "bare" else engine(workload, on_ray=form == "flsys-ray")
    trainings = (len(ends) - 1) * workload.cohort
    wall_s, cpu_s = (last - first for first, last in zip(ends[0], ends[-1], strict=True))
    return {"per_s": trainings / wall_s, "cpu_ms": cpu_s / trainings * 1e3, "rounds": len(ends)}


def now(root: int | None = None) -> tuple[float, float]:
    """Return the time, and the CPU time of a process (this one) and of all that descend from it, seconds."""
    ticks = 0
    for pid in family(root or os.getpid()):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += int(fields[11]) + int(fields[12])
    return time.perf_counter(), ticks / os.sysconf("SC_CLK_TCK")


def engine(workload: Workload, *, on_ray: bool) -> list[tuple[float, float]]:
    """Return when each round ended."""
    import flsys_ray
    from flsys_ray.core.plan import parse_plan
    from flsys_ray.simulation.engine import SimulatedModel, Simulation, Terms
    from flsys_ray.simulation.executors import InlineExecutor
    from flsys_ray.simulation.population import Population, make_pool
    from flsys_ray.simulation.traces import always_there
    from flsys_ray.simulation.training import Examples, TrainerSpec, group_size_of

    x, y = examples_of(workload)
    pool = make_pool([(str(i), x[i], y[i]) for i in range(workload.devices)], Examples(x[0], y[0]))
    pacing = {"name": "rounds", "cohort": workload.cohort, "over_selection": 1.0, "deadline_s": 86400}
    plan = parse_plan(
        {
            "pacing": pacing,
            "selection": "first_come",
            "local": {"epochs": workload.epochs, "learning_rate": RATE},
            "stopping": {"versions": workload.rounds},
        }
    )
    name, classes = workload.name, [str(i) for i in range(CLASSES)]
    program = flsys_ray.compile(build(name), classes=classes, batch_size=workload.batch, name=name).data
    make = partial(build, name)
    size = group_size_of(plan)
    specs = {name: TrainerSpec("fast", program, make, plan.local, size, pool.training, pool.held_out)}
    model = SimulatedModel(name, plan, program, Population(pool, workload.devices, 0), step_s=600 / workload.steps)
    if on_ray:
        from actors.simulation_workers import RayExecutor

        executor: Any = RayExecutor(specs, WORKERS)
    else:
        executor = InlineExecutor(specs, WORKERS)
    terms = Terms(evaluate_every=0, check_in_every_s=900.0)
    simulation = Simulation([model], always_there(workload.devices), executor, terms)
    ends: list[tuple[float, float]] = []
    simulation.run(lambda row: ends.append(now()))
    executor.close()
    return ends


def bare(workload: Workload) -> list[tuple[float, float]]:
    context = multiprocessing.get_context("spawn")
    with context.Pool(WORKERS, _bare_start, (workload.name,)) as processes:
        parameters = np.concatenate([p.ravel() for p in processes.map(_bare_initial, range(1))[0]])
        rng, ends = np.random.default_rng(0), []
        for _ in range(workload.rounds):
            cohort = rng.choice(workload.devices, workload.cohort, replace=False)
            total = np.zeros_like(parameters)
            for trained in processes.imap(_bare_train, [(parameters, int(device)) for device in cohort]):
                total += trained - parameters
            parameters = parameters + total / workload.cohort
            ends.append(now())
    return ends


_BARE: dict[str, Any] = {}


def _bare_start(name: str) -> None:
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(1)
    workload, model = WORKLOADS[name], build(name)
    shapes = [tuple(w.shape) for w in model.trainable_variables]
    sizes = [int(np.prod(shape)) for shape in shapes]

    def scores(weights: list[Any], x: Any) -> Any:
        for i, (_, _, pooling) in enumerate(workload.layers):
            x = tf.nn.relu(tf.nn.bias_add(tf.nn.conv1d(x, weights[2 * i], 1, "SAME"), weights[2 * i + 1]))
            x = tf.nn.max_pool1d(x, pooling, pooling, "VALID") if pooling > 1 else x
        x = tf.reduce_mean(x, 1) if workload.head == "mean" else tf.reshape(x, [x.shape[0], -1])
        x = tf.nn.relu(tf.matmul(x, weights[-4]) + weights[-3])
        return tf.matmul(x, weights[-2]) + weights[-1]

    def step(weights: list[Any], x: Any, y: Any) -> list[Any]:
        with tf.GradientTape() as tape:
            tape.watch(weights)
            loss = tf.reduce_mean(tf.nn.sparse_softmax_cross_entropy_with_logits(y, scores(weights, x)))
        return [w - RATE * g for w, g in zip(weights, tape.gradient(loss, weights), strict=True)]

    @tf.function(autograph=False)
    def local(vector: Any, x: Any, y: Any, rows: Any) -> Any:
        weights = [tf.reshape(p, s) for p, s in zip(tf.split(vector, sizes), shapes, strict=True)]

        def body(i: Any, *weights: Any) -> Any:
            batch = tf.ensure_shape(tf.gather(x, rows[i]), [workload.batch, *x.shape[1:]])
            return (i + 1, *step(list(weights), batch, tf.gather(y, rows[i])))

        done = tf.while_loop(lambda i, *_: i < workload.steps, body, (0, *weights), parallel_iterations=1)
        return tf.concat([tf.reshape(w, [-1]) for w in done[1:]], 0)

    _BARE.update(local=local, data=examples_of(workload), workload=workload, model=model)


def _bare_initial(_: int) -> list[np.ndarray]:
    return [w.numpy() for w in _BARE["model"].trainable_variables]


def _bare_train(work: tuple[np.ndarray, int]) -> np.ndarray:
    parameters, device = work
    workload, (x, y) = _BARE["workload"], _BARE["data"]
    rng = np.random.default_rng(device)
    orders = [rng.permutation(workload.examples) for _ in range(workload.epochs)]
    rows = np.concatenate(orders).reshape(workload.steps, workload.batch).astype(np.int32)
    trained: np.ndarray = _BARE["local"](parameters, x[device], y[device], rows).numpy()
    return trained


if __name__ == "__main__":
    main()
