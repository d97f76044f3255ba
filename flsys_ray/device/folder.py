"""The phone's folder: held by one process at a time, and deleted with the app."""

import fcntl
import os
import shutil
from pathlib import Path

from flsys_ray.errors import Conflict


def lock_folder(folder: Path) -> int:
    """Hold the folder until this process ends or closes the descriptor that this returns.

    Two phones on one database would train the same assignment twice. Raises `Conflict` if it is held already.
    """
    descriptor = os.open(folder / "lock", os.O_CREAT | os.O_RDWR, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise Conflict(f"the phone folder {folder.name!r} is open elsewhere: close that phone first") from error
    return descriptor


def erase_folder(folder: Path) -> None:
    """Uninstall: delete everything that a closed phone left on the disk."""
    os.close(lock_folder(folder))
    shutil.rmtree(folder)
