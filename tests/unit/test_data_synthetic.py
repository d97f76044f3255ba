"""The synthetic source: deterministic, non-IID, learnable but not trivial, and honest about what it is."""

import doctest
import itertools

import numpy as np
import pytest

from flsys_ray.data import synthetic, windows
from flsys_ray.data.build import synthesize
from flsys_ray.data.dataset import open_dataset
from flsys_ray.data.leaks import check_no_leak
from flsys_ray.data.schema import CANONICAL_CLASSES
from flsys_ray.data.splits import held_out_part, split_users
from flsys_ray.data.windows import WindowCutter
from flsys_ray.errors import DataInvalid


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("synthetic")
    synthesize(folder, synthetic.Plan(users=24, minutes=6.0, seed=5))
    return open_dataset(synthetic.NAME, folder)


def test_the_same_seed_gives_the_same_bytes_and_another_does_not(tmp_path):
    one, two, three = (
        synthesize(tmp_path / str(number), synthetic.Plan(users=2, minutes=1.0, seed=seed))
        for number, seed in enumerate((1, 1, 2))
    )
    assert one.sha256 == two.sha256 != three.sha256


def test_users_do_not_depend_on_how_many_there_are():
    few, many = (next(iter(synthetic.user_windows(synthetic.Plan(users=n, minutes=1.0)))) for n in (1, 3))
    assert few.user == many.user
    assert all(np.array_equal(a.x, b.x) for (_, a), (_, b) in zip(few.sessions, many.sessions, strict=True))


def test_it_says_that_it_is_synthetic(data):
    assert data.source == "synthetic"
    assert "SYNTHETIC" in data.title
    assert all(user.startswith("synthetic-") for user in data.users)
    assert data.classes == CANONICAL_CLASSES


def test_users_differ_in_class_mix_rate_and_place(data):
    shares = np.array([[data.info.counts[u].get(c, 0) for c in data.classes] for u in data.users], dtype=float)
    shares /= shares.sum(axis=1, keepdims=True)
    assert shares.std(axis=0).min() > 0.08  # equal devices with 140 windows would show about 0.03
    people = [synthetic.person(user, 5) for user in data.users]
    assert {p.rate_hz for p in people} == {20.0, 25.0, 50.0}
    assert {p.position for p in people} == set(synthetic.POSITIONS)


def test_values_are_those_of_a_phone(data):
    for user in data.users[:8]:
        e = data.examples(user)
        still = np.isin(e.y, [data.classes.index("sitting"), data.classes.index("standing")])
        if still.any():
            assert np.linalg.norm(e.x[still].mean(axis=1), axis=1) == pytest.approx(9.81, abs=0.8)
        assert np.abs(e.x).max() < 60


def features(x):
    """Hand-made features `[N, F]`: mean, spread, and the spectrum of the acceleration's size and axes."""
    size = np.linalg.norm(x, axis=2, keepdims=True)
    signals = np.concatenate([x, size], axis=2)
    centred = signals - signals.mean(axis=1, keepdims=True)
    spectrum = np.abs(np.fft.rfft(centred * np.hanning(x.shape[1])[:, None], axis=1))[:, 2:40]
    bands = spectrum[:, : 36 // 2 * 2].reshape(len(x), 18, 2, 4).mean(axis=2)
    return np.concatenate(
        [np.abs(signals.mean(axis=1)), np.log(signals.std(axis=1) + 0.05), np.log(bands.reshape(len(x), -1) + 0.5)],
        axis=1,
    )


def test_it_is_learnable_across_users_but_not_trivial(data):
    """A linear model on hand-made features does well on users that it has not seen, and far from perfectly."""
    train, held_out = split_users(data.users, 0.33, seed=0)
    check_no_leak({"train": map(data.examples, train), "held out": map(data.examples, held_out)})

    def pool(users):
        parts = [data.examples(user) for user in users]
        return features(np.concatenate([p.x for p in parts])), np.concatenate([p.y for p in parts])

    (a, y), (b, z) = pool(train), pool(held_out)
    mean, std = a.mean(axis=0), a.std(axis=0)
    a, b = ((np.c_[(m - mean) / std, np.ones(len(m))]) for m in (a, b))
    weights = np.linalg.solve(a.T @ a + 30 * np.eye(a.shape[1]), a.T @ np.eye(5)[y])
    predicted = (b @ weights).argmax(axis=1)
    assert 0.80 < (predicted == z).mean() < 0.99
    motion = np.isin(z, [0, 1, 2])
    assert (np.isin(predicted, [0, 1, 2]) == motion).mean() > 0.97  # moving or not is easy
    wrong = {(data.classes[t], data.classes[p]) for t, p in zip(z, predicted, strict=True) if t != p}
    assert wrong & {("sitting", "standing"), ("standing", "sitting")}


def test_devices_can_hold_out_a_part(data):
    for user in data.users:
        train, held_out = held_out_part(data.examples(user), 0.2, seed=0)
        check_no_leak({"train": [train], "held out": [held_out]}, users_may_repeat=True)
        assert len(train) > 3 * len(held_out) / 2 > 0


def test_a_live_stream_gives_the_windows_of_the_data(data):
    """The collector's way (sample by sample, for ever) and the file's way meet in the same windows."""
    user = data.users[0]
    cutter, live = WindowCutter(data.spec), []
    for instant_s, xyz, label in itertools.islice(synthetic.synthetic_stream(user, 5), 6000):
        live += cutter.push(instant_s, xyz, label)
    assert len(live) > 30
    (of_user, *_) = synthetic.user_windows(synthetic.Plan(users=1, minutes=6.0, seed=5))
    filed = [(label, x) for _, w in of_user.sessions for label, x in zip(w.label, w.x, strict=True)]
    for window, (label, x) in zip(live, filed, strict=False):
        assert window.label == label
        np.testing.assert_array_equal(window.x, x)


@pytest.mark.parametrize("wrong", [{"users": 0}, {"minutes": 0.0}, {"class_concentration": -1.0}])
def test_impossible_plans_are_refused(wrong):
    with pytest.raises(DataInvalid):
        synthetic.Plan(**wrong)


@pytest.mark.parametrize("module", [windows, synthetic])
def test_examples_in_the_docstrings(module):
    result = doctest.testmod(module)
    assert result.attempted > 0
    assert result.failed == 0
