"""The workloads of `benchmarks/simulation.py` in pfl-research, for `--peer`: prints the JSON line of `--one`.

    python -m venv pfl && pfl/bin/pip install pfl tensorflow-cpu tf_keras tensorflow-probability
    python benchmarks/simulation.py --peer pfl=pfl/bin/python:benchmarks/peers/pfl_simulation.py

Its `TFModel` names variables as Keras 2 does, so Keras 2 is used (with Keras 3, `kernel` of one layer takes the place
of another's). One process, whose operators may use both cores: more processes need Horovod. Batches are not shuffled.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

os.environ["TF_USE_LEGACY_KERAS"] = "1"
sys.path.insert(0, str(Path(__file__).parents[1]))

import simulation

del os.environ["TF_NUM_INTRAOP_THREADS"]

import numpy as np
import tensorflow as tf

sys.modules["keras"] = tf.keras

from pfl.aggregate.simulate import SimulatedBackend
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.dataset import Dataset
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam.base import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics
from pfl.model.tensorflow import TFModel
from simulation_workloads import RATE, WORKLOADS, build, examples_of


def main(name: str, rounds: int) -> None:
    workload, ends = WORKLOADS[name], []
    x, y = examples_of(workload)
    users = {i: Dataset(raw_data=[tf.constant(x[i]), tf.constant(y[i])]) for i in range(workload.devices)}

    class Timed(TrainingProcessCallback):  # type: ignore[misc]  # pfl is not installed where types are checked
        def after_central_iteration(self, metrics: Any, model: Any, *, central_iteration: int) -> tuple[bool, Any]:
            ends.append(simulation.now())
            return False, Metrics()

    np.random.seed(0)
    network = build(name)
    network.compile(
        loss=tf.keras.losses.SparseCategoricalCrossentropy(from_logits=True), optimizer=tf.keras.optimizers.SGD(RATE)
    )
    model = TFModel(network, {}, tf.keras.optimizers.SGD(1.0))
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
    print(json.dumps({"per_s": trainings / wall_s, "cpu_ms": cpu_s / trainings * 1e3, "rounds": len(ends)}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else WORKLOADS[sys.argv[1]].rounds)
