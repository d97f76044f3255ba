"""One plan's simulations, one a seed, side by side: each goes on to its next evaluated version, then all wait.

So a search that ends trials early sees means over seeds at every version.
"""

from collections.abc import Mapping
from pathlib import Path

from flsys_ray.simulation.checkpoint import Checkpoints
from flsys_ray.simulation.engine import Simulation
from tuning.figures import Figures, curve_of, side_by_side

ROUNDS_A_VERSION = 5


class Heat:
    """Simulations of one model each, by seed. They are on validation users of their own.

    A simulation whose rounds mostly close without a version is given up after `ROUNDS_A_VERSION` times as many rounds
    as it shall train versions: nothing would come of it.
    """

    def __init__(self, simulations: Mapping[int, Simulation], metric: str, target: float) -> None:
        self._simulations, self._metric, self._target = dict(simulations), metric, target
        self._out_of_time: set[int] = set()

    def advance(self) -> None:
        """Have each simulation that goes on train up to its next evaluated version."""
        for seed, simulation in self._simulations.items():
            if self._goes_on(seed) and simulation.run(between=_is_stop).ended == "horizon":
                self._out_of_time.add(seed)

    @property
    def over(self) -> bool:
        """Whether none of them goes on."""
        return not any(map(self._goes_on, self._simulations))

    @property
    def finished(self) -> bool:
        """Whether all of them have trained their last version."""
        return all(map(_finished, self._simulations.values()))

    def reports(self) -> list[list[Figures]]:
        """Return the figures of all seeds at each evaluated version so far, oldest first."""
        curves = (
            curve_of(simulation.state.rows, seed, self._metric, self._target)
            for seed, simulation in self._simulations.items()
        )
        return side_by_side(list(curves))

    def digests(self) -> dict[str, str]:
        """Return the hash of each seed's newest version."""
        return {
            str(seed): trainee.digest()
            for seed, simulation in self._simulations.items()
            for trainee in simulation.trainees.values()
        }

    def save(self, folder: Path) -> None:
        """Save all of it in a folder."""
        for seed, simulation in self._simulations.items():
            Checkpoints(_place(folder, seed), 0.0).save(simulation)

    def restore(self, folder: Path) -> None:
        """Go on from what was saved in a folder. Raises `Conflict` if that is of something else."""
        for seed, simulation in self._simulations.items():
            Checkpoints(_place(folder, seed), 0.0).restore(simulation)

    def _goes_on(self, seed: int) -> bool:
        simulation = self._simulations[seed]
        return not (_finished(simulation) or _hopeless(simulation) or seed in self._out_of_time)


def _is_stop(simulation: Simulation) -> bool:
    """Return whether the round that has just closed made a version that is evaluated, or none is hoped for."""
    row, every = simulation.state.rows[-1], simulation.terms.evaluate_every
    evaluated = row.version is not None and (row.version % every == 0 or _finished(simulation))
    return evaluated or _hopeless(simulation)


def _hopeless(simulation: Simulation) -> bool:
    versions = next(iter(simulation.models.values())).plan.stopping.versions or 0
    return len(simulation.state.rows) >= ROUNDS_A_VERSION * versions


def _finished(simulation: Simulation) -> bool:
    return all(trainee.coordinator.finished for trainee in simulation.trainees.values())


def _place(folder: Path, seed: int) -> Path:
    place = folder / f"seed-{seed}"
    place.mkdir(parents=True, exist_ok=True)
    return place
