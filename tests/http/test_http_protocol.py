"""`docs/protocol.md` is true: its examples run in order against a cloud, and its tables hold all that there is."""

import json
import re
import shlex
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import httpx2
import pytest
from cloud_world import OPERATOR_KEY, World

from flsys_ray import errors
from flsys_ray.core.types import Reason
from flsys_ray.errors import StoreRefusal, all_errors
from flsys_ray.wire.schemas import GiveBackRequest

PAGE = (Path(__file__).parents[2] / "docs" / "protocol.md").read_text()
CLOUD = "http://cloud.test"
BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def table(*headings: str) -> list[list[str]]:
    """Return the cells of the table that begins with these headings, backticks taken off."""
    lines = PAGE.splitlines()
    start = lines.index(f"| {' | '.join(headings)} |") + 2
    rows = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().strip("`") for cell in line.strip("|").split("|")])
    return rows


@dataclass
class Shell:
    """As much of a shell, of curl and of jq as the page uses. What it does not know fails the test."""

    http: httpx2.Client
    folder: Path
    variables: dict[str, str] = field(default_factory=dict)

    def run(self, line: str, status: int | None) -> None:
        assigned = re.fullmatch(r"(\w+)=\$\((.*)\)", line)
        if assigned is None:
            self.curl(self.words(line), status)
            return
        command = assigned[2]
        grep = re.fullmatch(r"grep -i '\^([a-z]+):' (\S+) \| cut -d' ' -f2 \| tr -d '\\r'", command)
        if grep is not None:
            lines = (self.folder / grep[2]).read_text().splitlines()
            (line,) = [line for line in lines if line.lower().startswith(f"{grep[1]}:")]
            self.variables[assigned[1]] = line.split(" ")[1]
            return
        curl, pipe, jq = command.partition(" | jq -r ")
        if pipe:
            found = self.curl(self.words(curl), status).json()
            path = jq
        else:
            name, _, path, file = self.words(command)
            assert name == "jq"
            found = json.loads((self.folder / file).read_text())
        self.variables[assigned[1]] = pick(found, path)

    def words(self, line: str) -> list[str]:
        return [re.sub(r"\$(\w+)", lambda match: self.variables[match[1]], word) for word in shlex.split(line)]

    def curl(self, words: list[str], status: int | None) -> httpx2.Response:
        assert words[0] == "curl"
        arguments: Iterator[str] = iter(words[1:])
        method, url, headers, content, out, dump = None, None, {}, None, None, None
        for word in arguments:
            if word == "-s":
                continue
            if word == "-X":
                method = next(arguments)
            elif word == "-H":
                name, _, value = next(arguments).partition(": ")
                headers[name] = value
            elif word == "--json":
                content = next(arguments).encode()
                headers |= {"Content-Type": "application/json", "Accept": "application/json"}
            elif word == "--data-binary":
                content = (self.folder / next(arguments).removeprefix("@")).read_bytes()
            elif word == "-o":
                out = next(arguments)
            elif word == "-D":
                dump = next(arguments)
            else:
                assert url is None, f"unknown option {word!r}"
                url = word
        assert url is not None
        reply = self.http.request(method or "GET", url.removeprefix(CLOUD), content=content, headers=headers)
        assert reply.status_code == status, (words, reply.text)
        if out is not None:
            (self.folder / out).write_bytes(reply.content)
        if dump is not None:
            (self.folder / dump).write_text("".join(f"{name}: {value}\n" for name, value in reply.headers.items()))
        return reply


def pick(value: object, path: str) -> str:
    """Return what a path of jq, names and indices only, finds."""
    for name, index in re.findall(r"\.(\w+)|\[(\d+)\]", path):
        value = value[name] if name else value[int(index)]
    assert isinstance(value, str)
    return value


def lines_of(block: str) -> list[tuple[int | None, str]]:
    """Return each command of a block and the status that the comment before it announces."""
    found: list[tuple[int | None, str]] = []
    status = None
    for line in block.replace("\\\n", " ").splitlines():
        if line.startswith("# "):
            status = int(line[2:])
        else:
            found.append((status, line))
            status = None
    return found


@pytest.fixture
def played(world: World, tmp_path: Path) -> Shell:
    """Play the whole page."""
    (tmp_path / "steps.tflite").write_bytes(world.program)
    shell = Shell(world.http, tmp_path, {"CLOUD": CLOUD, "OPERATOR_KEY": OPERATOR_KEY})
    for language, block in BLOCK.findall(PAGE):
        if language == "python":
            subprocess.run([sys.executable, "-I", "-c", block], cwd=tmp_path, check=True)
        else:
            for status, line in lines_of(block):
                assert (status is not None) == ("curl" in line), line
                shell.run(line, status)
    return shell


def test_the_examples_run_and_a_version_comes_of_them(played: Shell, world: World):
    assert [*world.store.list("models/acme/steps/versions/")] == [
        f"models/acme/steps/versions/{n:08d}.json" for n in (0, 1, 2)
    ]
    assert (played.folder / "program.tflite").read_bytes() == world.program
    whole = (played.folder / "program.tflite").read_bytes()
    assert whole[1000:] == (played.folder / "rest.tflite").read_bytes()
    app_key = played.variables["NEW_KEY"]
    after = world.http.get("/v1/models/steps/versions/1", headers={"Authorization": f"Bearer {app_key}"}).content
    before = (played.folder / "weights.safetensors").read_bytes()
    for old, new in zip(floats(before), floats(after), strict=True):
        assert new == pytest.approx(old + 0.01, abs=1e-6)


def floats(file: bytes) -> tuple[float, ...]:
    (size,) = struct.unpack("<Q", file[:8])
    return struct.unpack(f"<{(len(file) - 8 - size) // 4}f", file[8 + size :])


def test_every_call_of_the_api_stands_on_the_page_with_its_credential(world: World):
    paths = world.http.get("/openapi.json").json()["paths"]
    kinds = {"operator key": "operator", "app key": "app", "device token": "device"}
    expected = {}
    for path, methods in paths.items():
        for method, what in methods.items():
            names = {kinds[name] for choice in what.get("security", []) for name in choice}
            takes = " or ".join(sorted(names, reverse=True)) or "none"
            tokens = [parameter["name"] for parameter in what.get("parameters", []) if parameter["in"] == "header"]
            expected[f"{method.upper()} {path}"] = takes + (" + assignment" if "Flsys-Assignment" in tokens else "")
    assert {call: credential for call, credential, _ in table("call", "credential", "answer")} == expected


def test_every_call_of_the_api_is_in_an_example(played: Shell, world: World):
    used = {line for _, block in BLOCK.findall(PAGE) for line in block.replace("\\\n", " ").splitlines()}
    text = " ".join(used)
    for call, _, _ in table("call", "credential", "answer"):
        path = call.split()[1]
        if "program/{sha256}" in path:
            assert "$PROGRAM_URL" in text
        elif path.endswith("/update"):
            assert "$UPLOAD_URL" in text
        else:
            pattern = re.escape(path).replace(r"\{model\}", "steps").replace(r"\{app\}", "acme")
            pattern = pattern.replace(r"\{action\}", "(start|pause|resume|stop|archive)")
            pattern = pattern.replace(r"\{assignment_id\}", r"\$ASSIGNMENT").replace(r"\{number\}", r"(\d+|latest)")
            pattern = pattern.replace(r"\{sha256\}", r"([0-9a-f]{64}|\$SHARED)").replace(r"\{way\}", "(full|half|step)")
            pattern = pattern.replace(r"\{device_id\}", r"\$DEVICE_ID")
            pattern = pattern.replace(r"\{generation\}", r"\d+").replace(r"\{kid\}", r"\d+")
            assert re.search(rf"\$CLOUD{pattern}(\s|$)", text), call


def test_every_error_stands_on_the_page():
    rows = {(code, int(status)) for code, status, *_ in table("code", "status", "meaning", "what the phone does")}
    kinds = [kind for kind in all_errors() if not issubclass(kind, StoreRefusal) and kind.__module__ == errors.__name__]
    assert rows == {(kind.code, kind.status) for kind in kinds}


def test_every_reason_of_a_check_in_stands_on_the_page():
    """The other reasons are those of uploads, which a phone hears as 410 or 422."""
    of_uploads = {"deadline-passed", "given-back", "round-over", "too-stale", "unusable", "wrong-model"}
    reasons = {reason for reason, _ in table("reason", "meaning")}
    assert reasons == {*get_args(Reason), "unknown-model", "unavailable"} - of_uploads


def test_every_reason_to_give_back_stands_on_the_page():
    for reason in get_args(GiveBackRequest.model_fields["reason"].annotation):
        assert f"`{reason}`" in PAGE
