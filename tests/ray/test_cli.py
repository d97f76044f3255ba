"""The command line by hand: a cloud of its own in subprocesses, phones, `kill -9` of everything, and the wrong ways.

The scripts of docs/guide.md that need a cloud run here too.
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import pytest
from doc_blocks import ROOT, blocks_of
from ray_cloud import free_port

READY_S = 120.0
PLAN = """
pacing: {name: rounds, cohort: 4, deadline_s: 20}
selection: first_come
local: {epochs: 1, max_steps: 2}
"""
GUIDE = [block for block in blocks_of(ROOT / "docs" / "guide.md") if block.mark == "cloud"]


@dataclass
class Machine:
    """A machine with a home of its own: what an operator and a developer have at hand in their terminals."""

    home: Path
    port: int
    variables: dict[str, str] = field(default_factory=dict)

    @property
    def store(self) -> Path:
        return self.home / "store"

    def environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("FLSYS_", "RAY_"))}
        folders = {f"XDG_{kind}_HOME": str(self.home / kind.lower()) for kind in ("STATE", "DATA", "CACHE")}
        own = {"FLSYS_DATA": str(self.home / "data"), "RAY_AUTH_MODE": "disabled", "PYTHONUNBUFFERED": "1"}
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        return {**kept, **folders, **own, "PATH": path, "TF_CPP_MIN_LOG_LEVEL": "3", **self.variables}

    def start(self, *words: str, log: IO[str]) -> "subprocess.Popen[str]":
        """Start a command in a process group of its own."""
        command = [sys.executable, "-m", "flsys_ray", *words]
        return subprocess.Popen(
            command,
            cwd=self.home,
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            start_new_session=True,
        )

    def run(self, *words: str) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "flsys_ray", *words]
        return subprocess.run(
            command, cwd=self.home, env=self.environment(), capture_output=True, text=True, timeout=120
        )

    def told(self, *words: str) -> str:
        """Run a command that must succeed; return what it printed."""
        done = self.run(*words)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def read(self, *words: str) -> Any:
        """Run a command with `--json`."""
        return json.loads(self.told(*words, "--json"))

    def refused(self, *words: str) -> str:
        """Run a command that must fail with one clear line; return the line."""
        done = self.run(*words)
        lines = [line for line in done.stderr.splitlines() if line]
        assert done.returncode == 1, done.stdout + done.stderr
        assert len(lines) == 1, done.stderr
        assert lines[0].startswith("flsys: ")
        return lines[0]


class Up:
    """`flsys up`, with all processes that it starts."""

    def __init__(self, machine: Machine) -> None:
        self._log = (machine.home / "up.log").open("a")
        self.process = machine.start("up", "--store", str(machine.store), "--port", str(machine.port), log=self._log)
        timer = threading.Timer(READY_S, self.kill)
        timer.start()
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        timer.cancel()
        assert line == f"ready http://127.0.0.1:{machine.port}\n", (machine.home / "up.log").read_text()[-2000:]

    def kill(self) -> None:
        """`kill -9` of everything at once, as when the power goes."""
        for group in {os.getpgid(pid) for pid in self._family()}:
            os.killpg(group, signal.SIGKILL)
        self.process.wait(30)

    def _family(self) -> list[int]:
        """Return this process and all below it: Ray's daemons, the replicas and the models' actors."""
        parents = {}
        for stat in Path("/proc").glob("[0-9]*/stat"):
            try:
                parents[int(stat.parent.name)] = int(stat.read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
        family = [self.process.pid]
        for pid in family:
            family += [child for child, parent in parents.items() if parent == pid]
        return family

    def close(self) -> None:
        if self.process.poll() is None:
            self.kill()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._log.close()


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Machine:
    """A machine with a small synthetic data set, a plan, and no cloud."""
    made = Machine(tmp_path_factory.mktemp("home"), free_port())
    made.told("data", "synthesize", "--users", "8", "--minutes", "3")
    (made.home / "small.yaml").write_text(PLAN)
    return made


@pytest.fixture(scope="module")
def up(machine: Machine) -> Iterator[list[Up]]:
    """The cloud; the last one of the list is the one that is up."""
    ups = [Up(machine)]
    created = machine.read("app", "create", "by-hand")
    machine.variables |= {"FLSYS_APP_KEY": created["key"], "FLSYS_ENROL_KEY": created["enrol_key"]}
    yield ups
    for each in ups:
        each.close()


DEMO_CLOUD = """
import sys
import threading
import time
from pathlib import Path
from flsys_ray.commands.demo_cloud import own_cloud

with own_cloud(Path(sys.argv[1])) as url:
    print(url, flush=True)
    threading.Event().wait()
"""


def pids_of_folder(folder: Path) -> list[int]:
    """Return the processes whose environment names a folder: a demo's cloud and all of its Ray."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(folder).encode() in (process / "environ").read_bytes():
                found.append(int(process.name))
        except OSError:
            continue
    return found


def of_folder(folder: Path) -> list[str]:
    """Return the command lines of these processes."""
    found = []
    for pid in pids_of_folder(folder):
        try:
            found.append(Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " "))
        except OSError:
            continue
    return found


def run_phones(machine: Machine, count: int, until: int) -> Any:
    return machine.read(
        *("devices", "run", "--count", str(count), "--until-version", str(until), "--data", "synthetic-har"),
        *("--folder", "phones", "--models", "by-hand"),
    )


def version_of(machine: Machine) -> int:
    return int(machine.read("models", "show", "by-hand")["version"])


def test_without_a_cloud_every_command_says_so(machine: Machine) -> None:
    for words in (["app", "create", "x"], ["models", "list", "--app-key", "k"], ["device", "run", "--user", "u"]):
        line = machine.refused(*words, *(["--app-key", "k"] if words[0] == "device" else []))
        assert "no cloud is up on this machine: run `flsys up`" in line
    assert "no cloud is up" in machine.refused("down")
    assert "is the cloud up?" in machine.refused("models", "list", "--app-key", "k", "--url", "http://127.0.0.1:9")


def test_a_port_in_use_is_named(machine: Machine) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        line = machine.refused("up", "--port", str(port), "--store", str(machine.store))
    assert f"cannot listen on 127.0.0.1:{port}: Address already in use" in line


def test_the_demo_trains_two_models_of_two_apps_on_the_same_phones(machine: Machine) -> None:
    machine.told("data", "synthesize", "--users", "10", "--texts", "6")
    kept = machine.home / "demo"
    report = machine.read("demo", "--phones", "4", "--versions", "2", "--keep", str(kept))
    assert report == json.loads((kept / "demo.json").read_text())
    assert [(model["model"], model["app"]) for model in report["models"]] == [
        ("har-wild", "fitness"),
        ("sentiment", "keyboard"),
    ]
    assert [model["plan"]["pacing"]["name"] for model in report["models"]] == ["rounds", "buffered"]
    assert [model["plan"]["aggregation"]["name"] for model in report["models"]] == ["weighted_mean", "clipping"]
    for model in report["models"]:
        assert [result["version"] for result in model["versions"]] == [0, 1, 2]
        assert all(result["source"] == "synthetic" and 0 <= result["accuracy"] <= 1 for result in model["versions"])
        assert 0 < model["commonest"]["accuracy"] < 1
        phones = sorted(path.name for path in (kept / "phones" / model["app"]).glob("phone-*"))
        assert phones == [f"phone-{index:05d}" for index in range(4)]
    assert of_folder(kept) == []


def test_an_interrupted_demo_leaves_no_process_behind(machine: Machine) -> None:
    kept = machine.home / "interrupted"
    with (machine.home / "interrupted.log").open("w") as log:
        demo = machine.start("demo", "--phones", "4", "--versions", "500", "--keep", str(kept), log=log)
        try:
            assert demo.stdout is not None
            while not demo.stdout.readline().startswith("phones"):
                assert demo.poll() is None, (machine.home / "interrupted.log").read_text()
            assert of_folder(kept) != []
            demo.send_signal(signal.SIGINT)
            assert demo.wait(90) == 128 + signal.SIGINT
        finally:
            demo.kill()
            demo.wait(30)
            demo.stdout.close()
    assert "Traceback" not in (machine.home / "interrupted.log").read_text()
    assert of_folder(kept) == []


def test_the_cloud_of_a_demo_that_is_killed_goes_down(machine: Machine) -> None:
    """`kill -9` of the demo: nobody is there any more to stop its cloud."""
    kept = machine.home / "killed"
    kept.mkdir()
    command = [sys.executable, "-c", DEMO_CLOUD, str(kept)]
    environment = machine.environment() | {"XDG_STATE_HOME": str(kept)}  # so that `of_folder` finds the demo too
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as demo:
        assert demo.stdout is not None
        assert demo.stdout.readline().startswith("http://")
        cloud = [os.pidfd_open(pid) for pid in pids_of_folder(kept) if pid != demo.pid]
        demo.kill()
    assert len(cloud) > 5
    deadline = time.monotonic() + 60
    for process in cloud:  # readable when the process has ended
        assert select.select([process], [], [], deadline - time.monotonic())[0] != []
        os.close(process)


def test_by_hand_from_up_to_an_evaluated_version(machine: Machine, up: list[Up]) -> None:
    assert machine.told("app", "create", "by-hand").strip() == machine.variables["FLSYS_APP_KEY"]
    created = machine.read("models", "create", "by-hand", "--builtin", "har-wild", "--plan", "small.yaml")
    assert created["state"] == "training"
    (machine.home / "broken.yaml").write_text("pacing: {name: rounds, cohort: many}")
    line = machine.refused("models", "create", "broken", "--builtin", "har-wild", "--plan", "broken.yaml")
    assert "pacing.cohort" in line
    assert created["version"] == 0
    report = run_phones(machine, 6, 2)
    assert report["versions"]["by-hand"] >= 2
    assert report["steps"]["uploaded"] >= 8
    assert [model["model"] for model in machine.read("models", "list")] == ["by-hand"]
    rounds = machine.read("models", "rounds", "by-hand")
    assert [closed["committed"] for closed in rounds[:2]] == [1, 2]
    assert all(closed["counters"]["counted"] >= 4 for closed in rounds[:2])
    results = machine.read("models", "evaluate", "by-hand", "--data", "synthetic-har", "--version", "0,latest")
    assert [result["version"] for result in results] == [0, version_of(machine)]
    assert all(result["source"] == "synthetic" and 0 <= result["accuracy"] <= 1 for result in results)
    assert machine.told("models", "show", "by-hand").startswith("by-hand: training, version ")
    assert "cohort: 4" in machine.told("models", "show", "by-hand", "--plan")


def test_wrong_names_and_keys_are_said_in_one_line(machine: Machine, up: list[Up]) -> None:
    assert "a cloud is up already" in machine.refused("up")
    assert "no-such-model" in machine.refused("models", "show", "no-such-model")
    assert "app key" in machine.refused("models", "list", "--app-key", "flsys_app_by-hand_wrong")
    assert "no app key: give --app-key" in machine.refused("models", "rounds", "by-hand", "--app-key", "")
    assert "operator" in machine.refused("app", "create", "x", "--operator-key", "wrong")
    assert "no-such-data" in machine.refused("models", "evaluate", "by-hand", "--data", "no-such-data")
    run = ("device", "run", "--data", "synthetic-har", "--models", "by-hand")
    assert "no user 'nobody'; it has synthetic-0001" in machine.refused(*run, "--user", "nobody")
    assert "no-such-model" in machine.refused(*run[:4], "--models", "no-such-model", "--user", "synthetic-0001")


def test_kill_9_of_everything_in_the_middle_loses_nothing(machine: Machine, up: list[Up]) -> None:
    before = version_of(machine)
    with (machine.home / "phones.log").open("w") as log:
        phones = machine.start(
            *("devices", "run", "--count", "6", "--until-version", str(before + 3), "--data", "synthetic-har"),
            *("--folder", "phones", "--models", "by-hand", "--seconds", "90"),
            log=log,
        )
        try:
            assert phones.stdout is not None
            assert "6 phones" in phones.stdout.readline()
            while f": version {before + 1} from" not in phones.stdout.readline():
                assert phones.poll() is None, (machine.home / "phones.log").read_text()
            up[-1].kill()
            kept = {key.name for key in (machine.store / "models/by-hand/by-hand/versions").iterdir()}
            updates = {key.name for key in (machine.store / "models/by-hand/by-hand/rounds").rglob("updates/*")}
            up.append(Up(machine))
            phones.communicate(timeout=100)
            assert phones.returncode == 0, (machine.home / "phones.log").read_text()
        finally:
            phones.kill()
            phones.wait(30)
            phones.stdout.close()
    rounds = machine.read("models", "rounds", "by-hand")
    committed = [closed["committed"] for closed in rounds if closed["committed"] is not None]
    assert committed == list(range(1, committed[-1] + 1)), "versions must rise by one"
    assert committed[-1] >= before + 3
    assert kept <= {key.name for key in (machine.store / "models/by-hand/by-hand/versions").iterdir()}
    assert updates <= {key.name for key in (machine.store / "models/by-hand/by-hand/rounds").rglob("updates/*")}
    in_versions = [line for n in committed for line in _updates_of(machine, n)]
    assert len(in_versions) == len(set(in_versions)), "an update is in two versions"


def _updates_of(machine: Machine, version: int) -> list[str]:
    [manifest] = (machine.store / "models/by-hand/by-hand/versions").glob(f"*{version}.json")
    return [line["assignment_id"] + line["device_id"] for line in json.loads(manifest.read_text())["updates"]]


def test_the_scripts_of_the_guide_run_in_their_order(machine: Machine, up: list[Up], tmp_path: Path) -> None:
    machine.variables["FLSYS_URL"] = f"http://127.0.0.1:{machine.port}"
    try:
        printed = []
        for block in GUIDE:
            command = [sys.executable, "-c"] if block.language == "python" else ["bash", "-euo", "pipefail", "-c"]
            done = subprocess.run(
                [*command, block.text],
                cwd=tmp_path,
                env=machine.environment(),
                capture_output=True,
                text=True,
                timeout=120,
            )
            assert done.returncode == 0, f"{block}: {done.stdout}{done.stderr}"
            printed.append(done.stdout)
    finally:
        del machine.variables["FLSYS_URL"]
    assert len(printed) == len(GUIDE) >= 6
    assert "3 ('still',)" in printed[2], printed[2]
    assert printed[3].startswith("finished 3"), printed[3]


def test_down_takes_it_down(machine: Machine, up: list[Up]) -> None:
    assert machine.told("models", "stop", "by-hand").startswith("by-hand: finished, version ")
    assert machine.told("down") == f"down http://127.0.0.1:{machine.port}\n"
    assert up[-1].process.wait(60) == 0
    assert "no cloud is up" in machine.refused("down")
