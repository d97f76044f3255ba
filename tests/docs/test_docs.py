"""The documentation is true: commands parse, scripts run, links resolve, generated parts are fresh."""

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from doc_blocks import PAGES, ROOT, Block, all_blocks
from typer.main import get_command

from flsys_ray.cli import app
from flsys_ray.core.plan import parse_plan_yaml

OWNERS_TESTS = {"docs/extending.md"}  # run in a copy by test_docs_extending
TEXT = {".md", ".py", ".yaml", ".yml", ".toml", ".txt", ".json", ".svg", ".sh", ""}
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def committed() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [ROOT / name for name in listed.split("\0") if name]
    return [file for file in files if file.suffix in TEXT and file.is_file() and not file.is_symlink()]


# Generated parts -------------------------------------------------------------------------------------------------


def test_every_command_is_in_cli_md_with_its_help() -> None:
    make_cli = script("make_cli")
    assert (ROOT / "docs" / "cli.md").read_text() == make_cli.page(), "run: python docs/make_cli.py"
    assert len(list(make_cli.pages())) > 15


def test_the_readme_shows_the_saved_outputs() -> None:
    make_readme = script("make_readme")
    text = (ROOT / "README.md").read_text()
    assert make_readme.refreshed(text) == text, "run: python docs/make_readme.py"


def test_the_picture_is_drawn_from_the_saved_figures() -> None:
    printed = (ROOT / "docs/pictures/demo.txt").read_text()
    assert (ROOT / "docs/pictures/demo.svg").read_text().startswith("<?xml")
    report = json.loads((ROOT / "docs/pictures/demo.json").read_text())
    assert len(report["models"]) == 2
    for model in report["models"]:
        first, last = model["versions"][0], model["versions"][-1]
        shown = f"{first['macro_f1']:.3f} -> {last['macro_f1']:.3f}"
        assert re.search(rf"^\W*{model['model']} .*{re.escape(shown)}", printed, re.MULTILINE), "two runs"
    assert f"{report['updates']} updates of {report['phones']} phones" in printed


# Commands --------------------------------------------------------------------------------------------------------


def flsys_lines(block: Block) -> Iterator[list[str]]:
    """Yield the arguments of each call of `flsys` in a script."""
    for line in block.text.replace("\\\n", " ").splitlines():
        line = line.strip().removeprefix("$ ")
        if not re.match(r"(?:[A-Z_]+=\S+ )*flsys( |$)", line):
            continue
        words = shlex.split(line, comments=True)
        yield words[words.index("flsys") + 1 :]


def parse(words: list[str]) -> None:
    """Check a call against the tree of commands and their options. Files that it names need not exist."""
    command: Any = get_command(app)
    context = command.make_context("flsys", [], resilient_parsing=True)
    while hasattr(command, "commands"):
        name, *words = words
        assert name in command.commands, f"no command {name!r}"
        command = command.commands[name]
        context = command.make_context(name, [], parent=context, resilient_parsing=True)
    try:
        command.make_context(command.name, words, parent=context)
    except Exception as error:
        if "does not exist" not in str(error):
            raise


@pytest.mark.parametrize("block", [b for b in all_blocks() if any(flsys_lines(b))], ids=str)
def test_every_flsys_line_of_a_block_parses(block: Block) -> None:
    for words in flsys_lines(block):
        parse(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_flsys_command_in_a_sentence_is_one(page: Path) -> None:
    commands: Any = get_command(app)
    for code in re.findall(r"`flsys ([^`\n]*)`", page.read_text()):
        command, words = commands, shlex.split(code)
        while hasattr(command, "commands") and words and words[0] != "...":
            name, *words = words
            assert name in command.commands, f"`flsys {code}`"
            command = command.commands[name]
        options = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        for word in words:
            assert not word.startswith("--") or word in options, f"`flsys {code}`: no option {word}"


@pytest.mark.parametrize(
    "wrong",
    [
        "flsys bla",
        "flsys models show",
        "flsys up --prot 1",
        "flsys up --port x",
        "flsys models show a b",
        "flsys device run",
    ],
)
def test_a_wrong_line_would_be_found(wrong: str) -> None:
    with pytest.raises(Exception, match=r"."):
        parse(shlex.split(wrong)[1:])


# Scripts ---------------------------------------------------------------------------------------------------------

RUN = [b for b in all_blocks() if b.mark == "run" and b.page not in OWNERS_TESTS]


@pytest.mark.parametrize("block", RUN, ids=str)
def test_scripts_run(block: Block, tmp_path: Path) -> None:
    command = [sys.executable, "-c"] if block.language == "python" else ["bash", "-euo", "pipefail", "-c"]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {"PATH": path, "HOME": str(tmp_path)}
    done = subprocess.run(
        [*command, block.text], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("block", [b for b in all_blocks() if b.language == "python"], ids=str)
def test_python_compiles(block: Block) -> None:
    compile(block.text, str(block), "exec")


@pytest.mark.parametrize("block", [b for b in all_blocks() if b.mark == "plan" and b.page not in OWNERS_TESTS], ids=str)
def test_plans_are_plans(block: Block) -> None:
    parse_plan_yaml(block.text)


# Text ------------------------------------------------------------------------------------------------------------


def anchors(text: str) -> set[str]:
    """Return the anchors that GitHub gives to the headings of a page."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_resolve(page: Path) -> None:
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in LINK.findall(text):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = page.parent / name if name else page
        assert file.exists(), f"{page.name}: {target}"
        if anchor:
            assert anchor in anchors(file.read_text()), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page: Path) -> None:
    folders = "flsys_ray|actors|serve_apps|tuning|tests|benchmarks|docs|datasets"
    written = {block.mark.removeprefix("file=") for block in all_blocks()}
    for name in re.findall(rf"`((?:{folders})/[\w./-]+)`", page.read_text()):
        if not re.search(r"\bNAME\b", name) and name not in written:
            assert (ROOT / name).exists(), f"{page.name}: {name}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_are_finished(page: Path) -> None:
    assert not re.search(r"\b(TODO|FIXME|TBD|XXX)\b", page.read_text())


def test_nothing_committed_belongs_to_one_machine_or_registry() -> None:
    """Folders of a home or a workplace, and hosts that packages are installed from, differ on every machine."""
    hosts = ["pypi" + ".org", "pythonhosted" + ".org", "artifactory", "index" + "-url"]
    shared = {"/", "/tmp", "/var/tmp", "/home", "/srv", "/opt"}  # a checkout may lie there, and so may anything else
    own = {str(ROOT), str(ROOT.parent), str(Path.home()), "/root"} - shared
    places = [rf"(?<![\w.*-]){re.escape(place)}/" for place in own]
    wrong = re.compile("|".join([*map(re.escape, hosts), *places]))
    found = []
    for file in committed():
        text = file.read_text(encoding="utf-8", errors="replace")
        found += [f"{file.relative_to(ROOT)}: {match[0]}" for match in wrong.finditer(text)]
    found = [line for line in found if not line.startswith("tests/docs/test_docs.py")]
    assert not found, "\n".join(found)


def test_the_page_of_series_is_the_codes() -> None:
    from flsys_ray.cloud.meter import SERIES

    text = (ROOT / "docs" / "seeing.md").read_text()
    rows = re.findall(r"^\| `ray_(flsys_\w+)` \| (.*?) \| (.*) \|$", text, re.MULTILINE)
    expected = [
        (
            series.name + ("_total" if series.kind == "counter" else ""),
            ", ".join(f"`{label}`" for label in series.labels),
            series.about,
        )
        for series in SERIES
    ]
    assert rows == expected
