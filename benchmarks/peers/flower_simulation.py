"""The workloads of `benchmarks/simulation.py` in Flower's simulation, for `--peer`: prints the JSON line of `--one`.

    python -m venv flower && flower/bin/pip install "flwr[simulation]" tensorflow-cpu
    python benchmarks/simulation.py --peer flower=flower/bin/python:benchmarks/peers/flower_simulation.py

A client trains with the graph of the form `bare`, which a worker makes once: Flower's best case. Two virtual clients at
a time, of one core each; FedAvg, no evaluation.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
os.environ.update(RAY_ADDRESS="local", RAY_worker_niceness="0")  # a cluster of its own, at normal niceness

import numpy as np
import simulation
from flwr.client import ClientApp, NumPyClient
from flwr.common import Context, ndarrays_to_parameters
from flwr.server import ServerApp, ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.simulation import run_simulation
from simulation_workloads import WORKLOADS, build


class Client(NumPyClient):  # type: ignore[misc]  # Flower is not installed where types are checked
    def __init__(self, name: str, device: int) -> None:
        self.name, self.device = name, device

    def fit(self, parameters: list[Any], config: dict[str, Any]) -> tuple[list[Any], int, dict[str, Any]]:
        if not simulation._BARE:
            simulation._bare_start(self.name)
        trained = simulation._bare_train((parameters[0], self.device))
        return [trained], WORKLOADS[self.name].examples, {}


def main(name: str, rounds: int) -> None:
    workload, ends = WORKLOADS[name], []
    start = np.concatenate([w.numpy().ravel() for w in build(name).trainable_variables])

    class Timed(FedAvg):  # type: ignore[misc]
        def aggregate_fit(self, *args: Any, **options: Any) -> Any:
            made = super().aggregate_fit(*args, **options)
            ends.append(simulation.now())
            return made

    def server(context: Context) -> ServerAppComponents:
        strategy = Timed(
            fraction_fit=workload.cohort / workload.devices,
            fraction_evaluate=0.0,
            min_fit_clients=workload.cohort,
            min_available_clients=workload.devices,
            initial_parameters=ndarrays_to_parameters([start]),
        )
        return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=rounds))

    def client(context: Context) -> Any:
        return Client(name, int(context.node_config["partition-id"])).to_client()

    resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": {"num_cpus": simulation.WORKERS}}
    run_simulation(ServerApp(server_fn=server), ClientApp(client_fn=client), workload.devices, backend_config=resources)
    trainings = (len(ends) - 1) * workload.cohort
    wall_s, cpu_s = (last - first for first, last in zip(ends[0], ends[-1], strict=True))
    print(json.dumps({"per_s": trainings / wall_s, "cpu_ms": cpu_s / trainings * 1e3, "rounds": len(ends)}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else WORKLOADS[sys.argv[1]].rounds)
