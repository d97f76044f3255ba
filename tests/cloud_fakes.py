"""What tests of the cloud share: a clock set by hand, a store that fails when told, a program without LiteRT."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from flsys_ray.core.types import OptimizerState, Version
from flsys_ray.programs.manifest import LeafEntry, Manifest, pack
from flsys_ray.storage.base import ObjectStore, StoredObject

START = 1_800_000_000.0
SIZE = 6


@dataclass
class Clock:
    """UTC seconds that pass when told."""

    now: float = START

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class Crash(BaseException):
    """The process died here. No `except Exception` of the platform sees it."""


@dataclass
class FaultyStore(ObjectStore):
    """A store that calls `before` and `after` around every call, with its verb and key; either may raise."""

    inner: ObjectStore
    before: Callable[[str, str], None] = lambda verb, key: None
    after: Callable[[str, str], None] = lambda verb, key: None
    calls: list[tuple[str, str]] = field(default_factory=list)

    def put_new(self, key: str, body: bytes) -> str:
        return self._around("put_new", key, lambda: self.inner.put_new(key, body))

    def swap(self, key: str, body: bytes, etag: str) -> str:
        return self._around("swap", key, lambda: self.inner.swap(key, body, etag))

    def get(self, key: str, start: int = 0, end: int | None = None) -> StoredObject:
        return self._around("get", key, lambda: self.inner.get(key, start, end))

    def list(self, prefix: str, after: str = "") -> Iterator[str]:
        return self._around("list", prefix, lambda: iter([*self.inner.list(prefix, after)]))

    def remove(self, key: str) -> None:
        self._around("remove", key, lambda: self.inner.remove(key))

    def _around(self, verb, key, call):
        self.calls.append((verb, key))
        self.before(verb, key)
        result = call()
        self.after(verb, key)
        return result


def fake_program() -> bytes:
    """Return a file with a manifest of two leaves (6 parameters) in front of which lies no flatbuffer."""
    body = b"no flatbuffer"
    layout = (
        LeafEntry(name="dense/kernel", shape=(2, 2), offset=0, trainable=True),
        LeafEntry(name="dense/bias", shape=(2,), offset=4, trainable=True),
    )
    manifest = Manifest(
        name="fake", flatbuffer_sha256=hashlib.sha256(body).hexdigest(), parameters=SIZE, slots=0, batch_size=4,
        input_shape=(2,), input_dtype="float32", classes=("a", "b"), local_optimizer="sgd", layout=layout,
    )  # fmt: skip
    return pack(body, manifest)


def fake_initial(program: bytes, seed: int) -> Version:
    """Return version 0 of the fake program, as `initial_version` does of a real one."""
    return Version(0, np.full(SIZE, seed, dtype=np.float32), OptimizerState())
