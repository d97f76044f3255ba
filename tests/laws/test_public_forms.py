"""Public forms: what phones train from stays near the version, however it is encoded, and is the same to the bit."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flsys_ray.compression.base import Encoding
from flsys_ray.compression.int8 import Int8
from flsys_ray.compression.public import half, step_to, stepped
from flsys_ray.compression.top_k import TopK
from flsys_ray.core.rng import generator
from flsys_ray.errors import UpdateUnusable
from flsys_ray.wire.public_forms import decode_half, decode_step, encode_half, encode_step

STEPPED: list[Encoding] = [Int8(block=16), TopK(fraction=0.1)]
every_stepped = pytest.mark.parametrize("encoding", STEPPED, ids=[one.name for one in STEPPED])
vectors = st.builds(
    lambda seed, size, scale: np.random.default_rng(seed).normal(0, scale, size).astype(np.float32),
    st.integers(0, 2**31), st.integers(1, 200), st.sampled_from([1e-9, 1e-3, 1.0, 1e5]),
)  # fmt: skip


@given(vectors)
def test_a_public_form_travels_in_half_precision_without_a_loss(vector):
    public = half(vector)
    np.testing.assert_array_equal(decode_half(encode_half(public), vector.size), public)
    np.testing.assert_array_equal(half(public), public)
    assert np.abs(public).max() <= 65504
    near = np.abs(vector) <= 65504
    assert (np.abs(public - vector)[near] <= np.abs(vector)[near] * 2**-11 + 2**-25).all()


@every_stepped
@given(st.integers(0, 2**31), st.integers(1, 300))
def test_a_phone_that_reads_a_step_has_what_the_cloud_has(encoding, seed, size):
    rng = np.random.default_rng(seed)
    public, version = half(rng.normal(0, 1, size).astype(np.float32)), rng.normal(0, 1, size).astype(np.float32)
    parts = step_to(version, public, encoding, generator(seed, "download", 1))
    found, read = decode_step(encode_step(encoding, parts), size)
    assert found == encoding
    np.testing.assert_array_equal(stepped(public, found, read), stepped(public, encoding, parts))


@given(st.integers(0, 2**31), st.integers(1, 20))
def test_with_int8_a_form_is_off_by_one_rounding_of_its_last_step_and_no_more(seed, versions):
    """Errors of earlier steps do not add up: each step is taken towards the version itself."""
    rng, encoding = np.random.default_rng(seed), Int8(block=16)
    version = rng.normal(0, 1, 64).astype(np.float32)
    public = half(version)
    for number in range(1, versions + 1):
        version = (version + rng.normal(0, 0.01, 64)).astype(np.float32)
        largest = np.abs(version - public).reshape(-1, 16).max(axis=1).repeat(16)
        parts = step_to(version, public, encoding, generator(seed, "download", number))
        public = stepped(public, encoding, parts)
        assert (np.abs(public - version) <= largest / 127 + np.abs(version) * 2**-10 + 2**-24).all()


def test_with_int8_a_form_is_the_version_on_average():
    """Before half precision, whose rounding is of another kind: here all values can be said in it."""
    version, public = np.float32(1 / 3) * np.ones(16, np.float32), np.zeros(16, np.float32)
    public[0], version[0] = 0, 1
    encoding = Int8(block=16)
    moved = [
        encoding.decode(step_to(version, public, encoding, generator(seed, "download")), 0, 16) for seed in range(4000)
    ]
    error = np.abs(np.mean(moved, axis=0) - version)
    assert error.max() < 5 * (1 / 127) / 2 / np.sqrt(4000)


@given(st.integers(0, 2**31))
def test_with_top_k_later_steps_make_up_for_what_was_left_out(seed):
    """To a version that stands still, a tenth of the values at a time: after ten steps it is there, nearly."""
    rng, encoding = np.random.default_rng(seed), TopK(fraction=0.1)
    version, public = rng.normal(0, 1, 100).astype(np.float32), np.zeros(100, np.float32)
    for number in range(10):
        public = stepped(public, encoding, step_to(version, public, encoding, generator(seed, "download", number)))
    assert np.abs(public - version).max() <= np.abs(version).max() * 2**-11


def test_files_of_another_form_are_refused():
    encoding, public = Int8(block=16), np.ones(20, np.float32)
    parts = step_to(2 * public, public, encoding, generator(0, "download"))
    for body in (encode_half(public), encode_step(encoding, parts)[:-1], b"", encode_step(Int8(block=32), parts)):
        with pytest.raises(UpdateUnusable):
            decode_step(body, 20)
    with pytest.raises(UpdateUnusable, match="negative"):
        decode_step(encode_step(encoding, dict(parts) | {"peaks": -parts["peaks"]}), 20)
    for body in (encode_step(encoding, parts), encode_half(public)[:-1], encode_half(np.ones(21, np.float32))):
        with pytest.raises(UpdateUnusable):
            decode_half(body, 20)
