"""docs/operations.md: its table is what the script computes, and the files that it names are there."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/operations.md").read_text()


@pytest.fixture(scope="module")
def capacity() -> ModuleType:
    spec = importlib.util.spec_from_file_location("capacity", ROOT / "benchmarks/capacity.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["capacity"] = module  # where its dataclasses look for themselves
    spec.loader.exec_module(module)
    return module


def test_the_table_is_what_the_script_prints() -> None:
    script = [sys.executable, str(ROOT / "benchmarks/capacity.py")]
    printed = subprocess.run(script, capture_output=True, text=True, timeout=120, check=True).stdout
    table = [line for line in printed.splitlines() if line.startswith("|")]
    assert len(table) == 6
    assert "\n".join(table) in PAGE, "run: python benchmarks/capacity.py"


def test_a_row_is_the_arithmetic_that_the_page_shows(capacity: ModuleType) -> None:
    requests = {"check-in": {"put": 0.0, "get": 0.0}, "upload": {"put": 1.0, "get": 1.0}}
    row = capacity.plan(capacity.Figures(), requests, 10_000_000)
    assert row.check_ins_per_s == pytest.approx(10_000_000 * 12 / 86_400 * 3)
    assert row.uploads_per_s == pytest.approx(10_000_000 / 86_400 * 3)
    assert row.cores == 9  # (4166.7 / 1515 + 347.2 / 167) / 0.6 = 8.05
    assert row.nodes == 4  # 3 workers of four cores, and a head
    uploads_a_month = 10_000_000 * 30
    assert row.requests_usd == pytest.approx(uploads_a_month * (0.005 + 2 * 0.0004) / 1000)
    assert row.out_usd == pytest.approx(uploads_a_month * 842_000 / 1e9 * 0.09)
    assert row.stored_usd == pytest.approx(uploads_a_month * 842_000 / 1e9 * 0.023)


def test_requests_of_the_store_are_those_that_the_promise_needs(capacity: ModuleType) -> None:
    """An upload is one object and one look at the fence; a check-in asks the store nothing once caches are warm."""
    requests = capacity.count_requests(16)
    assert requests["check-in"] == {"put": 0, "get": 0}
    assert 1 <= requests["upload"]["put"] < 1.5
    assert 1 <= requests["upload"]["get"] < 1.5


def test_files_that_the_page_names_are_there() -> None:
    names = set(re.findall(r"(?<![\w/])((?:deploy|tests|benchmarks)/[\w./*-]+\w)", PAGE))
    assert len(names) > 8
    assert [name for name in names if not list(ROOT.glob(name))] == []
