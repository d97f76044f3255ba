"""The files of docs/extending.md, written into a copy of the repository: found, lawful, and usable in a plan."""

import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import pytest
from doc_blocks import ROOT, Block, blocks_of

BLOCKS = blocks_of(ROOT / "docs" / "extending.md")
SCRIPTS = [block for block in BLOCKS if (block.language, block.mark) == ("sh", "run")]
SKIPPED = shutil.ignore_patterns("__pycache__", ".*", "recipes")


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Mapping[str, str]]:
    """A copy of the repository with the files of the page in it, and an environment that uses it."""
    root = tmp_path_factory.mktemp("copy")
    for name in ("flsys_ray", "datasets", "tests/laws"):
        shutil.copytree(ROOT / name, root / name, ignore=SKIPPED)
    (root / "flsys_ray" / "data" / "recipes").symlink_to(root / "datasets")
    for name in ("pyproject.toml", "tests/conftest.py"):
        shutil.copy(ROOT / name, root / name)
    files = [block for block in BLOCKS if block.mark.startswith("file=")]
    assert len(files) >= 6
    for block in files:
        path = root / block.mark.removeprefix("file=")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text)
        if path.name == "pyproject.toml":
            _as_installed(path)
    (root / "bin").mkdir()
    command = root / "bin" / "flsys"
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m flsys_ray "$@"\n')
    command.chmod(0o755)
    places = [str(root), *(str(file.parent) for file in root.glob("*/pyproject.toml"))]
    path = os.pathsep.join([str(root / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(places), "PATH": path}
    environment["PYTEST_ADDOPTS"] = "-p no:cacheprovider"
    return root, environment


def _as_installed(pyproject: Path) -> None:
    """Write what `pip install` would: the entry points of a package."""
    project = tomllib.loads(pyproject.read_text())["project"]
    info = pyproject.parent / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    lines = [
        f"[{group}]\n" + "".join(f"{name} = {target}\n" for name, target in points.items())
        for group, points in project["entry-points"].items()
    ]
    (info / "entry_points.txt").write_text("\n".join(lines))


def run(copy: tuple[Path, Mapping[str, str]], *command: str) -> str:
    root, environment = copy
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def outcomes(copy: tuple[Path, Mapping[str, str]]) -> Iterator[Mapping[Block, "Future[str]"]]:
    """The scripts of the page, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        yield {block: pool.submit(run, copy, "bash", "-euo", "pipefail", "-c", block.text) for block in SCRIPTS}


@pytest.mark.parametrize("block", SCRIPTS, ids=str)
def test_the_commands_of_the_page_run(outcomes: Mapping[Block, "Future[str]"], block: Block) -> None:
    printed = outcomes[block].result()
    if "pytest" in block.text:
        assert " passed" in printed
    if "my_walks" in block.text:
        assert "my_walks: 2 users" in printed


def test_the_plans_of_the_page_are_plans(copy: tuple[Path, Mapping[str, str]]) -> None:
    plans = [b.text for b in BLOCKS if (b.language, b.mark) == ("yaml", "plan")]
    assert len(plans) >= 3
    script = (
        "import sys, flsys_ray; from flsys_ray.core.plan import parse_plan_yaml;"
        "print(flsys_ray.__file__); [print(parse_plan_yaml(text).to_yaml()) for text in sys.argv[1:]]"
    )
    printed = run(copy, sys.executable, "-c", script, *plans)
    assert printed.startswith(str(copy[0]))
    for name in ("name: capped_mean\n  max_norm: 2.5", "name: taking_turns\n  groups: 3", "name: equal_mean"):
        assert name in printed
