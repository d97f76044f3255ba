"""How much memory and time each aggregation rule takes for a large cohort in a store on disk.

    python benchmarks/aggregation_memory.py [--updates 1000] [--parameters 1000000] [--liars 200] [--rules a,b]

Random updates (seed 0) are written into a `LocalStore` in a temporary folder, 4 GB by default, as devices upload them.
Each rule then runs in a fresh process: it adds every update as the cloud does, one at a time, and finishes with
`StoredUpdates`. The figures are the process's peak resident memory above what it had after its imports, and seconds.
One thread, as in an actor of Ray.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from flsys_ray.cloud import places
from flsys_ray.cloud.stored_updates import StoredUpdates
from flsys_ray.core.coordinator import assignment_id
from flsys_ray.core.exact import FixedPoint
from flsys_ray.core.layout import Layout
from flsys_ray.core.plan import parse_plan
from flsys_ray.core.rng import generator
from flsys_ray.core.types import Contribution
from flsys_ray.storage.local import LocalStore
from flsys_ray.wire.tensors import decode_update, encode_update

MODEL = "bench"
MB = 2**20


def rules(liars: int) -> dict[str, object]:
    return {
        "weighted_mean": "weighted_mean",
        "fednova": "fednova",
        "coordinate_median": "coordinate_median",
        "trimmed_mean": "trimmed_mean",
        "q_fedavg": "q_fedavg",
        "geometric_median": "geometric_median",
        "clipping+coordinate_median": {"name": "clipping", "inner": "coordinate_median"},
        "krum": {"name": "krum", "f": liars},
        "multi_krum": {"name": "multi_krum", "f": liars},
        "bulyan": {"name": "bulyan", "f": liars},
    }


def write(folder: Path, updates: int, parameters: int) -> None:
    store, rng = LocalStore(folder), generator(0, "aggregation-memory")
    for number in range(updates):
        device = f"device-{number:06d}"
        body = encode_update(rng.standard_normal(parameters, dtype=np.float32), 1 + number % 100, 0.5, 8)
        store.put_new(places.update(MODEL, 0, assignment_id(MODEL, 0, device), device), body)


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(folder: Path, rule: object, parameters: int, updates: int) -> dict[str, float]:
    plan = parse_plan({"pacing": {"cohort": updates, "quorum": updates}, "aggregation": rule})
    store, layout = LocalStore(folder), Layout.of([("w", (parameters,), True)])
    before, begin = peak_mb(), time.perf_counter()
    state = plan.aggregation.init(FixedPoint(updates, 100, 1024.0), parameters)
    for key in store.list(places.updates(MODEL, 0)):
        decoded = decode_update(store.get(key).body, layout, 1024.0)
        delta, weight, loss, steps = decoded.delta, decoded.num_examples, decoded.loss, decoded.num_steps
        state = plan.aggregation.add(state, Contribution(places.owner_of(key)[0], delta, weight, loss, steps))
    added = time.perf_counter()
    result = plan.aggregation.finish(state, StoredUpdates(store, MODEL))
    assert result.shape == (parameters,)
    done = time.perf_counter()
    return {"peak_mb": peak_mb() - before, "add_s": added - begin, "finish_s": done - added}


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--updates", type=int, default=1000)
    parser.add_argument("--parameters", type=int, default=1_000_000)
    parser.add_argument("--liars", type=int, default=200)
    parser.add_argument("--rules", default="")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        folder, rule = args.child
        print(json.dumps(measure(Path(folder), json.loads(rule), args.parameters, args.updates)))
        return
    chosen = {name: rule for name, rule in rules(args.liars).items() if not args.rules or name in args.rules.split(",")}
    found = {}
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        write(Path(folder), args.updates, args.parameters)
        total = 4 * args.parameters * args.updates / MB
        print(f"{args.updates} updates x {args.parameters} parameters: {total:,.0f} MB", flush=True)
        print("| rule | peak memory, MB | add, s | finish, s |\n|---|---|---|---|", flush=True)
        for name, rule in chosen.items():
            size = ["--updates", str(args.updates), "--parameters", str(args.parameters)]
            command = [sys.executable, __file__, *size, "--child", folder, json.dumps(rule)]
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
            done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
            found[name] = json.loads(done.stdout)
            peak, add_s, finish_s = (found[name][key] for key in ("peak_mb", "add_s", "finish_s"))
            print(f"| {name} | {peak:.0f} | {add_s:.0f} | {finish_s:.0f} |", flush=True)
    if args.json:
        args.json.write_text(
            json.dumps({"updates": args.updates, "parameters": args.parameters, "rules": found}, indent=1)
        )


if __name__ == "__main__":
    main()
