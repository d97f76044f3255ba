"""`flsys watch` and `flsys tensorboard` on a cloud in memory, over real HTTP and on its store."""

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cloud_world import OPERATOR_KEY, World, open_world
from served import served
from tiny_program import PARAMETERS
from typer.testing import CliRunner

from flsys_ray import cli
from flsys_ray.cloud.journal import Journal
from flsys_ray.commands import tensorboard, watch
from flsys_ray.commands.sources import cloud_view
from flsys_ray.errors import InvalidInput, TryLater
from flsys_ray.programs.compile import CompiledProgram
from flsys_ray.storage.local import LocalStore

RUNNER = CliRunner()


@pytest.fixture(autouse=True)
def _no_keys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("FLSYS_URL", "FLSYS_APP_KEY", "FLSYS_OPERATOR_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture
def stored(tiny: CompiledProgram, tmp_path: Path) -> Iterator[World]:
    """A cloud on a folder."""
    yield from open_world(tiny.data, PARAMETERS, LocalStore(tmp_path / "store"))


@pytest.fixture
def url(world: World) -> Iterator[str]:
    with served(world.http.app) as address:
        yield address


def told(*words: str) -> str:
    result = RUNNER.invoke(cli.app, list(words), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def round_of_two(world: World, key: str, number: int) -> None:
    for name in ("one", "two"):
        token = world.device(key, name)
        work = world.work(token)
        world.evaluate(token, work, loss_sum=4.0 - number, correct=number, count=4)
        world.clock.advance(1)
        assert world.upload(token, work).status_code == 200


# Watching --------------------------------------------------------------------------------------------------------


def test_one_look(world: World, key: str, url: str):
    world.training(key)
    world.draft(key, "later")
    round_of_two(world, key, 1)
    world.upload(token := world.device(key, "one"), world.work(token))
    words = ("watch", "--once", "--url", url, "--app-key", key)
    seen = json.loads(told(*words, "--json"))
    assert [each["model"]["model"] for each in seen] == ["later", "tiny"]
    assert seen[0]["last_round"] is None
    assert seen[1]["last_round"]["committed"] == 1
    assert seen[1]["model"]["open_round"]["update_bytes"] == len(world.body())
    text = told(*words, "--models", "tiny")
    assert "later" not in text
    row = [cell.strip() for cell in text.splitlines()[3].split("│")[1:-1]]
    assert row == ["tiny", "training", "1", "1", "1", "1", "0", "0", "0", "0.250", "1.000", str(len(world.body()))]


def test_the_operator_watches_all_apps(world: World, key: str, url: str):
    world.training(key)
    world.draft(world.app("other"), "theirs")
    seen = json.loads(told("watch", "--once", "--json", "--url", url, "--operator-key", OPERATOR_KEY))
    assert [each["model"]["app_id"] for each in seen] == ["acme", "other"]
    words = ("watch", "--once", "--json", "--url", url, "--operator-key", OPERATOR_KEY, "--models")
    for name in ("acme/tiny", "tiny"):
        assert [each["model"]["app_id"] for each in json.loads(told(*words, name))] == ["acme"]
    world.draft(world.app("other"), "tiny")
    assert [each["model"]["app_id"] for each in json.loads(told(*words, "other/tiny"))] == ["other"]
    with pytest.raises(InvalidInput, match="several apps have one: say acme/tiny or other/tiny"):
        told(*words, "tiny")


def test_a_line_for_each_change_and_none_without(world: World, key: str, capsys: pytest.CaptureFixture[str]):
    world.training(key)

    def moves() -> Iterator[None]:
        yield
        yield  # nothing happened
        round_of_two(world, key, 1)
        yield

    lines = changes(world, key, moves())
    assert [line.split()[:4] for line in lines] == [
        ["tiny", "training", "version=0", "round=0"],
        ["tiny", "training", "version=1", "round=1"],
    ]
    assert "accuracy on phones=0.250 loss=1.000 bytes up=0" in lines[1]


def test_a_cloud_that_restarts_is_waited_for(world: World, key: str):
    world.training(key)
    with served(world.http.app) as url:
        port = int(url.rpartition(":")[2])
    with cloud_view(url, key, None) as view:
        looks = watch._looks(view, None, 0.0)
        with served(world.http.app, port):
            first = next(looks)
        away = next(looks)
        with served(world.http.app, port):
            assert next(looks) == first
    assert isinstance(first, list)
    assert isinstance(away, TryLater)
    both = iter([first, away, away, first])
    assert [line.partition(":")[0] for line in printed_by(both)] == [watch.line(first[0]), "no answer"]


def test_what_cannot_be_watched_is_said(world: World, key: str, url: str):
    with pytest.raises(InvalidInput, match="no model 'nothing' among those"):
        told("watch", "--once", "--url", url, "--app-key", key, "--models", "nothing")
    with pytest.raises(InvalidInput, match="no key: give --app-key or --operator-key"):
        told("watch", "--once", "--url", url)


def changes(world: World, key: str, moves: Iterator[None]) -> list[str]:
    """Return the lines that are printed while the world moves."""
    with served(world.http.app) as url, cloud_view(url, key, None) as view:
        looks = watch._looks(view, None, 0.0)
        return printed_by(next(looks) for _ in moves)


def printed_by(looks: Iterator[Any]) -> list[str]:
    with pytest.MonkeyPatch.context() as patch:
        lines: list[str] = []
        patch.setattr("builtins.print", lambda text, **_: lines.append(text))
        watch._print_changes(looks, as_json=False)
    return lines


# TensorBoard -----------------------------------------------------------------------------------------------------


def events(file: Path) -> list[Any]:
    """Read an event file as its format says: length, checksum, record, checksum."""
    from tensorboardX.proto.event_pb2 import Event

    data, found = file.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        found.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return found


def curves(file: Path) -> dict[str, list[tuple[int, float]]]:
    found: dict[str, list[tuple[int, float]]] = {}
    for event in events(file):
        for value in event.summary.value:
            found.setdefault(value.tag, []).append((event.step, round(value.simple_value, 4)))
    return found


def test_rounds_become_curves_once_however_often_it_runs(stored: World, tmp_path: Path):
    key = stored.app()
    stored.training(key)
    words = ("tensorboard", "--logdir", str(tmp_path / "runs"), "--store", str(tmp_path / "store"))
    file = tmp_path / "runs" / "acme" / "tiny" / tensorboard.FILE
    last = Journal(stored.store, "acme/tiny").read_tail()
    assert told(*words) == ""
    round_of_two(stored, key, 1)
    assert told(*words) == "acme/tiny: 1 rounds, 1 in all\n"
    round_of_two(stored, key, 2)
    round_of_two(stored, key, 3)
    with served(stored.http.app) as url:  # asking the cloud as its operator goes on in the same file
        assert told(*words[:3], "--url", url, "--operator-key", OPERATOR_KEY) == "acme/tiny: 2 rounds, 3 in all\n"
    whole = file.read_bytes()
    assert told(*words) == ""
    assert file.read_bytes() == whole
    assert curves(file) == {
        "round/number": [(0, 0), (1, 1), (2, 2)],
        "round/updates": [(0, 2), (1, 2), (2, 2)],
        "round/assigned": [(0, 2), (1, 2), (2, 2)],
        "round/late": [(0, 0), (1, 0), (2, 0)],
        "round/given_back": [(0, 0), (1, 0), (2, 0)],
        "round/examples": [(0, 10), (1, 10), (2, 10)],
        "round/seconds": [(0, 2), (1, 2), (2, 2)],
        "round/update_bytes": [(n, 2 * len(stored.body())) for n in range(3)],
        "training/loss": [(0, 1), (1, 1), (2, 1)],
        "training/delta_norm": [(n, round(0.1 * PARAMETERS**0.5, 4)) for n in range(3)],
        "phones/accuracy": [(0, 0.25), (1, 0.5), (2, 0.75)],
        "phones/loss": [(0, 0.75), (1, 0.5), (2, 0.25)],
    }
    assert [event.wall_time for event in events(file)][1:] == [each["closed_at"] for each in stored.rounds(key)]
    entries = list(Journal(stored.store, "acme/tiny").entries())
    assert len([entry for entry in entries if entry.owner != last.owner]) == 1, "reading must not take a model over"


@pytest.mark.parametrize("lost", [1, 5, 30, 100])
def test_a_writer_that_was_killed_half_way_goes_on(world: World, key: str, url: str, tmp_path: Path, lost: int):
    world.training(key)
    round_of_two(world, key, 1)
    round_of_two(world, key, 2)
    words = ("tensorboard", "--logdir", str(tmp_path), "--url", url, "--app-key", key)
    told(*words)
    file = tmp_path / "tiny" / tensorboard.FILE
    whole = file.read_bytes()
    file.write_bytes(whole[:-lost])
    told(*words)
    assert file.read_bytes() == whole


def test_the_files_of_another_cloud_are_not_mixed(world: World, key: str, url: str, tmp_path: Path):
    world.training(key)
    round_of_two(world, key, 1)
    words = ("tensorboard", "--logdir", str(tmp_path), "--url", url, "--app-key", key)
    told(*words)
    with tensorboard.EventFile(tmp_path / "tiny") as file, cloud_view(url, key, None) as view:
        file.add(view.rounds("tiny", 0)[0].model_copy(update={"round": 7}))
    with pytest.raises(InvalidInput, match="has round 7 already: of another cloud"):
        told(*words)
    with pytest.raises(InvalidInput, match="no model 'nothing'"):
        told(*words, "--models", "nothing")
