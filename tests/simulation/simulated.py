"""A small simulation: the tiny program, users of random examples, and the phone's own trainer. No TensorFlow runs."""

import numpy as np
from tiny_program import CLASSES, tiny_program

from flsys_ray.core.plan import TrainingPlan, parse_plan
from flsys_ray.core.types import Assignment
from flsys_ray.simulation.engine import SimulatedModel, Simulation, Terms
from flsys_ray.simulation.executors import InlineExecutor
from flsys_ray.simulation.experiment import spec_of
from flsys_ray.simulation.population import Pool, Population, make_pool
from flsys_ray.simulation.traces import Traces, always_there, synthetic_traces
from flsys_ray.simulation.training import Examples, TrainerSpec
from flsys_ray.wire.schemas import (
    AssignmentMessage,
    AugmentationMessage,
    ProgramLink,
    SharedSetLink,
    UploadLink,
    WeightsLink,
)

ROUNDS = {"pacing": {"name": "rounds", "cohort": 6, "deadline_s": 60}, "stopping": {"versions": 5}}
BUFFERED = {"pacing": {"name": "buffered", "buffer": 4, "concurrency": 9}, "stopping": {"versions": 8}}


def plan_of(parts: dict, **more: object) -> TrainingPlan:
    return parse_plan({"local": {"epochs": 2, "learning_rate": 0.1}, **parts, **more})


def pool_of_users(users: int = 12, seed: int = 0) -> Pool:
    """Return users of 10 to 39 examples, a held-out part, and a shared set of 10 examples a class."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(0, 2, (len(CLASSES), 4))

    def examples(count: int) -> tuple[np.ndarray, np.ndarray]:
        y = rng.integers(0, len(CLASSES), count).astype(np.int32)
        return (centres[y] + rng.normal(0, 1, (count, 4))).astype(np.float32), y

    parts = [(f"user-{i}", *examples(int(rng.integers(10, 40)))) for i in range(users)]
    y = np.repeat(np.arange(len(CLASSES)), 10).astype(np.int32)
    shared = Examples((centres[y] + rng.normal(0, 1, (len(y), 4))).astype(np.float32), y)
    return make_pool(parts, Examples(*examples(200)), shared)


def models_of(*plans: TrainingPlan, devices: int = 40, classes: int | None = None) -> list[SimulatedModel]:
    pool = pool_of_users()
    population = Population(pool, devices, 0, examples_per_device=20, classes_per_device=classes)
    return [SimulatedModel(f"model-{i}", plan, tiny_program().data, population) for i, plan in enumerate(plans)]


def specs_of(models: list[SimulatedModel]) -> dict[str, TrainerSpec]:
    return {model.name: spec_of(model, "program") for model in models}


def message_of(plan: TrainingPlan, work: Assignment) -> AssignmentMessage:
    """Return an assignment as the cloud words it for a phone."""
    share = SharedSetLink(url="/", sha256="0" * 64, share=plan.augmentation.share or 1, seed=plan.seed)
    transforms = [transform.model_dump(mode="json") for transform in plan.augmentation.transforms]
    shared = share if plan.augmentation.share else None
    compression = plan.compression.model_dump(mode="json")
    return AssignmentMessage(
        assignment_id=work.assignment_id,
        token="t",
        model="m",
        round=work.round,
        version=work.version,
        program=ProgramLink(url="/", sha256="0" * 64),
        weights=WeightsLink(url="/", sha256="0" * 64),
        augmentation=AugmentationMessage(transforms=transforms, shared=shared),
        label_counts=plan.selection.reads_labels,
        local=plan.local.at(work.version),
        upload=UploadLink(url="/", encodings=[compression["name"]], compression=compression, max_bytes=10_000),
        deadline_s=60,
    )


def simulation_of(
    *plans: TrainingPlan,
    workers: int = 1,
    traces: Traces | None = None,
    terms: Terms | None = None,
    devices: int = 40,
    classes: int | None = None,
) -> Simulation:
    models = models_of(*plans, devices=devices, classes=classes)
    executor = InlineExecutor(specs_of(models), workers)
    return Simulation(models, traces or synthetic_traces(devices, 7), executor, terms or Terms(seed=3))


def ideal(devices: int = 40) -> Traces:
    return always_there(devices)
