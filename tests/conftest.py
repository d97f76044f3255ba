"""What all tests share: how hypothesis searches, who runs what, and that TensorFlow and BLAS compute on one thread.

A worker of the tests has one core: a second thread of BLAS, which spins while it waits, takes another worker's. And the
simulation's results would depend on the number of threads.

`fast` draws the same examples on every run, so that a failure is found again by running the test again. A wider search:
`pytest --hypothesis-profile=thorough`.
"""

import gc
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

settings.register_profile("fast", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("thorough", settings.get_profile("fast"), derandomize=False, max_examples=2000)
settings.load_profile("fast")

# Files whose tests share what takes long to make: one worker runs all of a line, and makes it once.
TOGETHER = (
    ("simulation/test_simulation_trainers.py", "simulation/test_simulation_chains.py"),
    ("simulation/test_simulation_experiment.py",),
    ("programs/test_models.py",),
    ("programs/test_programs_flatbuffer.py", "programs/test_programs_random.py", "programs/test_programs_runner.py"),
    ("laws/test_attacks.py",),
    ("docs/test_docs_extending.py",),
    ("http/test_http_augmentation.py",),
    ("http/test_http_commands_shared.py",),
    ("http/test_http_public_forms.py",),
    ("unit/test_cloud_on_s3.py",),
    ("unit/test_store_format.py",),
)
GROUPS = {f"tests/{file}": line[0] for line in TOGETHER for file in line}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Have workers take one test after the other, and files of `TOGETHER` as a whole, these first.

    xdist's own groups (`xdist_group`) are not seen under pytest 9.2.
    """
    from xdist.scheduler import LoadScopeScheduling

    assert all((Path(__file__).parents[1] / file).is_file() for file in GROUPS), "a file of TOGETHER has moved"

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return GROUPS.get(nodeid.partition("::")[0], nodeid)

    return Scheduling(config, log)


def pytest_collection_finish() -> None:
    """Take what imports made out of every later collection of garbage: it stays, and it is a million objects."""
    gc.collect()
    gc.freeze()
