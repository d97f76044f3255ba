"""A worker process of `crew.Crew`: trains groups until its parent is gone.

    python -m flsys_ray.simulation.crew_worker CONNECTION DELTAS WORKS

CONNECTION and DELTAS are file descriptors: a socket to the parent, and the slots, for groups of at most WORKS.
"""

import signal
import sys
from dataclasses import replace
from multiprocessing.connection import Connection

from flsys_ray.simulation.blas_trainer import BlasTrainer
from flsys_ray.simulation.crew import Recipe, SharedArrays
from flsys_ray.simulation.training import Group


def main(connection: Connection, deltas: int, works: int) -> None:
    """Work until the parent closes the connection."""
    recipe: Recipe = connection.recv()
    spec = replace(recipe.spec, training=recipe.examples.examples())
    trainer = BlasTrainer(spec, recipe.chain, recipe.manifest)
    arrays = SharedArrays(deltas, works, recipe.manifest.parameters)
    while True:
        try:
            number, laid = connection.recv()
        except EOFError:
            return
        bases, corrections = arrays.slot(number)
        mine = tuple(
            replace(w, correction=corrections[i] if corrected else None) for i, (w, corrected) in enumerate(laid)
        )
        try:
            made = trainer.train(Group("", mine, dict(enumerate(bases))), out=bases[: len(mine)])
            connection.send((number, made.loss, made.steps))
        except Exception as error:  # the parent raises it
            connection.send((number, error, None))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    main(Connection(int(sys.argv[1])), int(sys.argv[2]), int(sys.argv[3]))
