"""The phone's own program as trainer: LiteRT, one device after the other. The reference of the fast one."""

import numpy as np

from flsys_ray.core.layout import Vector
from flsys_ray.core.rng import generator
from flsys_ray.errors import UpdateUnusable
from flsys_ray.programs.runner import Program
from flsys_ray.simulation.crew import Recipe
from flsys_ray.simulation.training import Answers, Deltas, Group, TrainerSpec, Work, augmenting


class ProgramTrainer:
    """Trains with the program that phones run."""

    at_once = 0

    def __init__(self, spec: TrainerSpec) -> None:
        self._spec = spec
        self._program = Program.load(spec.program)

    def recipe(self) -> Recipe | None:
        """Return None: LiteRT computes."""
        return None

    def train(self, group: Group) -> Deltas:
        """Train all works of a group."""
        results = [self._one(work, group.bases[work.base]) for work in group.works]
        return Deltas(
            np.stack([delta for delta, _, _ in results]),
            np.array([loss for _, loss, _ in results], np.float64),
            np.array([steps for _, _, steps in results], np.int64),
        )

    def _one(self, work: Work, base: Vector) -> tuple[Vector, float, int]:
        local, examples = self._spec.local, self._spec.training
        try:
            trained = self._program.train(
                base,
                examples.x[work.rows],
                examples.y[work.rows],
                epochs=local.epochs,
                learning_rate=work.rate,
                proximal_mu=local.proximal_mu,
                rng=generator(0, "local-training", work.round, work.assignment_id),
                max_steps=local.max_steps,
                correction=work.correction,
                augment=augmenting(work, self._spec.transforms) if self._spec.transforms else None,
            )
        except UpdateUnusable:  # it diverged: a phone would upload nothing
            return np.full_like(base, np.nan), float("nan"), 1
        return trained.parameters - base, trained.loss, trained.steps

    def evaluate(self, parameters: Vector) -> Answers:
        """Return a version's answers on the held-out examples."""
        held_out = self._spec.held_out
        scores = self._program.infer(parameters, held_out.x)
        chosen = scores.argmax(axis=1).astype(np.int32)
        return Answers(chosen, self._program.evaluate(parameters, held_out.x, held_out.y).loss_sum)
