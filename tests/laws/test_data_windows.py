"""Laws of resampling and windowing, against a slow reference written from their definition."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flsys_ray.data.resampling import resample
from flsys_ray.data.windows import Window, WindowCutter, WindowSpec, cut_windows, to_android

SPEC = WindowSpec(rate_hz=20.0, window_s=1.0, stride_s=0.5, gap_s=0.4, lateness_s=0.2)


def reference_value(samples, at_s, rate_hz):
    """One grid value of a stretch: `samples` is a list of (relative instant, vector), strictly increasing."""
    if len(samples) == 1:
        return np.array(samples[0][1])

    def interval(t):
        for left, right in itertools.pairwise(samples):
            if t < right[0]:
                return left, right
        return samples[-2], samples[-1]

    def line(t):
        (t0, v0), (t1, v1) = interval(t)
        share = min(1.0, max(0.0, (t - t0) / (t1 - t0)))
        return np.array(v0) + (np.array(v1) - np.array(v0)) * share

    left, right = interval(at_s)
    box = max(0.0, min(1 / rate_hz - (right[0] - left[0]), 2 * at_s, 2 * (samples[-1][0] - at_s)))
    return sum(line(at_s + box * ((j + 0.5) / 8 - 0.5)) for j in range(8)) / 8


def reference_windows(instants, values, labels, spec):
    """Cut windows sample by sample, in plain Python, from the definition in the module's docstring."""
    sessions, newest = [[]], -math.inf
    for t, v, label in zip(np.round(instants, 6).tolist(), values, labels, strict=True):
        if newest - t > spec.lateness_s + 5e-7:
            sessions.append([])
            newest = -math.inf
        newest = max(newest, t)
        sessions[-1].append((t, v, label))
    stretches = []
    for session in sessions:
        previous = None
        for (t, label), group in itertools.groupby(sorted(session, key=lambda s: s[0]), key=lambda s: (s[0], s[2])):
            if previous is None or t - previous[0] > spec.gap_s + 5e-7 or label != previous[1]:
                stretches.append((label, []))
            stretches[-1][1].append((t, np.mean([v for _, v, _ in group], axis=0)))
            previous = (t, label)
    windows = []
    for number, (label, samples) in enumerate(stretches):
        start = samples[0][0]
        relative = [(round(t - start, 6), v) for t, v in samples]
        count = math.floor((relative[-1][0] + 1e-6) * spec.rate_hz) + 1
        grid = [reference_value(relative, k / spec.rate_hz, spec.rate_hz) for k in range(count)]
        for first in range(0, count - spec.samples + 1, spec.stride_samples):
            begin = start + first / spec.rate_hz
            x = np.array(grid[first : first + spec.samples], dtype=np.float32)
            windows.append(Window(x, label, begin, begin + spec.window_s, number))
    return windows


@st.composite
def messy_streams(draw):
    """A stream with jitter, duplicates, late samples, gaps, label changes and clock jumps, as it arrives."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count = draw(st.integers(0, 160))
    rate_hz = draw(st.sampled_from([10.0, 20.0, 50.0, 100.0]))
    steps = rng.uniform(0.3, 1.7, count) / rate_hz
    steps[rng.random(count) < draw(st.sampled_from([0.0, 0.1]))] = 0.0
    steps[rng.random(count) < draw(st.sampled_from([0.0, 0.02]))] = 0.9
    steps[rng.random(count) < draw(st.sampled_from([0.0, 0.02]))] = -3.0
    instants = np.round(np.cumsum(steps) + draw(st.sampled_from([0.0, 1.6e9])), 3)
    late = rng.random(count) < draw(st.sampled_from([0.0, 0.2]))
    delays = draw(st.sampled_from([rng.uniform(0, 0.3, count), np.full(count, SPEC.lateness_s)]))
    instants = np.where(late, instants - delays, instants)
    if draw(st.booleans()):  # a coarse clock: many samples share an instant, or lie at the lateness exactly
        instants = np.round(np.round(instants * 20) / 20, 3)
    values = rng.normal(0, 5, (count, 3)).astype(np.float32)
    changes = np.cumsum(rng.random(count) < draw(st.sampled_from([0.0, 0.01])))
    return instants, values, [(None, "walking", "sitting")[c % 3] for c in changes]


def assert_same(got, expected, exact):
    assert [(w.label, w.stretch) for w in got] == [(w.label, w.stretch) for w in expected]
    for a, b in zip(got, expected, strict=True):
        assert a.x.dtype == np.float32
        if exact:
            assert (a.start_s, a.end_s) == (b.start_s, b.end_s)
            assert np.array_equal(a.x, b.x)
        else:
            assert a.start_s == pytest.approx(b.start_s, abs=1e-6)
            np.testing.assert_allclose(a.x, b.x, rtol=1e-5, atol=1e-4)


def as_list(windows):
    return [
        Window(*row)
        for row in zip(windows.x, windows.label, windows.start_s, windows.end_s, windows.stretch, strict=True)
    ]


@settings(max_examples=60, deadline=None)
@given(messy_streams())
def test_windows_equal_the_slow_reference(stream):
    assert_same(as_list(cut_windows(*stream, SPEC)), reference_windows(*stream, SPEC), exact=False)


@settings(max_examples=80, deadline=None)
@given(messy_streams(), st.lists(st.integers(0, 160), max_size=12))
def test_the_cutter_gives_the_same_bits_for_any_chunking(stream, cuts):
    instants, values, labels = stream
    edges = [0, *sorted(min(c, len(instants)) for c in cuts), len(instants)]
    cutter, got = WindowCutter(SPEC), []
    for a, b in itertools.pairwise(edges):
        got += cutter.push_many(instants[a:b], values[a:b], labels[a:b])
    got += cutter.flush()
    assert_same(got, as_list(cut_windows(*stream, SPEC)), exact=True)


@settings(max_examples=20, deadline=None)
@given(messy_streams())
def test_the_cutter_gives_the_same_bits_sample_by_sample(stream):
    cutter, got = WindowCutter(SPEC), []
    for row in zip(*stream, strict=True):
        got += cutter.push(*row)
    assert_same([*got, *cutter.flush()], as_list(cut_windows(*stream, SPEC)), exact=True)


@settings(max_examples=60, deadline=None)
@given(messy_streams(), st.randoms())
def test_order_within_the_lateness_does_not_matter(stream, random):
    instants, values, labels = stream
    instants = np.unique(np.abs(instants))
    values, labels = values[: len(instants)], labels[: len(instants)]
    order = sorted(range(len(instants)), key=lambda i: instants[i] + random.uniform(0, 0.19))
    shuffled = cut_windows(instants[order], values[order], [labels[i] for i in order], SPEC)
    assert_same(as_list(shuffled), as_list(cut_windows(instants, values, labels, SPEC)), exact=True)


@settings(max_examples=60, deadline=None)
@given(messy_streams(), st.one_of(st.integers(-1000, 1000), st.floats(0, 2e9).map(lambda s: round(s, 3))))
def test_shifting_the_clock_shifts_the_windows_and_nothing_else(stream, shift_s):
    instants, values, labels = stream
    instants = np.round(instants % 1000, 3)
    here, there = cut_windows(instants, values, labels, SPEC), cut_windows(instants + shift_s, values, labels, SPEC)
    assert here.label == there.label
    np.testing.assert_allclose(there.start_s, here.start_s + shift_s, rtol=0, atol=1e-6)
    assert np.array_equal(here.x, there.x)


@settings(max_examples=60, deadline=None)
@given(messy_streams(), st.floats(-50, 50, width=32))
def test_a_constant_stays_that_constant(stream, constant):
    instants, values, labels = stream
    x = cut_windows(instants, np.full_like(values, constant), labels, SPEC).x
    assert (x == np.float32(constant)).all()


@settings(max_examples=60, deadline=None)
@given(messy_streams())
def test_windows_hold_no_sample_of_another_stretch_or_label(stream):
    """Each stretch carries its own constant: a window that mixed two would show a value between."""
    instants, _values, labels = stream
    mark = {"walking": 1.0, "sitting": 2.0, None: 3.0}
    windows = cut_windows(instants, np.array([[mark[x]] * 3 for x in labels]).reshape(-1, 3), labels, SPEC)
    for x, label in zip(windows.x, windows.label, strict=True):
        assert (x == mark[label]).all()
    for stretch in set(windows.stretch):
        starts = windows.start_s[windows.stretch == stretch]
        np.testing.assert_allclose(np.diff(starts), SPEC.stride_s, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.floats(0.2, 4.0), st.floats(0, 6.3), st.sampled_from([20.0, 25.0, 50.0, 100.0]))
def test_a_sine_well_below_nyquist_keeps_frequency_and_amplitude(frequency_hz, phase, source_hz):
    instants = np.arange(0, 30, 1 / source_hz)
    (stretch,) = resample(instants, np.sin(2 * np.pi * frequency_hz * instants + phase)[:, None], 20.0)
    grid = stretch.start_s + np.arange(len(stretch.values)) / 20.0
    inside = (grid > 1) & (grid < 29)
    basis = np.stack([np.sin(2 * np.pi * frequency_hz * grid), np.cos(2 * np.pi * frequency_hz * grid)], axis=1)
    fit, *_ = np.linalg.lstsq(basis[inside], stretch.values[inside, 0], rcond=None)
    # The line between samples has the gain sinc^2(f/source), the box at most that of one grid period, sinc(f/20).
    floor = np.sinc(frequency_hz / source_hz) ** 2 * np.sinc(frequency_hz / 20.0)
    assert floor - 0.02 <= np.hypot(*fit) <= 1.001
    assert math.atan2(fit[1], fit[0]) % (2 * np.pi) == pytest.approx(phase % (2 * np.pi), abs=0.05) or (
        abs(math.atan2(fit[1], fit[0]) % (2 * np.pi) - phase % (2 * np.pi)) > 6.2
    )
    assert np.abs(basis[inside] @ fit - stretch.values[inside, 0]).max() < 0.2


def test_a_sine_above_the_new_nyquist_is_damped():
    """At 18 Hz the bare line at the grid would fold it to 2 Hz at 80 % of its amplitude or more."""
    instants = np.arange(0, 30, 0.01)
    sine = np.sin(2 * np.pi * 18 * instants)[:, None]
    (stretch,) = resample(instants, sine, 20.0)
    bare = np.interp(np.arange(0, 30, 0.05), instants, sine[:, 0])
    assert np.std(stretch.values[20:-20]) < 0.35 * np.std(bare[20:-20])


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([11.0, 20.0, 37.0, 50.0, 102.0]))
def test_straight_lines_pass_unchanged(seed, source_hz):
    rng = np.random.default_rng(seed)
    instants = np.cumsum(rng.uniform(0.5, 1.5, 200) / source_hz)
    (stretch,) = resample(instants, 3.0 * instants[:, None] - 7.0, 20.0)
    grid = stretch.start_s + np.arange(len(stretch.values)) / 20.0
    np.testing.assert_allclose(stretch.values[:, 0], 3.0 * grid - 7.0, atol=1e-5)


@given(st.integers(2, 400), st.integers(0, 2_000_000_000_000).map(lambda ms: ms / 1000))
def test_samples_on_the_grid_stay_as_they_are(count, start_s):
    values = np.random.default_rng(count).normal(size=(count, 3))
    (stretch,) = resample(start_s + np.arange(count) / 20.0, values, 20.0)
    np.testing.assert_allclose(stretch.values, values, atol=1e-4)


@given(st.lists(st.floats(-30, 30, width=32), min_size=3, max_size=3))
def test_unit_and_sign(values):
    ours = to_android(values, unit="m/s^2", sign="android")
    assert np.array_equal(ours, np.float32(values))
    np.testing.assert_allclose(to_android(ours / -9.80665, unit="g", sign="ios"), ours, rtol=1e-5, atol=1e-5)
