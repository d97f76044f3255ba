"""Memory of a model's actor: idle (a draft), training with an open round, and after updates of 842 kB were counted.

    python benchmarks/actor_memory.py [--updates 50] [--json]

PSS (proportional set size) counts pages that several processes share once in all: what one more model costs. RSS counts
them in each. Of PSS, `own` is the process's anonymous memory, `shared` Ray's shared memory, in which updates reach it.
In MiB, from the kernel's `smaps_rollup`.
"""

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from ingest import check_in, free_port, installation, upload
from load import MODEL, Request, burst, program

from flsys_ray.core.plan import parse_plan
from flsys_ray.developer import DeveloperClient
from flsys_ray.wire.tensors import encode_update


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--updates", type=int, default=50)
    arguments.add_argument("--json", action="store_true")
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as name:
        report = measure(Path(name), given.updates)
    if given.json:
        print(json.dumps(report, indent=2))
        return
    print(f"{'ModelActor':32}{'PSS MiB':>10}{'own':>10}{'shared':>10}{'RSS MiB':>10}")
    for what, row in report.items():
        print(f"{what:32}{row['pss_mib']:10.1f}{row['own_mib']:10.1f}{row['shared_mib']:10.1f}{row['rss_mib']:10.1f}")


def measure(folder: Path, updates: int) -> dict[str, dict[str, float]]:
    from serve_apps.up import Place, cloud

    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    data, parameters = program(folder)
    port = free_port()
    with cloud(Place(store=str(folder / "store"), port=port), "operator") as url:
        with DeveloperClient(url, "operator") as operator:
            app_key = operator.create_app("load").key
        with DeveloperClient(url, app_key) as developer:
            pacing = {"name": "rounds", "cohort": updates + 1, "over_selection": 1, "quorum": 1, "deadline_s": 3600}
            developer.put_model(MODEL, parse_plan({"pacing": pacing, "selection": "first_come"}))
            report = {"idle: a draft": memory(MODEL)}
            developer.put_program(MODEL, data)
            developer.act(MODEL, "start")
            report[f"training: {parameters:,} parameters"] = memory(MODEL)
            send_updates(port, app_key, parameters, updates)
            report[f"after {updates} updates counted"] = memory(MODEL)
    return report


def send_updates(port: int, app_key: str, parameters: int, updates: int) -> None:
    headers = {"Authorization": f"Bearer {app_key}", "Content-Type": "application/json"}
    enrol = [Request.of("POST", "/v1/devices", headers, installation(index)) for index in range(updates)]
    tokens = [json.loads(body)["token"] for body in burst(port, enrol, 4).bodies]
    replies = burst(port, [check_in(token) for token in tokens], 4).bodies
    body = encode_update(np.full(parameters, 0.01, np.float32), 10, 1.0)
    sent = burst(port, [upload(token, reply, body) for token, reply in zip(tokens, replies, strict=True)], 4)
    if sent.statuses != {200: updates}:
        raise SystemExit(f"not all updates were counted: {sent.statuses}")


def memory(model: str) -> dict[str, float]:
    import ray

    from actors.hosts import NAMESPACE, actor_name

    actor: Any = ray.get_actor(actor_name(f"load/{model}"), namespace=NAMESPACE)
    pid = ray.get(actor.pid.remote())
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    sizes = {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines}
    names = {"pss_mib": "Pss", "own_mib": "Pss_Anon", "shared_mib": "Pss_Shmem", "rss_mib": "Rss"}
    return {name: round(sizes[field], 1) for name, field in names.items()}


if __name__ == "__main__":
    main()
