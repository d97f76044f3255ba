"""What may be loaded by whom. A phone or a ModelActor must not pull in TensorFlow, nor the core anything at all."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import flsys_ray
import flsys_ray.core

HEAVY = ("ray", "tensorflow", "fastapi", "boto3", "keras", "ai_edge_litert")
LIGHT_PACKAGES = ("flsys_ray.errors", "flsys_ray.core", "flsys_ray.wire", "flsys_ray.storage")
CORE = Path(flsys_ray.core.__file__).parent

# The core's whole diet. `time`, `os`, `random`, `logging` and all that does I/O are left out on purpose.
ALLOWED = {
    *("abc", "bisect", "collections", "dataclasses", "enum", "fractions", "functools", "hashlib", "heapq", "itertools"),
    *("math", "operator", "typing", "importlib", "pkgutil"),  # the last two for the registry, which loads code
    *("numpy", "pydantic", "pydantic_core", "yaml", "flsys_ray"),
}
REGISTRY_ONLY = {"importlib", "pkgutil"}
FORBIDDEN_CALLS = {"open", "print", "input", "exec", "eval", "__import__", "breakpoint"}
CORE_FILES = sorted(CORE.rglob("*.py"))


def loaded_by(*modules: str) -> set[str]:
    """Return the top-level packages in a fresh process after it imported `modules`."""
    code = f"import sys, {', '.join(modules)}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    return set(done.stdout.split())


def modules_of(package: str) -> list[str]:
    """Return a package and every module below it, or a plain module's own name."""
    found = importlib.import_module(package)
    paths = getattr(found, "__path__", None)
    if paths is None:
        return [package]
    return [package, *(info.name for info in pkgutil.walk_packages(paths, f"{package}."))]


def test_the_light_parts_load_nothing_heavy():
    modules = [name for package in LIGHT_PACKAGES for name in modules_of(package) if not name.endswith(".s3")]
    assert loaded_by("flsys_ray", *modules) & set(HEAVY) == set()


def test_the_check_sees_what_is_loaded():
    assert {"numpy", "pydantic", "pydantic_core", "yaml", "flsys_ray"} <= loaded_by("flsys_ray.core.plan")


def test_the_phone_loads_no_cloud_and_no_training_framework():
    modules = modules_of("flsys_ray.device")
    assert loaded_by(*modules) & {"ray", "tensorflow", "fastapi", "boto3", "keras"} == set()


def test_a_unit_test_cannot_import_ray():
    with pytest.raises(ImportError):
        importlib.import_module("ray")


@pytest.mark.parametrize("path", CORE_FILES, ids=lambda path: str(path.relative_to(CORE)))
def test_the_core_imports_only_what_is_pure(path):
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.partition(".")[0] for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, "absolute imports only"
            imported.add((node.module or "").partition(".")[0])
    assert imported <= ALLOWED
    if path.name != "registry.py":
        assert not imported & REGISTRY_ONLY


@pytest.mark.parametrize("path", CORE_FILES, ids=lambda path: str(path.relative_to(CORE)))
def test_the_core_does_no_io_and_draws_no_global_randomness(path):
    assert impurities(path.read_text()) == []


@pytest.mark.parametrize(
    "code",
    [
        "open('x')",
        "print('x')",
        "import numpy as np\nnp.random.seed(1)",
        "import numpy as np\nx = np.random.rand(3)",
        "import numpy as np\nnp.load('x')",
        "import numpy as np\nnp.random.default_rng()",
    ],
)
def test_the_scan_finds_impurities(code):
    assert impurities(code)


def impurities(code: str) -> list[str]:
    """Return the calls in `code` that touch the outside or numpy's hidden generator."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FORBIDDEN_CALLS:
            found.append(node.func.id)
        if isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            if name.startswith(("np.random.", "numpy.random.")) and name.count(".") == 2:
                found += [name] if node.attr not in ("Generator", "PCG64") else []
            if name in ("np.load", "np.save", "np.fromfile", "np.memmap", "np.loadtxt", "np.savetxt"):
                found.append(name)
    return found


def test_no_module_of_the_core_is_long():
    lengths = {path: len(path.read_text().splitlines()) for path in CORE_FILES}
    assert {path.name for path, length in lengths.items() if length > 400} == set()
    frame = {path for path in CORE_FILES if path.name == "base.py" or not (path.parent / "base.py").exists()}
    assert sum(lengths[path] for path in frame) < 2000  # beside it, one file an extension


def test_importing_the_platform_starts_nothing():
    assert flsys_ray.__version__
    code = "import threading, flsys_ray; print(threading.active_count())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "1"
