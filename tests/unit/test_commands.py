"""The parts of the command line that need no cluster: its state files, its options, models and data sets at hand."""

import json
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rich.table import Table
from typer.testing import CliRunner

from flsys_ray import cli
from flsys_ray.commands import demo_apps, options, state
from flsys_ray.commands.fleets import for_phones, too_few
from flsys_ray.core.plan import TrainingPlan, parse_plan, parse_plan_yaml
from flsys_ray.errors import InvalidInput, PlanInvalid
from flsys_ray.models import base
from flsys_ray.wire.developer_schemas import AppCreated

RUNNER = CliRunner()
SMALL = ("data", "synthesize", "--users", "3", "--minutes", "1")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home without a cloud, keys or data."""
    for name in ("FLSYS_URL", "FLSYS_APP_KEY", "FLSYS_OPERATOR_KEY"):
        monkeypatch.delenv(name, raising=False)
    for name in ("XDG_STATE_HOME", "XDG_DATA_HOME", "XDG_CACHE_HOME", "FLSYS_DATA"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    return tmp_path


def told(*words: str) -> str:
    result = RUNNER.invoke(cli.app, list(words), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def misused(*words: str) -> str:
    """Call with wrong options; return what was said."""
    result = RUNNER.invoke(cli.app, list(words))
    assert result.exit_code == 2, result.output
    return result.stderr


def failed(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: str) -> str:
    """Call `main` as the shell does; return the one line that it must print."""
    monkeypatch.setattr("sys.argv", ["flsys", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    printed = capfd.readouterr()
    assert printed.err.startswith("flsys: ")
    assert printed.err.count("\n") == 1
    return printed.err


# State ------------------------------------------------------------------------------------------------------------


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_state_is_for_the_user_alone() -> None:
    before = os.umask(0)
    try:
        state.note(state.Running("http://127.0.0.1:1", "store", os.getpid(), None))
        state.operator_key(None)
    finally:
        os.umask(before)
    folder = state.state_folder()
    assert mode(folder) == 0o700
    assert {path.name: mode(path) for path in folder.iterdir()} == {"cloud.json": 0o600, "operator.key": 0o600}


def test_an_operator_key_is_made_once_and_a_given_one_is_kept() -> None:
    assert state.kept_operator_key() is None
    made = state.operator_key(None)
    assert len(made) > 40
    assert state.operator_key(None) == state.kept_operator_key() == made
    assert state.operator_key("mine") == state.kept_operator_key() == state.operator_key(None) == "mine"


def test_a_note_counts_while_its_process_lives() -> None:
    assert state.running() is None
    here = state.Running("http://127.0.0.1:1", "store", os.getpid(), None)
    state.note(here)
    assert state.running() == here
    with subprocess.Popen(["true"]) as ended:
        pass
    state.note(state.Running("http://127.0.0.1:1", "store", ended.pid, None))
    assert state.running() is None
    in_a_cluster = state.Running("http://127.0.0.1:1", "store", None, "auto")
    state.note(in_a_cluster)
    assert state.running() == in_a_cluster
    state.forget()
    state.forget()
    assert state.running() is None


@pytest.mark.parametrize("text", ["", "{", "[]", '{"url": 1}', "\x00"])
def test_a_damaged_note_is_no_cloud(text: str) -> None:
    state.state_folder().mkdir(parents=True)
    (state.state_folder() / "cloud.json").write_text(text)
    assert state.running() is None


def test_metrics_ports_of_a_running_cluster_are_rays(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    line = failed(capfd, monkeypatch, "up", "--address", "auto", "--metrics-port", "9090")
    assert "give it to `ray start` instead" in line


# Options ----------------------------------------------------------------------------------------------------------


def test_where_the_cloud_is() -> None:
    with pytest.raises(InvalidInput, match="run `flsys up`, or name one with --url"):
        options.cloud_url(None)
    state.note(state.Running("http://127.0.0.1:1", "store", os.getpid(), None))
    assert options.cloud_url(None) == "http://127.0.0.1:1"
    assert options.cloud_url("http://there/") == "http://there"


def test_names_with_commas() -> None:
    assert options.split_names(" a, b,,") == ("a", "b")
    with pytest.raises(InvalidInput, match="expected names with commas"):
        options.split_names(" , ")


def test_long_lines_stay_whole(capsys: pytest.CaptureFixture[str]) -> None:
    options.console.print("word " * 60 + "end")
    table = Table("name", "title")
    table.add_row("x", "long " * 40 + "title")
    options.print_table(table)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == "word " * 60 + "end"
    assert any("long " * 40 + "title" in line for line in printed)


def test_wrong_usage_exits_with_2_and_names_what_is_wrong() -> None:
    assert "--port" in misused("up", "--port", "70000")
    assert "--prot" in misused("up", "--prot", "1")
    assert "'name'" in misused("models", "show")
    assert "blah" in misused("models", "blah")
    assert "plan.yaml" in misused("models", "create", "m", "--builtin", "har-wild", "--plan", "plan.yaml")
    assert "--count" in misused("devices", "run", "--count", "0")
    assert "--user" in misused("device", "run")


def test_failures_are_one_line_and_1(
    home: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def line(*words: str) -> str:
        return failed(capfd, monkeypatch, *words)

    assert "either --builtin NAME or --program FILE" in line("models", "create", "m")
    assert "'har-wlid'; there are: har-wild" in line("models", "show", "har-wlid")
    assert "no app key: give --app-key" in line("models", "rounds", "m")
    assert "not copied as it was printed" in line("models", "rounds", "m", "--app-key", "clé", "--url", "http://x")
    state.note(state.Running("http://127.0.0.1:1", "store", os.getpid(), None))
    assert "no operator key on this machine" in line("app", "create", "a")
    assert not (state.state_folder() / "operator.key").exists(), "only `flsys up` makes a key"
    assert "`flsys down` first" in line("up")
    state.forget()
    (home / "file").write_text("")
    assert "Not a directory" in line(*SMALL, "--out", str(home / "file"))
    assert "there are recipes for" in line("data", "build", "no-such-data")
    program = home / "program"
    program.write_bytes(b"")
    wrong = home / "plan.yaml"
    wrong.write_text("pacing: {name: rounds, cohort: many}\nlocal: {epoch: 3}")
    create = ("models", "create", "m", "--app-key", "k", "--url", "http://127.0.0.1:1")
    said = line(*create, "--program", str(program), "--plan", str(wrong))
    assert "pacing.cohort" in said
    assert "local.epoch" in said
    wrong.write_text("a: [\nb: {")
    assert "plan: not YAML" in line(*create, "--program", str(program), "--plan", str(wrong))
    wrong.write_bytes(b"\xff\xfe\x00")
    assert "is not a text file" in line(*create, "--program", str(program), "--plan", str(wrong))
    assert "plan.yaml is not a text file" in line("simulate", str(wrong), "--data", "synthetic-har")
    assert "a program file needs a training plan" in line(*create, "--program", str(program))
    wrong.write_text("")
    said = line(*create, "--program", str(program), "--plan", str(wrong))
    assert said == "flsys: http://127.0.0.1:1: no answer (ConnectError): is the cloud up?\n"


def test_a_missing_part_is_named_with_its_extra(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "app", lambda: __import__("ai_edge_litert_that_is_not_there"))
    with pytest.raises(ModuleNotFoundError):
        cli.main()

    def without_ray() -> None:
        raise ModuleNotFoundError("No module named 'ray'", name="ray.serve")

    monkeypatch.setattr(cli, "app", without_ray)
    with pytest.raises(SystemExit):
        cli.main()
    assert capfd.readouterr().err == "flsys: this command needs ray: pip install 'flsys-ray[cloud]'\n"


def test_version() -> None:
    assert told("--version").startswith("flsys ")


# Models that come with the platform -------------------------------------------------------------------------------


def test_the_default_plan_is_printed_as_yaml_that_parses_back() -> None:
    printed = parse_plan_yaml(told("models", "show", "har-wild", "--plan"))
    assert isinstance(printed, TrainingPlan)
    assert printed == parse_plan(base.get("har-wild").default_plan())
    with pytest.raises(PlanInvalid):
        parse_plan_yaml(told("models", "show", "har-wild"))


def test_built_in_models_are_listed_and_shown() -> None:
    assert "har-wild" in told("models", "list")
    [listed] = [model for model in json.loads(told("models", "list", "--json")) if model["name"] == "har-wild"]
    shown = json.loads(told("models", "show", "har-wild", "--json"))
    assert shown["summary"] == listed["summary"]
    assert shown["classes"] == list(base.get("har-wild").classes)
    assert "classes: walking, jogging" in told("models", "show", "har-wild")


# Data -------------------------------------------------------------------------------------------------------------


def entries() -> dict[str, Any]:
    return {entry["name"]: entry for entry in json.loads(told("data", "list", "--json"))}


def test_data_are_synthesized_and_listed(home: Path) -> None:
    assert entries()["synthetic-har"]["state"] == "made at need"
    assert entries()["motionsense"]["state"] == "absent"
    made = json.loads(told(*SMALL, "--json"))
    assert made["name"] == "synthetic-har"
    assert made["users"] == 3
    found = entries()["synthetic-har"]
    assert (found["state"], found["source"]) == ("ready", "synthetic")
    assert (found["users"], found["windows"]) == (3, made["windows"])
    assert told("data", "list").count("SYNTHETIC") >= 1
    assert told(*SMALL, "--out", str(home / "elsewhere")) == f"synthetic-har: 3 users, {made['windows']} windows\n"
    both = [home / folder / "synthetic-har" / "windows.parquet" for folder in ("flsys_data", "elsewhere")]
    assert both[0].read_bytes() == both[1].read_bytes(), "same seed, same data"


def test_data_are_built_from_local_copies(home: Path) -> None:
    folder = home / "copies" / "A_DeviceMotion_data" / "wlk_7"
    folder.mkdir(parents=True)
    axes = [f"{part}.{axis}" for part in ("gravity", "userAcceleration") for axis in "xyz"]
    rows = "".join(f"{i},0,-1,0,0,0.{i % 9},0\n" for i in range(500))
    (folder / "sub_1.csv").write_text("," + ",".join(axes) + "\n" + rows)
    built = json.loads(told("data", "build", "motionsense", "--from", str(home / "copies"), "--json"))
    assert built == {"name": "motionsense", "users": 1, "windows": 3}
    assert entries()["motionsense"]["state"] == "ready"


@pytest.mark.parametrize(("phones", "cohort"), [(100, 32), (40, 32), (39, 31), (24, 19), (2, 1), (1, 1)])
def test_a_cohort_is_not_larger_than_the_phones_fill(phones, cohort):
    plan = parse_plan({"pacing": {"cohort": 32, "over_selection": 1.25, "quorum": 8}})
    fitted = for_phones(plan, phones).pacing
    assert fitted.cohort == cohort
    assert fitted.slots <= max(phones, 2)
    assert fitted.needed <= cohort


@pytest.mark.parametrize(("phones", "concurrency"), [(100, 32), (24, 24), (1, 1)])
def test_a_buffer_has_not_more_phones_at_work_than_there_are(phones, concurrency):
    plan = parse_plan({"pacing": {"name": "buffered", "buffer": 10, "concurrency": 32}})
    fitted = for_phones(plan, phones)
    assert fitted.pacing == plan.pacing.model_copy(update={"concurrency": concurrency})


# The demo ---------------------------------------------------------------------------------------------------------

PARTS = (demo_apps.FITNESS, demo_apps.KEYBOARD)


@pytest.mark.parametrize("phones", [1, 2, 7, 41, 48, 500])
def test_the_apps_of_the_demo_never_want_more_phones_than_there_are(phones):
    plans = [demo_apps.plan_of(part, phones, versions=3) for part in PARTS]
    assert sum(plan.pacing.slots for plan in plans) <= max(phones, 3)  # a cohort of one still asks two
    assert [plan.stopping.versions for plan in plans] == [3, 3]
    assert len({plan.pacing.name for plan in plans}) == len({plan.aggregation.name for plan in plans}) == 2


def test_the_plans_of_the_demo_in_words():
    lines = [demo_apps.plan_line(demo_apps.plan_of(part, 48, versions=20)) for part in PARTS]
    assert lines == [
        "rounds of 16 updates, 20 phones asked; weighted_mean; server sgd",
        "buffered, a version every 8 updates, 12 phones at work; clipping of weighted_mean; server adam",
    ]


@pytest.fixture
def small_data(home: Path) -> None:
    told("data", "synthesize", "--users", "5", "--minutes", "3")
    told("data", "synthesize", "--users", "10", "--texts", "6")


@pytest.mark.usefixtures("small_data")
def test_what_a_phone_of_the_demo_holds(home: Path):
    fitness, keyboard = (
        demo_apps.Training.of(
            part,
            part.model,
            demo_apps.opened(part, None),
            "http://127.0.0.1:1",
            AppCreated(app_id="acme", key="k", enrol_key="e"),
        )
        for part in PARTS
    )
    assert (len(fitness.users), len(keyboard.users)) == (4, 8)
    assert fitness.on_a_phone(4) == fitness.on_a_phone(3) == "the sensor data of one user"
    assert fitness.on_a_phone(5) == "the sensor data of one user, or a part of them"
    held = [keyboard.on_a_phone(count) for count in (8, 4, 3)]
    assert held == ["the texts of one user", "the texts of 2 users", "the texts of 2 or 3 users"]
    for training in (fitness, keyboard):
        training.cloud.close()


@pytest.mark.usefixtures("small_data")
def test_data_that_the_demo_cannot_use_are_refused_before_anything_starts(capfd, monkeypatch):
    said = failed(capfd, monkeypatch, "demo", "--data", "synthetic-texts")
    assert said == "flsys: data set synthetic-texts holds texts, and har-wild learns from windows\n"
    said = failed(capfd, monkeypatch, "demo", "--texts", "synthetic-har")
    assert said == "flsys: data set synthetic-har holds windows, and sentiment learns from texts\n"
    assert "no-such-data" in failed(capfd, monkeypatch, "demo", "--texts", "no-such-data")


def test_too_few_phones_for_a_cohort_are_told_so():
    plan = parse_plan({"pacing": {"cohort": 32, "deadline_s": 60}})
    assert too_few("steps", plan, 32) is None
    note = too_few("steps", plan, 31)
    assert note == (
        "note: steps: its cohort is 32: with 31 phones alone each round waits for its deadline (60 s) "
        "and needs 16 updates"
    )


def test_a_command_ends_when_its_parent_closes_its_input(home: Path):
    command = [sys.executable, "-m", "flsys_ray.commands.with_parent", "watch", "--url", "http://127.0.0.1:9"]
    pipe, environment = subprocess.PIPE, os.environ | {"FLSYS_APP_KEY": "k", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, text=True) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert "no answer" in child.stdout.readline()
        assert child.poll() is None
        child.stdin.close()
        assert child.wait(30) in (-signal.SIGTERM, 128 + signal.SIGTERM)


def test_a_simulation_refuses_a_shared_set_that_no_plan_takes_of(capfd, monkeypatch, tmp_path):
    told(*SMALL)
    plan = tmp_path / "plan.yaml"
    plan.write_text("{}")
    words = ("simulate", str(plan), "--data", "synthetic-har", "--rounds", "1", "--shared-part", "0.1")
    assert "augmentation.share is 0" in failed(capfd, monkeypatch, *words)
