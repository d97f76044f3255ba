"""The recipes read their owners' formats: small files of each, in folders, in zip files, in zip files in them."""

import io
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flsys_ray.data.archive import members
from flsys_ray.data.build import build
from flsys_ray.data.dataset import open_dataset
from flsys_ray.data.recipe import load_recipe
from flsys_ray.data.windows import cut_windows, to_android
from flsys_ray.errors import DataInvalid

RNG = np.random.default_rng(3)


def wave(count, rate_hz):
    instants = np.arange(count) / rate_hz
    xyz = RNG.normal(0, 3, (1, 3)) + np.sin(2 * np.pi * np.outer(instants, RNG.uniform(1, 3, 3)))
    return instants, np.round(xyz, 4)


def wisdm():
    """Two users at 20 and 50 Hz; the second has every row twice, as user 1629 in the source."""
    files, expected = {}, []
    for user, rate_hz in (("1600", 20.0), ("1629", 50.0)):
        lines = []
        for start_s, letter, label in ((100.0, "A", "walking"), (400.0, "M", "kicking_ball"), (900.0, "F", None)):
            instants, xyz = wave(int(8 * rate_hz), rate_hz)
            stamps_ns = np.round((start_s + instants) * 1e9).astype(int)
            for stamp_ns, (x, y, z) in zip(stamps_ns, xyz, strict=True):
                lines += [f"{user},{letter},{stamp_ns},{x},{y},{z};"] * (2 if user == "1629" else 1)
            if label:
                expected.append((user, label, label, start_s + instants, xyz))
        files[f"wisdm-dataset/raw/phone/accel/data_{user}_accel_phone.txt"] = "\n".join(lines) + "\n"
        files[f"wisdm-dataset/raw/watch/accel/data_{user}_accel_watch.txt"] = "not, read\n"
    return files, expected


def hapt():
    """Two experiments of user 1, one of user 2; a stretch without a label before each activity; a transition."""
    files, expected, labels = {}, [], []
    for experiment, user in ((1, 1), (2, 1), (3, 2)):
        instants, xyz = wave(1200, 50.0)
        files[f"RawData/acc_exp{experiment:02d}_user{user:02d}.txt"] = "".join(f"{x} {y} {z}\n" for x, y, z in xyz)
        files[f"RawData/gyro_exp{experiment:02d}_user{user:02d}.txt"] = "0 0 0\n" * 1200
        for first, last, activity, label in ((101, 500, 2, "upstairs"), (501, 600, 7, None), (701, 1200, 6, "lying")):
            labels.append(f"{experiment} {user} {activity} {first} {last}\n")
            if label:
                rows = slice(first - 1, last)
                expected.append((f"{user:02d}", f"exp{experiment:02d}", label, instants[rows], xyz[rows]))
    files["RawData/labels.txt"] = "".join(labels)
    return files, expected


def motionsense():
    files, expected = {}, []
    parts = ("attitude.roll", "gravity.x", "gravity.y", "gravity.z", "rotationRate.x")
    parts += tuple(f"userAcceleration.{axis}" for axis in "xyz")
    for trial, label in (("ups_3", "upstairs"), ("wlk_7", "walking")):
        for number in (2, 11):
            instants, own = wave(400, 50.0)
            rows = [f"{i},0.1,0.0,-1.0,0.0,0.5,{x},{y},{z}\n" for i, (x, y, z) in enumerate(own)]
            files[f"A_DeviceMotion_data/{trial}/sub_{number}.csv"] = "," + ",".join(parts) + "\n" + "".join(rows)
            expected.append((f"{number:02d}", trial, label, instants, own + np.array([0.0, -1.0, 0.0])))
    return files, sorted(expected, key=lambda row: row[:2])


def geotec():
    files, expected = {}, []
    for user in ("s01", "s02"):
        lines = ["x_acc,y_acc,z_acc,x_gyro,y_gyro,z_gyro,timestamp,label\n"]
        for start_s, name, label in ((1657533977.0, "SEATED", "sitting"), (1657533980.0, "TURNING", "turning")):
            instants, xyz = wave(250, 100.0)
            stamps_ms = np.round((start_s + instants) * 1e3).astype(int)
            for stamp_ms, (x, y, z) in zip(stamps_ms, xyz, strict=True):
                lines.append(f"{x},{y},{z},0.1,0.2,0.3,{stamp_ms},{name}\n")
            expected.append((user, "01", label, start_s + instants, xyz))
        files[f"DATA/{user}/{user}_01_sp.csv"] = "".join(lines)
        files[f"DATA/{user}/{user}_01_sw.csv"] = "x_acc\n1\n"
    return files, expected


OWNERS = {"wisdm2019": wisdm, "uci_hapt": hapt, "motionsense": motionsense, "geotec_sp": geotec}


def as_folder(files, folder):
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)


def as_zip(files, folder):
    with zipfile.ZipFile(folder / "owner.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path, text in files.items():
            archive.writestr(path, text)
            archive.writestr(f"__MACOSX/{path}", "resource fork")


def as_zip_in_zip(files, folder):
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        for path, text in files.items():
            archive.writestr(f"top/{path}", text)
    with zipfile.ZipFile(folder / "owner.zip", "w") as archive:
        archive.writestr("readme.txt", "hello")
        archive.writestr("wisdm-dataset.zip", inner.getvalue())


def as_both(files, folder):
    """Unpacked beside its zip file: nothing may count twice."""
    as_folder(files, folder)
    as_zip(files, folder)


@pytest.mark.parametrize("layout", [as_folder, as_zip, as_zip_in_zip, as_both])
@pytest.mark.parametrize("name", OWNERS)
def test_owners_files_become_windows(name, layout, tmp_path):
    files, expected = OWNERS[name]()
    (tmp_path / "owner").mkdir()
    layout(files, tmp_path / "owner")
    build(name, from_folder=tmp_path / "owner", out=tmp_path / "out")
    data = open_dataset(name, tmp_path / "out")
    recipe = load_recipe(name)
    got, due = [], []
    for user in data.users:
        e = data.examples(user)
        for row in range(len(e)):
            got.append((user, str(e.session[row]), data.classes[e.y[row]], round(float(e.start_s[row]), 3), e.x[row]))
    for user, session, label, instants, xyz in expected:
        converted = to_android(xyz.astype(np.float32), unit=recipe.unit, sign=recipe.sign)
        windows = cut_windows(instants, converted, [label] * len(instants), recipe.spec)
        due += [(user, session, label, round(float(s), 3), x) for s, x in zip(windows.start_s, windows.x, strict=True)]
    due.sort(key=lambda row: (row[0], row[1], row[3]))
    assert [row[:4] for row in got] == [row[:4] for row in due]
    for a, b in zip(got, due, strict=True):
        np.testing.assert_allclose(a[4], b[4], atol=1e-3)
    assert len(got) >= 8


@pytest.mark.parametrize("name", OWNERS)
def test_a_file_of_samples_gives_the_windows_of_the_owners_files(name, tmp_path):
    """What one prepares once (`--from` with Parquet) and what the owner offers are the same data."""
    files, _ = OWNERS[name]()
    (tmp_path / "owner").mkdir()
    as_folder(files, tmp_path / "owner")
    recipe = load_recipe(name)
    columns = {key: [] for key in ("user", "session", "activity", "timestamp_ns", "ax", "ay", "az")}
    for recording in recipe.read_owner(tmp_path / "owner"):
        count = len(recording.instants_s)
        columns["user"] += [recording.user] * count
        columns["session"] += [recording.session] * count
        columns["activity"] += list(recording.activities)
        columns["timestamp_ns"] += np.round(recording.instants_s * 1e9).astype(np.int64).tolist()
        for axis, values in zip(("ax", "ay", "az"), np.asarray(recording.xyz).T, strict=True):
            columns[axis] += values.tolist()
    (tmp_path / "samples" / name).mkdir(parents=True)
    pq.write_table(pa.table(columns), tmp_path / "samples" / name / recipe.samples_file)
    build(name, from_folder=tmp_path / "owner", out=tmp_path / "one")
    build(name, from_folder=tmp_path / "samples", out=tmp_path / "two")
    one, two = open_dataset(name, tmp_path / "one"), open_dataset(name, tmp_path / "two")
    assert one.info.counts == two.info.counts
    for user in one.users:
        a, b = one.examples(user), two.examples(user)
        assert a.session.tolist() == b.session.tolist()
        np.testing.assert_allclose(a.x, b.x, atol=1e-4)


@pytest.mark.parametrize("name", OWNERS)
def test_a_folder_without_the_owners_files_is_refused_by_name(name, tmp_path):
    (tmp_path / "notes.txt").write_text("nothing here")
    with pytest.raises(DataInvalid, match=f"{name}: no "):
        build(name, from_folder=tmp_path, out=tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.parquet"))


@pytest.mark.parametrize("name", OWNERS)
def test_a_damaged_line_is_refused_with_its_file(name, tmp_path):
    files, _ = OWNERS[name]()
    victim = max(files, key=lambda path: len(files[path]))
    files[victim] += "what,is,this\n"
    as_folder(files, tmp_path / "owner")
    with pytest.raises(DataInvalid, match=r"\.(txt|csv)"):
        build(name, from_folder=tmp_path / "owner", out=tmp_path / "out")


def test_a_cut_zip_file_is_refused(tmp_path):
    as_zip(wisdm()[0], tmp_path)
    whole = (tmp_path / "owner.zip").read_bytes()
    (tmp_path / "owner.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataInvalid, match=r"owner\.zip is not a whole zip file"):
        list(members(tmp_path, ".*"))


def test_nothing_of_a_zip_file_is_written_to_disk(tmp_path):
    with zipfile.ZipFile(tmp_path / "owner.zip", "w") as archive:
        archive.writestr("../../escape.txt", "x")
    before = sorted(tmp_path.parent.rglob("*"))
    assert [m.read for m in members(tmp_path, r"escape\.txt")] == [b"x"]
    assert sorted(tmp_path.parent.rglob("*")) == before
