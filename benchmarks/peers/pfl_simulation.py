"""The workloads of `benchmarks/simulation.py` in pfl-research, for `--peer`: prints the JSON line of `--one`.

    python -m venv pfl && pfl/bin/pip install pfl torch
    python benchmarks/simulation.py --peer pfl=pfl/bin/python:benchmarks/peers/pfl_simulation.py

With PyTorch, the faster of its frameworks here, in two processes of one thread each (`torch.distributed.run`, gloo).
Batches are not shuffled.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import simulation

if "RANK" not in os.environ:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(simulation.WORKERS)]
    os.environ["OMP_NUM_THREADS"] = "1"
    os.execv(sys.executable, [sys.executable, *launcher, *sys.argv])

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.pytorch import PyTorchModel
from simulation_workloads import CLASSES, RATE, WINDOW, WORKLOADS, Workload, examples_of

torch.set_num_threads(1)


class Network(torch.nn.Module):  # type: ignore[misc]  # pfl and PyTorch are not installed where types are checked
    """The workload's model; windows are [B, channels, time]."""

    def __init__(self, workload: Workload) -> None:
        super().__init__()
        length, channels, parts = WINDOW[0], WINDOW[1], []
        for filters, kernel, pooling in workload.layers:
            parts += [torch.nn.Conv1d(channels, filters, kernel, padding="same"), torch.nn.ReLU()]
            parts += [torch.nn.MaxPool1d(pooling)] if pooling > 1 else []
            length, channels = length // pooling, filters
        parts += [torch.nn.AdaptiveAvgPool1d(1)] if workload.head == "mean" else []
        flat = channels if workload.head == "mean" else length * channels
        parts += [torch.nn.Flatten(), torch.nn.Linear(flat, workload.hidden), torch.nn.ReLU()]
        self.parts = torch.nn.Sequential(*parts, torch.nn.Linear(workload.hidden, CLASSES))

    def loss(self, x: Any, y: Any, **options: Any) -> Any:
        return torch.nn.functional.cross_entropy(self.parts(x), y)

    def metrics(self, x: Any, y: Any, **options: Any) -> dict[str, Any]:
        return {}


def main(name: str, rounds: int) -> None:
    workload, ends = WORKLOADS[name], []
    x, y = examples_of(workload)
    x = np.ascontiguousarray(x.swapaxes(2, 3))
    users = {
        i: Dataset(raw_data=[torch.from_numpy(x[i]), torch.from_numpy(y[i]).long()]) for i in range(workload.devices)
    }

    class Timed(TrainingProcessCallback):  # type: ignore[misc]
        def after_central_iteration(self, metrics: Any, model: Any, *, central_iteration: int) -> tuple[bool, Any]:
            ends.append(simulation.now(os.getppid()))
            return False, Metrics()

    np.random.seed(0)
    torch.manual_seed(0)
    network = Network(workload)
    assert sum(p.numel() for p in network.parameters()) == workload.parameters
    model = PyTorchModel(network, torch.optim.SGD, torch.optim.SGD(network.parameters(), 1.0))
    sampler = get_user_sampler("minimize_reuse", list(users))
    backend = SimulatedBackend(training_data=FederatedDataset(users.get, sampler), val_data=None, postprocessors=[])
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=rounds,
            evaluation_frequency=rounds + 1,
            train_cohort_size=workload.cohort,
            val_cohort_size=0,
        ),
        backend,
        model,
        NNTrainHyperParams(local_num_epochs=workload.epochs, local_learning_rate=RATE, local_batch_size=workload.batch),
        NNEvalHyperParams(local_batch_size=workload.batch),
        [Timed()],
    )
    trainings = (len(ends) - 1) * workload.cohort
    wall_s, cpu_s = (last - first for first, last in zip(ends[0], ends[-1], strict=True))
    if os.environ["RANK"] == "0":
        figures = {"per_s": trainings / wall_s, "cpu_ms": cpu_s / trainings * 1e3, "rounds": len(ends)}
        print(json.dumps(figures), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else WORKLOADS[sys.argv[1]].rounds)
