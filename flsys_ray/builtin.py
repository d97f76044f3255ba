"""Compiles built-in models, in a process of its own: TensorFlow's gigabyte and its talk stay there."""

import functools
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from flsys_ray.errors import ProgramInvalid
from flsys_ray.models import base


@functools.lru_cache(maxsize=16)
def compile_builtin(name: str, classes: tuple[str, ...] | None = None) -> bytes:
    """Return the program file of a built-in model. A process compiles each once.

    Raises:
        NotFound: there is no such model.
        ProgramInvalid: it cannot be compiled; without the extra `keras`, for want of TensorFlow.
    """
    model = base.get(name)
    with tempfile.TemporaryDirectory(prefix="flsys-compile-") as folder:
        path = Path(folder) / "program.tflite"
        command = [sys.executable, "-m", "flsys_ray.builtin", name, str(path), *(classes or model.classes)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            said = done.stderr.strip().splitlines() or ["it said nothing"]
            why = re.sub(r"^flsys_ray\.errors\.\w+: ", "", said[-1])
            raise ProgramInvalid(f"built-in model {name}: it could not be compiled: {why}")
        return path.read_bytes()


def _compile_here(name: str, path: str, classes: list[str]) -> None:
    from flsys_ray.programs import compile as programs

    programs.compile_builtin(base.get(name), classes).save(path)


if __name__ == "__main__":
    _compile_here(sys.argv[1], sys.argv[2], sys.argv[3:])
