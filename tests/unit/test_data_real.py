"""The real data sets, where `FLSYS_DATA` names a folder that has them: counts as their cards say, and no leak."""

import numpy as np
import pytest

from flsys_ray.data.build import present_names
from flsys_ray.data.dataset import open_dataset
from flsys_ray.data.folders import data_folder
from flsys_ray.data.leaks import check_no_leak, check_user_split
from flsys_ray.data.splits import held_out_part, split_users

# Users, classes, and the share of users that have each class: from the owners' descriptions.
REAL = {
    "wisdm2019": (51, ("walking", "jogging", "stairs", "sitting", "standing", "kicking_ball"), 5.0),
    "uci_hapt": (30, ("walking", "upstairs", "downstairs", "sitting", "standing", "lying"), 5.0),
    "motionsense": (24, ("walking", "jogging", "upstairs", "downstairs", "sitting", "standing"), 5.0),
    "geotec_sp": (23, ("walking", "sitting", "sitting_down", "standing_up", "turning"), 1.0),
}


@pytest.fixture(params=REAL)
def real(request, tmp_path_factory, monkeypatch):
    if request.param not in present_names(data_folder()):
        pytest.skip(f"{request.param} is not in the data folder: set FLSYS_DATA to a folder that has it")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))
    return open_dataset(request.param)


def test_users_classes_and_form(real):
    users, classes, window_s = REAL[real.name]
    assert (len(real.users), real.classes, real.spec.window_s) == (users, classes, window_s)
    assert real.source == "real"
    for user in real.users:
        examples = real.examples(user)
        assert len(examples) == sum(real.info.counts[user].values()) >= 50
        assert np.isfinite(examples.x).all()


def test_a_phone_at_rest_reads_gravity_upwards(real):
    """Units and sign: windows of people who sit have the size of gravity, 9.81 m/s^2 with 5 % for the sensors."""
    still = real.select(("sitting",))
    means = [still.examples(user).x.mean(axis=1) for user in still.users]
    assert np.median(np.linalg.norm(np.concatenate(means), axis=1)) == pytest.approx(9.81, rel=0.05)


def test_walking_has_a_walkers_tempo(real):
    """The strongest frequency of the acceleration's size lies between 1.2 and 2.6 steps a second, or at half of it."""
    walking = real.select(("walking",))
    size = np.linalg.norm(np.concatenate([walking.examples(user).x for user in walking.users]), axis=2)
    spectrum = np.abs(np.fft.rfft(size - size.mean(axis=1, keepdims=True), axis=1)).mean(axis=0)
    strongest_hz = np.fft.rfftfreq(size.shape[1], 1 / real.spec.rate_hz)[spectrum.argmax()]
    assert 1.0 <= strongest_hz <= 2.6


def test_splits_do_not_leak(real):
    train, held_out = split_users(real.users, 0.2, seed=0)
    check_no_leak({"train": map(real.examples, train), "held out": map(real.examples, held_out)})
    for user in real.users:
        own, own_held_out = held_out_part(real.examples(user), 0.2, seed=0)
        check_no_leak({"train": [own], "held out": [own_held_out]}, users_may_repeat=True)
    if real.info.split:
        check_user_split(real.info.split)
        assert sorted(user for part in real.info.split.values() for user in part) == list(real.users)


def test_tweets_to_airlines(monkeypatch, tmp_path):
    """1,062 users in the source have three polar tweets, fewer once repeats are left out; nine in ten negative."""
    if "airline_tweets" not in present_names(data_folder()):
        pytest.skip("airline_tweets is not in the data folder: set FLSYS_DATA to a folder that has it")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    data = open_dataset("airline_tweets")
    assert 1040 <= len(data.users) < 1062
    assert 4700 <= data.info.examples < 4824
    negative = sum(of_user.get("negative", 0) for of_user in data.info.counts.values())
    assert 0.85 < negative / data.info.examples < 0.93
    train, held_out = split_users(data.users, 0.2, seed=0)
    check_no_leak({"train": map(data.examples, train), "held out": map(data.examples, held_out)})
