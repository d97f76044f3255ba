"""The example of a third-party app, run as its README says: two short files, and nothing but the public API."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from ray_cloud import OPERATOR_KEY, Up

from flsys_ray.developer import DeveloperClient

EXAMPLE = Path(__file__).parents[2] / "examples" / "third_party_app"
PUBLIC = {"flsys_ray", "flsys_ray.core.plan", "flsys_ray.developer"}
PUBLIC_ON_PHONES = {f"flsys_ray.device.{name}" for name in ("conditions", "configuration", "phone")}
CHANCE = 1 / 3


@pytest.mark.parametrize(("name", "below", "public"), [("developer", 60, PUBLIC), ("phone", 40, PUBLIC_ON_PHONES)])
def test_it_is_short_and_calls_only_what_the_guide_names(name: str, below: int, public: set[str]) -> None:
    text = (EXAMPLE / f"{name}.py").read_text()
    assert len(text.splitlines()) < below
    imports = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import | ast.ImportFrom)]
    modules = {node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in imports}
    assert {module for module in modules if module and module.startswith("flsys_ray")} == public


def test_the_data_are_what_their_script_makes() -> None:
    made = subprocess.run([sys.executable, "make_data.py"], cwd=EXAMPLE, capture_output=True, text=True, timeout=60)
    assert (EXAMPLE / "readings.csv").read_text() == made.stdout


def test_a_keras_model_becomes_a_trained_and_served_one(up: Up, tmp_path: Path) -> None:
    with DeveloperClient(up.url, OPERATOR_KEY) as operator:
        key = operator.create_app("laundry").key
    environment = os.environ | {"FLSYS_URL": up.url, "FLSYS_APP_KEY": key}

    def python(*command: str) -> subprocess.Popen[str]:
        line = [sys.executable, "-W", "ignore", str(EXAMPLE / command[0]), *command[1:]]
        with (tmp_path / f"{command[0]}.err").open("a") as errors:
            return subprocess.Popen(
                line, cwd=tmp_path, env=environment, text=True, stdout=subprocess.PIPE, stderr=errors
            )

    running = [python("developer.py")]
    try:
        assert running[0].stdout is not None
        said = running[0].stdout.readline()
        assert said.startswith("training"), (tmp_path / "developer.py.err").read_text()[-2000:]
        running += [python("phone.py", f"owner-{n}", f"phone-{n}") for n in range(4)]
        outputs = [process.communicate(timeout=200)[0] for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    assert [process.returncode for process in running] == [0] * 5, (tmp_path / "phone.py.err").read_text()[-2000:]
    found = dict(re.findall(r"version (\d): accuracy (\d\.\d\d)", outputs[0]))
    assert float(found["5"]) > max(CHANCE + 0.3, float(found["0"]))
    assert all("version 5" in output for output in outputs[1:])
