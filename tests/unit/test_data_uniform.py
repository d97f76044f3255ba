"""Class-uniform sets: as many of each class, of the chosen users only, the same for the same seed."""

from pathlib import Path

import numpy as np
import pytest

from flsys_ray.data import synthetic, synthetic_texts
from flsys_ray.data.dataset import Dataset, dataset_at
from flsys_ray.data.leaks import digests
from flsys_ray.data.schema import UNIONS
from flsys_ray.data.uniform import uniform_examples, write_uniform
from flsys_ray.errors import DataInvalid


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    made = tmp_path_factory.mktemp("uniform")
    synthetic.write(made / "windows", synthetic.Plan(users=6, minutes=20))
    synthetic_texts.write(made / "texts", synthetic_texts.Plan(users=4, texts=30))
    return made


@pytest.fixture(scope="module", params=["windows", "texts"])
def dataset(request, folder: Path) -> Dataset:
    return dataset_at(folder / request.param)


def of_users(dataset: Dataset, users: tuple[str, ...]) -> set[tuple[bytes, int]]:
    parts = [dataset.examples(user) for user in users]
    return {(x.tobytes(), int(y)) for part in parts for x, y in zip(part.x, part.y, strict=True)}


def test_as_many_of_each_class_of_these_users_and_each_at_most_once(dataset: Dataset):
    users = dataset.users[1:3]
    x, y = uniform_examples(dataset, users, 5, seed=3)
    assert np.bincount(y).tolist() == [5] * len(dataset.classes)
    found = {(one.tobytes(), int(label)) for one, label in zip(x, y, strict=True)}
    assert found <= of_users(dataset, users)
    assert len(found) == len(y)
    again = uniform_examples(dataset, users, 5, seed=3)
    np.testing.assert_array_equal(again[0], x)
    assert uniform_examples(dataset, users, 5, seed=4)[0].tobytes() != x.tobytes()


def test_a_larger_set_holds_all_of_a_smaller_one_and_the_largest_all_of_the_rarest_class(dataset: Dataset):
    sets = [uniform_examples(dataset, dataset.users, count) for count in (3, 6, None)]
    small, large, largest = ({(one.tobytes(), int(label)) for one, label in zip(x, y, strict=True)} for x, y in sets)
    assert small < large < largest
    counts = [sum(dataset.select([name]).count(user) for user in dataset.users) for name in dataset.classes]
    assert np.bincount(sets[2][1]).tolist() == [min(counts)] * len(counts)


def test_it_can_be_a_data_set_of_its_own(dataset: Dataset, tmp_path: Path):
    info = write_uniform(tmp_path / "shared", dataset, dataset.users[:3], 4, seed=1)
    made = dataset_at(tmp_path / "shared")
    assert (info.name, info.source, made.classes) == ("shared", "synthetic", dataset.classes)
    assert info.title == f"4 examples a class of {dataset.title}"
    assert set(made.users) <= set(dataset.users[:3])
    x, _ = uniform_examples(dataset, dataset.users[:3], 4, seed=1)
    found = [made.examples(user).x for user in made.users]
    assert sorted(one.tobytes() for one in np.concatenate(found)) == sorted(one.tobytes() for one in x)
    write_uniform(tmp_path / "shared", dataset, dataset.users[:3], 4, seed=1)  # a repeat is welcome
    assert (tmp_path / "shared" / "dataset.json").read_text() == info.to_json()
    # Drawn from again, all of it is taken.
    assert len(uniform_examples(made, made.users)[1]) == 4 * len(made.classes)


def test_a_class_of_two_labels_counts_once(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(UNIONS, "on foot", ("walking", "jogging"))
    whole = dataset_at(folder / "windows").select(("on foot", "sitting"))
    _, y = uniform_examples(whole, whole.users, 6)
    assert np.bincount(y).tolist() == [6, 6]


def test_more_than_there_are_is_refused_by_name(dataset: Dataset):
    with pytest.raises(DataInvalid, match=r"10000 examples a class cannot be drawn: its users have \d+ of '"):
        uniform_examples(dataset, dataset.users, 10_000)
    with pytest.raises(DataInvalid, match="these users have no example of the classes"):
        uniform_examples(dataset, ("nobody",), 1)


def test_what_is_drawn_of_training_users_shares_nothing_with_the_others(dataset: Dataset, tmp_path: Path):
    write_uniform(tmp_path / "shared", dataset, dataset.users[:2])
    made = dataset_at(tmp_path / "shared")
    drawn = {one for user in made.users for one in digests(made.examples(user))}
    assert drawn.isdisjoint(one for user in dataset.users[2:] for one in digests(dataset.examples(user)))
