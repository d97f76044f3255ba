"""The Dockerfile, as far as it can be read without Docker: what it copies exists, and nothing floats."""

import fnmatch
import re
import shlex
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
KNOWN = {"FROM", "WORKDIR", "COPY", "RUN", "USER", "ENV", "EXPOSE", "VOLUME", "CMD"}


def instructions(text: str) -> list[tuple[str, str]]:
    """Return (word, rest) of each instruction, continued lines joined, comments left out."""
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    parts = [line.strip().partition(" ") for line in joined.splitlines() if line.strip()]
    return [(word, " ".join(rest.split())) for word, _, rest in parts]


def ignored(name: str, rules: list[str]) -> bool:
    """Whether the build context lacks a file at the root: the last rule that fits decides."""
    out = False
    for rule in rules:
        if fnmatch.fnmatch(name, rule.removeprefix("!")):
            out = not rule.startswith("!")
    return out


def flaws(text: str) -> list[str]:
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    found, stages, user = [], set(), "root"
    for word, rest in instructions(text):
        words = shlex.split(rest) if word != "CMD" else []
        if word not in KNOWN:
            found.append(f"instruction {word}")
        elif word == "FROM":
            if not re.fullmatch(r"python:3\.11\.\d+-slim-bookworm( AS \w+)?", rest):
                found.append(f"base {rest}")
            stages.add(rest.rpartition(" AS ")[2])
            user = "root"
        elif word == "COPY" and words[0].startswith("--from="):
            if words[0].removeprefix("--from=") not in stages:
                found.append(f"stage {words[0]}")
        elif word == "COPY":
            found += [f"source {name}" for name in words[:-1] if not (ROOT / name).exists() or ignored(name, rules)]
        elif word == "RUN":
            found += [f"floats: {call}" for call in re.findall(r"pip install[^&]*", rest) if "--constraint" not in call]
            for extras in re.findall(r"\.whl\)\[([\w,]+)\]", rest):
                found += [f"extra {name}" for name in extras.split(",") if name not in project["optional-dependencies"]]
        elif word == "USER":
            user = rest
    if not re.fullmatch(r"[1-9]\d*", user):
        found.append(f"runs as {user}")
    return found


def test_it_copies_what_exists_and_runs_as_nobody_special() -> None:
    assert flaws(DOCKERFILE) == []


@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("COPY actors actors", "COPY actor actors"),
        ("COPY pyproject.toml", "COPY cluster.yaml"),
        ("USER 1000", "USER root"),
        ("USER 1000\n", ""),
        ("3.11.13-slim-bookworm AS", "latest AS"),
        ("--constraint /tmp/constraints.txt", ""),
        ("[cloud,device,s3]", "[cloud,devices,s3]"),
        ("--from=build", "--from=biuld"),
        ("EXPOSE", "EXPOSES"),
    ],
)
def test_a_typo_is_found(right: str, wrong: str) -> None:
    assert right in DOCKERFILE
    assert flaws(DOCKERFILE.replace(right, wrong, 1))


def test_all_packages_of_the_wheel_are_copied() -> None:
    include = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]["find"]["include"]
    copied = {name for word, rest in instructions(DOCKERFILE) if word == "COPY" for name in rest.split()}
    assert {pattern.rstrip("*") for pattern in include} <= copied
    assert (ROOT / "flsys_ray/data/recipes").resolve().relative_to(ROOT).parts[0] in copied, "a link out of a package"


def test_the_image_starts_what_the_command_line_has() -> None:
    import json

    from typer.main import get_command

    from flsys_ray.cli import app

    [command] = [json.loads(rest) for word, rest in instructions(DOCKERFILE) if word == "CMD"]
    [volume] = [rest for word, rest in instructions(DOCKERFILE) if word == "VOLUME"]
    up = get_command(app).commands[command[1]]  # type: ignore[attr-defined]
    context = up.make_context("up", command[2:])
    assert context.params["store"].startswith(volume)
    assert context.params["port"] == int(next(rest for word, rest in instructions(DOCKERFILE) if word == "EXPOSE"))
