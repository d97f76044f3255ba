"""Where data sets lie on this machine: the one place of this package that reads the environment."""

import os
from pathlib import Path


def data_folder() -> Path:
    """Return the folder of canonical data sets: `FLSYS_DATA`, or else `flsys` in the user's data directory."""
    named = os.environ.get("FLSYS_DATA")
    return Path(named).expanduser() if named else _user_folder("XDG_DATA_HOME", ".local/share")


def cache_folder() -> Path:
    """Return the folder of what can be made again at any time: `flsys` in the user's cache directory."""
    return _user_folder("XDG_CACHE_HOME", ".cache")


def _user_folder(variable: str, default: str) -> Path:
    base = os.environ.get(variable)
    return (Path(base).expanduser() if base else Path.home() / default) / "flsys"
