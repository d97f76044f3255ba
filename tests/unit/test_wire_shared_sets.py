"""Shared sets on the wire: what is written is read, and what is no class-uniform set is refused by name."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flsys_ray.errors import DataInvalid
from flsys_ray.wire.shared_sets import InputForm, SharedSet, decode_shared_set, encode_shared_set
from flsys_ray.wire.tensors import encode_tensors

FORM = InputForm((2, 3), "float32", ("a", "b"))
WORDS = InputForm((4,), "int32", ("a", "b", "c"))


def windows(y: list[int], value: float = 0.5) -> SharedSet:
    return SharedSet(np.full((len(y), 2, 3), value, np.float32), np.array(y, np.int32))


@given(st.integers(1, 20), st.integers(0, 2**31 - 1), st.sampled_from([FORM, WORDS]))
def test_what_is_written_is_read(per_class, seed, form):
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.repeat(np.arange(len(form.classes)), per_class)).astype(np.int32)
    x = (rng.normal(0, 100, (len(y), *form.shape))).astype(form.dtype)
    body = encode_shared_set(SharedSet(x, y))
    assert body == encode_shared_set(SharedSet(x.copy(), y.astype(np.int64)))
    found = decode_shared_set(body, form)
    np.testing.assert_array_equal(found.x, x)
    np.testing.assert_array_equal(found.y, y)
    assert (found.x.dtype.name, found.y.dtype.name) == (form.dtype, "int32")
    assert not found.x.flags.writeable


REFUSED = {
    "it is empty": (windows([]), FORM),
    "1 of 'a' and 0 of 'b'": (windows([0]), FORM),
    "2 of 'b' and 1 of 'a'": (windows([0, 1, 1]), FORM),
    "'y' lies in 0 .. 2, the program has 2 classes": (windows([0, 1, 2]), FORM),
    "'y' lies in -1 .. 1": (windows([-1, 1]), FORM),
    "not finite, in example 0": (windows([0, 1], np.inf), FORM),
    "'x' has dtype F32, the program takes int32": (windows([0, 1]), InputForm((2, 3), "int32", ("a", "b"))),
    r"'x' has shape \[2, 2, 3\], the program takes \['N', 3, 2\]": (
        windows([0, 1]),
        InputForm((3, 2), "float32", ("a", "b")),
    ),
    "'x' has 2 examples and 'y' 4": (SharedSet(windows([0, 1]).x, np.array([0, 1, 0, 1], np.int32)), FORM),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_is_no_uniform_set_is_refused_by_name(why):
    examples, form = REFUSED[why]
    with pytest.raises(DataInvalid, match=f"shared set: .*{why}"):
        decode_shared_set(encode_shared_set(examples), form)


def test_other_files_are_refused():
    x, y = windows([0, 1]).x, np.array([0, 1], np.int32)
    for body in (b"", b"{}", bytes(100), encode_shared_set(windows([0, 1]))[:-1]):
        with pytest.raises(DataInvalid, match="shared set: not a safetensors file"):
            decode_shared_set(body, FORM)
    with pytest.raises(DataInvalid, match=r"expected the tensors 'x' and 'y', found \['x'\]"):
        decode_shared_set(encode_tensors({"x": x}, None), FORM)
    with pytest.raises(DataInvalid, match=r"found \['x', 'y', 'z'\]"):
        decode_shared_set(encode_tensors({"x": x, "y": y, "z": y}, None), FORM)
    with pytest.raises(DataInvalid, match="'y' has dtype F32, the program takes int32"):
        decode_shared_set(encode_tensors({"x": x, "y": y.astype(np.float32)}, None), FORM)
    with pytest.raises(DataInvalid, match="'x' has dtype F16"):
        decode_shared_set(encode_tensors({"x": x.astype(np.float16), "y": y}, None), FORM)
    with pytest.raises(DataInvalid, match=r"'y' has shape \[2, 1\]"):
        decode_shared_set(encode_tensors({"x": x, "y": y[:, None]}, None), FORM)
