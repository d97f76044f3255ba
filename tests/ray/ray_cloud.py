"""What the tests on a real Ray cluster share."""

import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

OPERATOR_KEY = "operator-key-of-the-ray-tests"
PROGRAM = """
import sys, pathlib, keras, flsys_ray
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(64, activation="relu"), keras.layers.Dense(3)])
program = flsys_ray.compile(model, classes=["a", "b", "c"], batch_size=8, name="small")
pathlib.Path(sys.argv[1]).write_bytes(program.data)
"""
PARAMETERS = 515  # of that program: enough for a file of them to be more than its header


@dataclass(frozen=True)
class Up:
    """A cloud that is up: its address, and the folder of its store."""

    url: str
    store: str


def compiled(path: Path) -> bytes:
    """Return a small real program, compiled in a process of its own: this one must stay free of TensorFlow."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(path)], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr[-2000:]
    return path.read_bytes()


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
