"""100 registered models, 12 of them training at once with 12 different rules: all commit; and what each one costs.

    python benchmarks/many_models.py [--registered 100] [--training 12] [--versions 2] [--json]

Twelve phones list all models that train in every check-in, get one assignment each, upload, and come again, until
every model is finished. Memory is PSS in MiB, from the kernel's `smaps_rollup`: pages that several processes share are
counted once in all.
"""

import argparse
import json
import os
import statistics
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
from ingest import free_port
from load import program

from flsys_ray.core.aggregation.base import RULES
from flsys_ray.core.plan import TrainingPlan, parse_plan
from flsys_ray.developer import DeveloperClient
from flsys_ray.errors import PlanInvalid
from flsys_ray.wire.developer_schemas import ModelInfo
from flsys_ray.wire.tensors import encode_update

PHONES = 12
COHORT = 9
IDLE_S = 45.0
ASLEEP = 3
NESTED = {"name": "clipping", "inner": "coordinate_median"}


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--registered", type=int, default=100)
    arguments.add_argument("--training", type=int, default=12)
    arguments.add_argument("--versions", type=int, default=2)
    arguments.add_argument("--json", action="store_true")
    given = arguments.parse_args()
    with tempfile.TemporaryDirectory() as name:
        report = measure(Path(name), given.registered, given.training, given.versions)
    if given.json:
        print(json.dumps(report, indent=2))
        return
    for what, value in report.items():
        print(f"{what:44} {value}")


def plans(count: int, versions: int) -> list[TrainingPlan]:
    """Return plans with as many different rules as there are, repeated if there are fewer than `count`."""
    pacing = {"name": "rounds", "cohort": COHORT, "quorum": COHORT, "over_selection": 1, "deadline_s": 300}
    found = []
    for rule in (*RULES.classes, NESTED):
        plan = {"pacing": pacing, "selection": "first_come", "aggregation": rule, "stopping": {"versions": versions}}
        try:
            found.append(parse_plan(plan))
        except PlanInvalid:
            continue  # a rule without defaults
    return [found[number % len(found)] for number in range(count)]


def measure(folder: Path, registered: int, training: int, versions: int) -> dict[str, Any]:
    from serve_apps.up import Place, cloud

    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    data, size = program(folder, 10_000)
    names = [f"model-{number:03}" for number in range(registered)]
    wanted = plans(training, versions)
    with cloud(Place(store=str(folder / "store"), port=free_port(), idle_s=IDLE_S), "operator") as url:
        with DeveloperClient(url, "operator") as operator:
            key = operator.create_app("many").key
        with DeveloperClient(url, key) as developer:
            begun = time.monotonic()
            for name, plan in zip(names, wanted + [TrainingPlan()] * (registered - training), strict=True):
                developer.put_model(name, plan)
                developer.put_program(name, data)
            report: dict[str, Any] = {
                "models registered": registered,
                "seconds to register them": round(time.monotonic() - begun, 1),
                "actor processes then": len(memory_of_actors()),
            }
            begun = time.monotonic()
            for name in names[: training + ASLEEP]:
                developer.act(name, "start")
            report["seconds to start those that train"] = round(time.monotonic() - begun, 1)
            begun = time.monotonic()
            memory = train(url, key, names[:training], size)
            report["seconds until all have finished"] = round(time.monotonic() - begun, 1)
            infos = [developer.info(name) for name in names[:training]]
            report |= outcome(infos, versions) | costs(memory)
            wait_until_all_have_left()
            begun = time.monotonic()
            listed = developer.models()
            report["ms to list all models, none active"] = round(1000 * (time.monotonic() - begun))
            report["models listed"] = len(listed)
            report["actor processes then, an idle model each: 0"] = len(memory_of_actors())
            report["ms of a check-in that wakes a model, median"] = waking_ms(url, key, names[training:][:ASLEEP])
    return report


def waking_ms(url: str, key: str, names: list[str]) -> float:
    """Return how long a phone waits for the answer of a model that trains, is idle and has no process."""
    took = []
    with httpx2.Client(base_url=url, timeout=60.0) as http:
        token = http.post("/v1/devices", json={"installation_id": "phone-that-wakes"}, headers=bearer(key)).json()
        for name in names:
            begun = time.monotonic()
            while True:
                body = {"models": [{"model": name, "examples": 50}]}
                reply = http.post("/v1/checkins", json=body, headers=bearer(token["token"])).raise_for_status().json()
                if reply["assignments"]:
                    break
                threading.Event().wait(0.05)  # passed over while its process starts
            took.append(1000 * (time.monotonic() - begun))
    return round(statistics.median(took))


def outcome(infos: list[ModelInfo], versions: int) -> dict[str, Any]:
    done = [info for info in infos if info.state == "finished" and info.version == versions]
    return {
        "models trained at once": len(infos),
        "with different rules": len({info.plan.aggregation.model_dump_json() for info in infos}),
        f"that committed {versions} versions": len(done),
    }


def costs(memory: list[float]) -> dict[str, Any]:
    return {
        "actor processes while all train": len(memory),
        "MiB (PSS) of each, median": round(statistics.median(memory), 1),
        "MiB (PSS) of all": round(sum(memory)),
    }


def train(url: str, key: str, names: list[str], size: int) -> list[float]:
    """Have the phones train until all models are finished. Returns the memory of the actors on the way."""
    seen: list[list[float]] = []
    finished: set[str] = set()
    with ThreadPoolExecutor(PHONES) as pool:
        phones = [pool.submit(phone, url, key, number, names, size, finished) for number in range(PHONES)]
        while not all(each.done() for each in phones):
            seen.append(memory_of_actors())
            threading.Event().wait(0.5)
        for each in phones:
            each.result()
    return max(seen, key=len)


def phone(url: str, key: str, number: int, names: list[str], size: int, finished: set[str]) -> None:
    """Check in with all models, do what comes, and come again; until all models say that they are finished."""
    rng = np.random.default_rng(number)
    with httpx2.Client(base_url=url, timeout=60.0) as http:
        enrol = {"installation_id": f"phone-of-many-{number}"}
        token = http.post("/v1/devices", json=enrol, headers=bearer(key)).json()["token"]
        while left := [name for name in names if name not in finished]:
            body = {"models": [{"model": name, "examples": 50} for name in left]}
            reply = http.post("/v1/checkins", json=body, headers=bearer(token)).raise_for_status().json()
            finished |= {line["model"] for line in reply["rejections"] if line["reason"] == "finished"}
            for work in reply["assignments"]:
                update = encode_update(rng.normal(0, 0.01, size).astype(np.float32), 50, 1.0)
                headers = bearer(token) | {"Flsys-Assignment": work["token"]}
                http.put(work["upload"]["url"], content=update, headers=headers)
            if not reply["assignments"]:
                threading.Event().wait(min(0.5, reply["retry_after_s"]))


def memory_of_actors() -> list[float]:
    """Return the PSS of each model's actor, in MiB."""
    import ray
    from ray.util import list_named_actors

    from actors.hosts import NAMESPACE

    found = []
    for actor in list_named_actors(all_namespaces=True):
        if actor["namespace"] == NAMESPACE and actor["name"].startswith("model:"):
            try:
                handle = ray.get_actor(actor["name"], namespace=NAMESPACE)
                pid = ray.get(handle.pid.remote(), timeout=30)
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
            except (ray.exceptions.RayError, ValueError, OSError):
                continue  # it has just left
            found.append(next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024)
    return found


def wait_until_all_have_left() -> None:
    end = time.monotonic() + 20 * IDLE_S
    while memory_of_actors():
        if time.monotonic() > end:
            raise SystemExit("actors of idle models are still there")
        time.sleep(0.5)


def bearer(secret: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {secret}"}


if __name__ == "__main__":
    main()
