import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from device_fakes import START, FakeCloud

from flsys_ray.device.clock import VirtualClock


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock(START + 10_000)


@pytest.fixture
def cloud(clock) -> FakeCloud:
    return FakeCloud(clock)


@pytest.fixture
def tmp_path(tmp_path) -> Iterator[Path]:
    """A folder in memory, where there is one: a process may be killed, the machine stays."""
    memory = Path("/dev/shm")
    if not memory.is_dir():
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        yield Path(folder)
