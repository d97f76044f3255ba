"""Transforms of sensor windows: what each keeps, and that they are a function of (assignment, epoch, example).

Each transform that is registered is held to the laws, unasked.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from flsys_ray.augmentation.base import TRANSFORMS, augmented, parse_transform
from flsys_ray.augmentation.jitter import Jitter
from flsys_ray.augmentation.permutation import Permutation
from flsys_ray.augmentation.rotation import Rotation
from flsys_ray.augmentation.scaling import Scaling
from flsys_ray.augmentation.shared import portion_of
from flsys_ray.augmentation.time_warp import TimeWarp
from flsys_ray.core.plan import parse_plan, parse_plan_yaml
from flsys_ray.core.rng import generator
from flsys_ray.errors import PlanInvalid

KINDS = [*(kind() for kind in TRANSFORMS.classes.values()), Permutation(segments=64), TimeWarp(knots=64, sigma=1)]
every_transform = pytest.mark.parametrize("transform", KINDS, ids=[kind.name for kind in KINDS])
values = st.floats(-1000, 1000, width=32)
windows = arrays.arrays(np.float32, st.tuples(st.integers(1, 60), st.just(3)), elements=values)
seeds = st.integers(0, 999)


def changed(transform, window, seed):
    return transform.apply(window, generator(seed, "test"))


@every_transform
@given(window=windows, seed=seeds)
def test_a_window_stays_a_window_and_the_recorded_one_as_it_was(transform, window, seed):
    before = window.tobytes()
    found = changed(transform, window, seed)
    assert (found.shape, found.dtype) == (window.shape, np.float32)
    assert np.isfinite(found).all()
    assert window.tobytes() == before
    assert changed(transform, window, seed).tobytes() == found.tobytes()


@every_transform
def test_another_seed_gives_another_window(transform):
    window = generator(5, "window").normal(0, 3, (100, 3)).astype(np.float32)
    found = {changed(transform, window, seed).tobytes() for seed in range(20)}
    assert len(found | {window.tobytes()}) >= 18  # four parts stay in their order once in 24


@every_transform
def test_a_transform_is_what_its_description_says(transform):
    assert parse_transform(transform.model_dump(mode="json")) == transform
    plan = parse_plan({"augmentation": {"transforms": [transform.model_dump(), "jitter"]}})
    assert plan.augmentation.transforms == (transform, Jitter())
    assert parse_plan_yaml(plan.to_yaml()) == plan


@pytest.mark.parametrize("wrong", [{"name": "mirror"}, {"name": "jitter", "sigma": -1}, {}, None, 3])
def test_what_is_no_transform_is_none(wrong):
    assert parse_transform(wrong) is None or wrong == {}


# What each keeps -----------------------------------------------------------------------------------------------------


@given(windows, seeds, st.floats(0.1, 180))
def test_a_rotation_keeps_lengths_and_angles_between_samples(window, seed, degrees):
    found = changed(Rotation(max_degrees=degrees), window, seed).astype(np.float64)
    inner, expected = found @ found.T, window.astype(np.float64) @ window.astype(np.float64).T
    assert np.abs(inner - expected).max() <= 1e-5 * max(1.0, np.abs(expected).max())


def test_a_rotation_is_no_mirror_and_stays_within_its_angle():
    """The trace of a rotation by an angle a is 1 + 2 cos a, and its determinant is 1."""
    angles = []
    for seed in range(200):
        matrix = changed(Rotation(max_degrees=30), np.eye(3, dtype=np.float32), seed).astype(np.float64)
        assert np.linalg.det(matrix) == pytest.approx(1, abs=1e-6)
        angles.append(np.degrees(np.arccos(np.clip((np.trace(matrix) - 1) / 2, -1, 1))))
    assert 28 < max(angles) < 30.01
    assert np.mean(angles) == pytest.approx(15, abs=4 * 30 / np.sqrt(12 * 200))


def test_axes_of_rotation_favour_no_direction():
    """The axis is the part of R - R^T: of 2000 axes drawn evenly, each coordinate has mean 0 and mean square 1/3."""
    axes = []
    for seed in range(2000):
        m = changed(Rotation(), np.eye(3, dtype=np.float32), seed).astype(np.float64)
        axis = np.array([m[2, 1] - m[1, 2], m[0, 2] - m[2, 0], m[1, 0] - m[0, 1]])
        axes.append(axis / np.linalg.norm(axis))
    assert np.abs(np.mean(axes, axis=0)).max() < 4 / np.sqrt(3 * 2000)
    # The variance of the square of a coordinate is 1/5 - 1/9.
    assert np.abs(np.mean(np.square(axes), axis=0) - 1 / 3).max() < 4 * np.sqrt((1 / 5 - 1 / 9) / 2000)


@given(windows, seeds, st.integers(2, 64))
def test_a_permutation_keeps_every_sample(window, seed, segments):
    found = changed(Permutation(segments=segments), window, seed)
    assert sorted(map(tuple, found.tolist())) == sorted(map(tuple, window.tolist()))


@given(seeds, st.integers(2, 8))
def test_a_permutation_moves_whole_parts(seed, segments):
    window = np.repeat(np.arange(50, dtype=np.float32)[:, None], 3, axis=1)
    found = changed(Permutation(segments=segments), window, seed)[:, 0]
    assert (np.diff(found) != 1).sum() < segments


def test_jitter_has_the_spread_that_it_says():
    window = np.zeros((2000, 3), np.float32)
    noise = changed(Jitter(sigma=0.5), window, 0)
    assert abs(noise.mean()) < 4 * 0.5 / np.sqrt(6000)
    assert noise.std() == pytest.approx(0.5, rel=4 / np.sqrt(2 * 6000))


@given(windows, seeds)
def test_scaling_multiplies_each_axis_by_one_number(window, seed):
    found = changed(Scaling(sigma=0.3), window, seed).astype(np.float64)
    factors = changed(Scaling(sigma=0.3), np.ones((1, 3), np.float32), seed)[0]
    assert np.abs(found - window * factors.astype(np.float64)).max() <= 1e-6 * max(1.0, np.abs(found).max())


def test_factors_have_the_spread_that_they_say():
    found = np.concatenate([changed(Scaling(sigma=0.2), np.ones((1, 3), np.float32), seed)[0] for seed in range(1000)])
    assert found.mean() == pytest.approx(1, abs=4 * 0.2 / np.sqrt(3000))
    assert found.std() == pytest.approx(0.2, rel=4 / np.sqrt(6000))


@given(windows, seeds, st.integers(2, 64))
def test_a_bent_window_keeps_its_ends_and_its_range(window, seed, knots):
    found = changed(TimeWarp(knots=knots), window, seed)
    np.testing.assert_allclose(found[[0, -1]], window[[0, -1]], rtol=1e-5, atol=1e-3)
    assert (found.max(axis=0) <= window.max(axis=0) + 1e-3).all()
    assert (found.min(axis=0) >= window.min(axis=0) - 1e-3).all()


@given(seeds, st.floats(0.01, 1))
def test_time_never_runs_backwards_and_all_axes_share_it(seed, sigma):
    ramp = np.repeat(np.arange(100, dtype=np.float32)[:, None], 3, axis=1)
    found = changed(TimeWarp(sigma=sigma), ramp, seed)
    assert (np.diff(found[:, 0]) > 0).all()
    assert (found == found[:, :1]).all()


# Of an epoch ---------------------------------------------------------------------------------------------------------

EXAMPLES = generator(2, "examples").normal(0, 3, (6, 40, 3)).astype(np.float32)
ALL = tuple(kind() for kind in TRANSFORMS.classes.values())


def epoch_of(x=EXAMPLES, transforms=ALL, epoch=0, first=0, assignment_id="a"):
    return augmented(transforms, x, assignment_id=assignment_id, epoch=epoch, first=first)


def test_an_example_is_changed_alike_whatever_stands_beside_it():
    whole, before = epoch_of(), EXAMPLES.tobytes()
    assert epoch_of().tobytes() == whole.tobytes()
    assert epoch_of(EXAMPLES[2:5], first=2).tobytes() == whole[2:5].tobytes()
    assert before == EXAMPLES.tobytes()


def test_epochs_assignments_and_examples_are_changed_apart():
    same = np.repeat(EXAMPLES[:1], 6, axis=0)
    seen = [window.tobytes() for x in (epoch_of(same), epoch_of(same, epoch=1), epoch_of(same, assignment_id="b"))
            for window in x]  # fmt: skip
    assert len(set(seen)) == 18


def test_no_transform_leaves_the_examples_as_they_are():
    assert epoch_of(transforms=()).tobytes() == EXAMPLES.tobytes()


def test_a_share_is_that_part_of_the_examples():
    x = np.repeat(EXAMPLES[:1], 2000, axis=0)
    found = epoch_of(x, (Jitter(share=0.25),))
    part = (found != x).any(axis=(1, 2)).mean()
    assert part == pytest.approx(0.25, abs=4 * np.sqrt(0.25 * 0.75 / 2000))


@every_transform
def test_inputs_that_are_no_windows_are_refused_by_name(transform):
    assert transform.misfit((100, 3), "float32") == ""
    for shape, dtype in (((48,), "int32"), ((16,), "float32"), ((100, 3), "int32"), ((8, 8, 3), "float32")):
        assert transform.misfit(shape, dtype).startswith(f"{transform.name} changes sensor windows")


def test_a_rotation_needs_three_axes():
    assert Rotation().misfit((100, 6), "float32") == "rotation turns windows of 3 axes, and none of 6"


def test_a_wrong_transform_is_refused_by_the_plan():
    with pytest.raises(PlanInvalid, match="sigma"):
        parse_plan({"augmentation": {"transforms": [{"name": "jitter", "sigma": 0}]}})


# The shared set ------------------------------------------------------------------------------------------------------


@given(st.integers(0, 300), st.floats(0, 1), st.floats(0, 1), seeds, st.text(max_size=5))
def test_a_portion_is_a_part_of_the_set_and_of_every_larger_portion(count, share, other, seed, device):
    small, large = (portion_of(count, s, seed=seed, device_id=device) for s in sorted((share, other)))
    for portion, s in zip((small, large), sorted((share, other)), strict=True):
        assert (np.diff(portion) > 0).all()
        assert set(portion.tolist()) <= set(range(count))
        assert abs(len(portion) - s * count) <= 0.5
    assert set(small.tolist()) <= set(large.tolist())
    assert portion_of(count, 1.0, seed=seed, device_id=device).tolist() == list(range(count))


def test_portions_are_drawn_evenly_and_differ_between_devices_and_seeds():
    """Of 2000 devices with a portion of a tenth, each of 50 examples is drawn by about a tenth."""
    drawn = [portion_of(50, 0.1, seed=3, device_id=str(device)) for device in range(2000)]
    counts = np.bincount(np.concatenate(drawn), minlength=50)
    assert np.abs(counts - 200).max() < 5 * np.sqrt(2000 * 0.1 * 0.9)
    assert len({tuple(portion) for portion in drawn}) > 1900
    assert portion_of(50, 0.1, seed=4, device_id="0").tolist() != drawn[0].tolist()
