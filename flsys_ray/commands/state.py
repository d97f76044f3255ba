"""What `flsys up` leaves for the other commands: where the cloud is, and the operator's key. Mode 0600."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from flsys_ray.cloud.credentials import new_operator_key


@dataclass(frozen=True, slots=True)
class Running:
    """A cloud that is up. `pid` is that of `flsys up`, None in a cluster (`address`)."""

    url: str
    store: str
    pid: int | None
    address: str | None


def state_folder() -> Path:
    """Return the folder: `$XDG_STATE_HOME/flsys`."""
    base = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
    return Path(base) / "flsys"


def default_store() -> str:
    """Return the folder of the store when none is named: `$XDG_DATA_HOME/flsys/store`."""
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return str(Path(base) / "flsys" / "store")


def running() -> Running | None:
    """Return the cloud that is up here, or None. A note of one that died does not count."""
    try:
        found = Running(**json.loads((state_folder() / "cloud.json").read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return found if found.pid is None or _alive(found.pid) else None


def note(cloud: Running) -> None:
    """Write down that a cloud is up."""
    _write(state_folder() / "cloud.json", json.dumps(asdict(cloud)))


def forget() -> None:
    """Take the note away."""
    (state_folder() / "cloud.json").unlink(missing_ok=True)


def kept_operator_key() -> str | None:
    """Return the operator's key in the file that `flsys up` wrote, or None."""
    path = state_folder() / "operator.key"
    return path.read_text().strip() if path.exists() else None


def operator_key(given: str | None) -> str:
    """Return the operator's key for a cloud to start: the one given (and keep it), the one kept, or a new one."""
    kept = kept_operator_key()
    key = given or kept or new_operator_key()
    if key != kept:
        _write(state_folder() / "operator.key", key + "\n")
    return key


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    temporary.replace(path)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
