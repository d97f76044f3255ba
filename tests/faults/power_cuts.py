"""A folder whose power can be cut: what was not synced may be gone, or half of it.

The real `LocalStore` writes into a folder in memory; only its `fsync` is replaced, by one that notes what has become
durable: a file's content, and the names that a folder has at that moment. `cut` then takes away what was never noted,
each piece with an even chance, as a disk may or may not have written it by itself.
"""

import os
import random
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from virtual_time import VirtualLoop

from flsys_ray.storage import local as local_module

IN_MEMORY = "/dev/shm"


class PowerCuts:
    """Notes what is durable under one folder, and forgets the rest when told."""

    def __init__(self, folder: Path, loop: VirtualLoop, rng: random.Random) -> None:
        self.folder = folder
        self.lost = 0
        self._loop = loop
        self._rng = rng
        self._synced_files: set[int] = set()
        self._synced_names: dict[int, set[str]] = {}

    def fsync(self, descriptor: int) -> None:
        """Note what is durable from now on. Others run meanwhile."""
        if self._loop.may_pause:
            self._loop.pause(self._rng.uniform(0.0, 0.01))
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            self._synced_names[status.st_ino] = {*os.listdir(descriptor)}
        else:
            self._synced_files.add(status.st_ino)

    def cut(self) -> None:
        """Cut the power: every process must be dead by now."""
        self._cut(self.folder)

    def _cut(self, folder: Path) -> None:
        durable = self._synced_names.get(folder.stat().st_ino, set())
        for entry in sorted(folder.iterdir()):
            if entry.name not in durable and self._rng.random() < 0.5:
                self.lost += not entry.name.startswith(".")
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            elif entry.is_dir():
                self._cut(entry)
            elif entry.stat().st_ino not in self._synced_files and self._rng.random() < 0.5:
                os.truncate(entry, self._rng.randrange(entry.stat().st_size + 1))


@contextmanager
def folder_in_memory() -> Iterator[Path]:
    """Make a folder that costs no disk, and remove it."""
    where = IN_MEMORY if os.access(IN_MEMORY, os.W_OK) else None
    with tempfile.TemporaryDirectory(dir=where) as folder:
        yield Path(folder)


@contextmanager
def noted_syncs(cuts: PowerCuts) -> Iterator[None]:
    """Have the folder store sync by `cuts`."""
    replaced: dict[str, Any] = {name: getattr(os, name) for name in dir(os)}
    with patch.object(local_module, "os", SimpleNamespace(**replaced | {"fsync": cuts.fsync})):
        yield
