"""`docs/results.md`: trials are run once and resumed, and the page is made of their lines."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "benchmarks/results"


def script(name: str, *arguments: str | Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "3"}
    command = [sys.executable, str(FOLDER / name), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


@pytest.mark.timeout(280)
def test_a_few_trials_on_synthetic_data_are_run_once_and_shown(tmp_path):
    results, out = tmp_path / "results.jsonl", tmp_path / "results.md"
    said = script("run.py", "--quick", "--out", results)
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert said.count("headline/quick/") == len(lines) == 3
    for line in lines:
        assert 0.0 < line["accuracy"] <= 1.0
        assert line["key"] in line["command"]
    (federated,) = (line for line in lines if "federated" in line["key"])
    assert (federated["versions"], len(federated["digest"])) == (2, 64)
    assert federated["upload_bytes"] == 2 * 4 * 15_044 * 4  # versions, devices, parameters, bytes of each
    assert script("run.py", "--quick", "--out", results) == ""
    script("render.py", "--results", results, "--out", out)
    page = out.read_text()
    shown = f"| federated | {100 * federated['accuracy']:.1f} | {100 * federated['macro_f1']:.1f} | 1 |"
    assert shown in page
    assert "{{" not in page
    assert (tmp_path / "pictures/results.svg").is_file()


def test_the_page_is_what_the_lines_say(tmp_path):
    pytest.importorskip("sklearn")
    script("render.py", "--out", tmp_path / "results.md")
    page = (tmp_path / "results.md").read_text()
    assert page == (ROOT / "docs/results.md").read_text(), "run benchmarks/results/render.py"
    shown = (ROOT / "README.md").read_text().partition("<!-- results -->")[2].partition("<!-- results end -->")[0]
    assert shown.count("\n|") > 2
    assert shown.strip() in page, "run benchmarks/results/render.py"
