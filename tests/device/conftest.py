import pytest
from device_fakes import START, FakeCloud

from flsys_ray.device.clock import VirtualClock


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock(START + 10_000)


@pytest.fixture
def cloud(clock) -> FakeCloud:
    return FakeCloud(clock)
