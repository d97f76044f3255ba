"""The canonical form, opening by name, the cache, the catalogue."""

import json
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flsys_ray.data import synthetic
from flsys_ray.data.build import SYNTHETIC, build, prepared_folder, synthesize
from flsys_ray.data.catalog import default_har_dataset, list_datasets
from flsys_ray.data.dataset import dataset_at, open_dataset
from flsys_ray.data.folders import cache_folder, data_folder
from flsys_ray.data.recipe import RECIPES, load_recipe, recipe_names
from flsys_ray.data.schema import (
    UserWindows,
    WindowsInfo,
    file_sha256,
    is_dataset,
    ordered_classes,
    read_info,
    write_dataset,
)
from flsys_ray.data.windows import WindowSpec, cut_windows
from flsys_ray.errors import DataInvalid, NotFound

SPEC = WindowSpec(window_s=1.0, stride_s=0.5)
PLAN = synthetic.Plan(users=3, minutes=1.0)


@pytest.fixture(autouse=True)
def folders(tmp_path, monkeypatch):
    """No test reads or writes the user's folders."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("FLSYS_DATA", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    return tmp_path


def draft(**changes):
    card = {"name": "tiny", "title": "Tiny", "source": "synthetic", "rate_hz": 20.0, "window_s": 1.0, "stride_s": 0.5}
    rest = {"licence": "none", "citation": "none", "home": "here", "recipe_version": 1}
    return WindowsInfo(**{**card, **rest, **changes})


def walk(user, labels=("walking", "kicking_ball"), seconds=4):
    """One session a label; the x axis counts samples, so that every window can be told from every other."""
    sessions = []
    for number, label in enumerate(labels):
        instants = np.arange(seconds * 20) / 20
        xyz = np.stack([np.arange(len(instants)), np.full(len(instants), number), instants], axis=1)
        sessions.append((f"s{number}", cut_windows(instants, xyz, [label] * len(instants), SPEC)))
    return UserWindows(user, sessions)


def write_samples(path, users=("1", "2")):
    """A file of samples as a recipe for WISDM reads it: two users, two activities, 50 Hz."""
    rows = {name: [] for name in ("user", "activity", "timestamp_ns", "ax", "ay", "az")}
    for number, user in enumerate(users):
        for start, activity in ((0, "walking"), (100, "kicking_ball")):
            instants = start + np.arange(500) / 50
            rows["user"] += [user] * 500
            rows["activity"] += [activity] * 500
            rows["timestamp_ns"] += (instants * 1e9).astype(np.int64).tolist()
            rows["ax"] += np.sin(instants * (number + 1)).tolist()
            rows["ay"] += [float(start)] * 500
            rows["az"] += [9.81] * 500
    table = pa.table(rows)
    for axis in ("ax", "ay", "az"):
        table = table.set_column(table.schema.get_field_index(axis), axis, table[axis].cast(pa.float32()))
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path)


def test_what_is_written_is_read(tmp_path):
    info = write_dataset(tmp_path / "tiny", draft(), [walk("a"), walk("b", ("walking",))])
    data = dataset_at(tmp_path / "tiny")
    assert (data.name, data.title, data.source) == ("tiny", "Tiny", "synthetic")
    assert data.classes == ("walking", "kicking_ball")
    assert data.users == ("a", "b")
    assert data.info == info == read_info(tmp_path / "tiny")
    assert info.examples == 21
    examples = data.examples("a")
    assert (examples.x.dtype, examples.x.shape, examples.y.dtype) == (np.float32, (14, 20, 3), np.int32)
    assert examples.x[:7, 0, 0].tolist() == [0, 10, 20, 30, 40, 50, 60]
    assert examples.x[0, :, 2] == pytest.approx(np.arange(20) / 20)
    assert examples.session.tolist() == ["s0"] * 7 + ["s1"] * 7
    assert examples.y.tolist() == [0] * 7 + [1] * 7
    assert (examples.end_s - examples.start_s).tolist() == [1.0] * 14


def test_the_file_says_its_form(tmp_path):
    write_dataset(tmp_path, draft(), [walk("a"), walk("b")])
    file = pq.ParquetFile(tmp_path / "windows.parquet")
    assert json.loads(file.schema_arrow.metadata[b"flsys"]) == {
        "shape": [20, 3],
        "rate_hz": 20.0,
        "unit": "m/s^2",
        "sign": "android",
        "source": "synthetic",
    }
    assert file.num_row_groups == 2
    described = json.loads((tmp_path / "dataset.json").read_text())
    assert described["sha256"] == file_sha256(tmp_path / "windows.parquet")
    assert (described["form"], described["shape"], described["users"]) == ("windows", [20, 3], 2)


def test_select_renames_indices_and_leaves_users_out(tmp_path):
    write_dataset(tmp_path, draft(), [walk("a"), walk("b", ("walking",))])
    data = dataset_at(tmp_path).select(("kicking_ball",))
    assert data.users == ("a",)
    assert data.examples("a").y.tolist() == [0] * 7
    assert data.examples("a").x[0, 0, 1] == 1.0
    with pytest.raises(NotFound, match="no user 'b'"):
        data.examples("b")
    for wrong in (("flying",), (), ("walking", "walking")):
        with pytest.raises(DataInvalid):
            dataset_at(tmp_path).select(wrong)


def test_a_class_may_be_the_union_of_its_parts(tmp_path):
    ways = ("upstairs", "walking", "downstairs")
    write_dataset(tmp_path, draft(), [walk("a", ways), walk("b", ("upstairs",)), walk("c", ("walking",))])
    data = dataset_at(tmp_path)
    stairs, parts = data.select(("walking", "stairs")), data.select(ways)
    assert (stairs.count("a"), stairs.count("b"), data.select(("stairs",)).users) == (21, 7, ("a", "b"))
    whole, apart = stairs.examples("a"), parts.examples("a")
    assert np.array_equal(whole.x, apart.x)
    assert np.array_equal(whole.y, np.array([1, 0, 1])[apart.y])
    for wrong in (("stairs", "upstairs"), ("stairs", "jogging")):
        with pytest.raises(DataInvalid):
            data.select(wrong)


def test_canonical_classes_come_first():
    assert ordered_classes(["lying", "upstairs", "standing", "walking"]) == ("walking", "upstairs", "standing", "lying")


def test_what_does_not_belong_together_is_refused(tmp_path):
    write_dataset(tmp_path, draft(), [walk("a")])
    text = (tmp_path / "dataset.json").read_text()
    (tmp_path / "dataset.json").write_text(text.replace('"sha256": "', '"sha256": "0'))
    with pytest.raises(DataInvalid, match="build the data set again"):
        dataset_at(tmp_path)
    for broken in ("{", "[]", "{}", text.replace('"form": "windows"', '"form": "pictures"')):
        (tmp_path / "dataset.json").write_text(broken)
        with pytest.raises(DataInvalid):
            dataset_at(tmp_path)


def test_a_user_must_not_come_twice_nor_may_all_windows_be_missing(tmp_path):
    with pytest.raises(DataInvalid, match="'a' comes twice"):
        write_dataset(tmp_path, draft(), [walk("a"), walk("a")])
    with pytest.raises(DataInvalid, match="no labelled window"):
        write_dataset(tmp_path, draft(), [walk("a", (None,))])
    assert [p.name for p in tmp_path.iterdir() if p.name not in ("data", "cache")] == []


def test_writing_anew_leaves_other_files_alone(tmp_path):
    (tmp_path / "phone.parquet").write_text("samples")
    write_dataset(tmp_path, draft(), [walk("a")])
    write_dataset(tmp_path, draft(), [walk("b")])
    assert dataset_at(tmp_path).users == ("b",)
    assert (tmp_path / "phone.parquet").read_text() == "samples"
    assert not list(tmp_path.glob(".*"))


def test_an_unknown_name_says_what_is_there(folders):
    synthesize(plan=PLAN, name="mine")
    with pytest.raises(NotFound, match=r"no data set 'yours'.*holds mine.*recipes for .*geotec_sp, motionsense"):
        open_dataset("yours")
    with pytest.raises(NotFound, match="flsys data build wisdm2019 --from FOLDER"):
        open_dataset("wisdm2019")


def test_samples_are_converted_once_and_kept_in_the_cache(folders):
    samples = folders / "data" / "wisdm2019" / "phone.parquet"
    write_samples(samples)
    before = sorted(samples.parent.iterdir())
    data = open_dataset("wisdm2019")
    assert data.users == ("1", "2")
    assert data.classes == ("walking", "kicking_ball")
    assert len(data.examples("1")) == 2 * 3  # 10 s of each give windows at 0, 2.5 and 5 s
    assert sorted(samples.parent.iterdir()) == before
    stamp = (data.folder / "windows.parquet").stat().st_mtime_ns
    assert (open_dataset("wisdm2019").folder / "windows.parquet").stat().st_mtime_ns == stamp
    write_samples(samples, users=("1", "2", "3"))
    assert open_dataset("wisdm2019").users == ("1", "2", "3")


def test_a_read_only_folder_is_enough(folders):
    write_samples(folders / "data" / "wisdm2019" / "phone.parquet")
    for path in (folders / "data" / "wisdm2019", folders / "data"):
        path.chmod(0o555)
    try:
        assert default_har_dataset().name == "wisdm2019"
    finally:
        for path in (folders / "data", folders / "data" / "wisdm2019"):
            path.chmod(0o755)


def test_processes_that_open_at_once_get_the_same(folders):
    write_samples(folders / "data" / "wisdm2019" / "phone.parquet")
    code = "from flsys_ray.data.dataset import open_dataset; print(open_dataset('wisdm2019').info.sha256)"
    running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert len({process.communicate()[0] for process in running}) == 1
    assert [process.returncode for process in running] == [0, 0, 0]


def test_a_cache_that_cannot_be_written_is_named(folders, monkeypatch):
    write_samples(folders / "data" / "wisdm2019" / "phone.parquet")
    (folders / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folders / "file"))
    with pytest.raises(DataInvalid, match="set XDG_CACHE_HOME") as caught:
        open_dataset("wisdm2019")
    assert str(folders) not in str(caught.value)


def test_the_synthetic_source_needs_no_file(folders, monkeypatch):
    monkeypatch.setattr(synthetic, "Plan", lambda: PLAN)
    data = open_dataset(synthetic.NAME)
    assert data.source == "synthetic"
    assert "SYNTHETIC" in data.title
    assert len(data.users) == 3
    assert data.folder.is_relative_to(folders / "cache")
    assert default_har_dataset().name == synthetic.NAME
    synthesize(plan=synthetic.Plan())
    assert open_dataset(synthetic.NAME).folder == folders / "data" / synthetic.NAME


def test_the_catalogue_tells_states_apart(folders):
    write_samples(folders / "data" / "wisdm2019" / "phone.parquet")
    build("uci_hapt", from_folder=hapt_samples(folders / "local"))
    entries = {entry.name: entry for entry in list_datasets()}
    assert set(entries) == {*recipe_names(), *SYNTHETIC}
    assert entries["wisdm2019"].state == "samples"
    assert (entries["uci_hapt"].state, entries["uci_hapt"].users) == ("ready", 1)
    assert entries["motionsense"].state == "absent"
    assert (entries[synthetic.NAME].state, entries[synthetic.NAME].source) == ("made at need", "synthetic")
    assert default_har_dataset().name == "wisdm2019"


def hapt_samples(folder):
    write_samples(folder / "uci_hapt" / "phone.parquet", users=("02",))
    os.rename(folder / "uci_hapt" / "phone.parquet", folder / "uci_hapt" / "hapt.parquet")
    return folder


def test_building_from_the_folder_or_its_parent(folders):
    local = hapt_samples(folders / "local")
    for given in (local, local / "uci_hapt"):
        info = build("uci_hapt", from_folder=given, out=folders / "out")
        assert info.split["test"][0] == "02"
        assert is_dataset(folders / "out" / "uci_hapt")
    assert open_dataset("uci_hapt", folders / "out").classes == ("walking",)
    with pytest.raises(NotFound, match="does not exist"):
        build("uci_hapt", from_folder=folders / "nowhere")
    with pytest.raises(NotFound, match="no recipe for 'mystery'"):
        build("mystery")


def test_units_and_signs_of_the_sources(folders):
    """HAPT is in g; MotionSense in g with the iOS sign, so that rest must come out as the opposite."""
    for name, file, factor in (("uci_hapt", "hapt.parquet", 9.80665), ("motionsense", "motionsense.parquet", -9.80665)):
        write_samples(folders / "local" / name / file)
        build(name, from_folder=folders / "local")
        assert open_dataset(name).examples("1").x[:, :, 2] == pytest.approx(9.81 * factor, rel=1e-5)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_states_its_card(name):
    recipe = load_recipe(name)
    for text in (recipe.title, recipe.licence, recipe.citation):
        assert len(text) > 5
    for url in (recipe.home, *(download.url for download in recipe.downloads)):
        assert url.startswith("https://")
    card = (RECIPES / name / "README.md").read_text()
    for needed in (recipe.home.removeprefix("https://"), *set(recipe.classes.values())):
        assert needed in card


def test_folders_come_from_the_environment(monkeypatch, tmp_path):
    monkeypatch.delenv("FLSYS_DATA")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "share"))
    assert data_folder() == tmp_path / "share" / "flsys"
    assert cache_folder() == tmp_path / "cache" / "flsys"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_DATA_HOME")
    assert data_folder() == tmp_path / ".local" / "share" / "flsys"


def test_windows_load_neither_pyarrow_nor_anything_heavy():
    code = (
        "import sys; import flsys_ray.data.windows; "
        "print([m for m in ('pyarrow', 'ray', 'tensorflow', 'pydantic', 'httpx2') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_prepared_folder_prefers_what_is_built(folders):
    write_samples(folders / "data" / "wisdm2019" / "phone.parquet")
    build("wisdm2019", from_folder=folders / "data")
    assert prepared_folder("wisdm2019", folders / "data") == folders / "data" / "wisdm2019"
