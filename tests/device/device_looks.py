"""What several tests of the phone need: its own examples, what it sent, a download that broke off, a manifest."""

from collections.abc import Iterator

import httpx2
import numpy as np
from device_fakes import FakeCloud, windows

from flsys_ray.programs.manifest import LeafEntry, Manifest


def own_examples(count: int = 120) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return a filled phone's training and held-out examples: of its blocks of 30 s, every fifth is held out."""
    x, y, start_s = (np.array(column) for column in zip(*windows(count), strict=True))
    blocks = {block: number for number, block in enumerate(dict.fromkeys(start_s // 30))}
    held = np.array([blocks[block] % 5 == 4 for block in start_s // 30])
    return x[~held], y[~held], x[held], y[held]


def bodies(cloud: FakeCloud) -> list[bytes]:
    """Return the update of each assignment, as it came first."""
    return [entry.bodies[0] for entry in cloud.models["har-wild"].assignments.values()]


def broken_off(cloud: FakeCloud, request: httpx2.Request, at: int) -> httpx2.Response:
    """Answer a download with a connection that breaks off after `at` bytes."""
    answered = cloud._route(request)

    def part() -> Iterator[bytes]:
        yield answered.content[:at]
        raise httpx2.ReadError("broke off", request=request)

    return httpx2.Response(200, content=part(), headers={"ETag": answered.headers["ETag"]})


def manifest_of(trained: int) -> Manifest:
    """Return the manifest of a program with `trained` parameters that are trained, and behind them one that is not."""
    leaves = (
        LeafEntry(name="kernel", shape=(trained,), offset=0, trainable=True),
        LeafEntry(name="mean", shape=(1,), offset=trained, trainable=False),
    )
    return Manifest(
        name="m", flatbuffer_sha256="0" * 64, parameters=trained + 1, slots=0, batch_size=4, input_shape=(2,),
        input_dtype="float32", classes=("a", "b"), local_optimizer="sgd", layout=leaves,
    )  # fmt: skip
