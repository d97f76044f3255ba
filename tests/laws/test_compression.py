"""Encodings: the form that they promise, what they may lose, and what hostile tensors are answered with.

Each encoding that is registered is held to the laws, unasked. Seeds are fixed: a test passes always or never.
"""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from flsys_ray.compression.base import DTYPES, ENCODINGS, Encoding
from flsys_ray.compression.float16 import Float16
from flsys_ray.compression.float32 import FLOAT32
from flsys_ray.compression.int8 import Int8
from flsys_ray.compression.top_k import TopK
from flsys_ray.core.layout import Layout
from flsys_ray.core.plan import parse_plan
from flsys_ray.core.rng import generator
from flsys_ray.errors import PlanInvalid, UpdateUnusable
from flsys_ray.wire.tensors import (
    decode_range,
    decode_update,
    encode_compressed,
    encode_update,
    encoding_of,
    max_update_bytes,
    parse_encoding,
)

MAX_ABS = 1e9
FLOAT16_MAX = 65504.0
KINDS = [*(kind() for kind in ENCODINGS.classes.values()), Int8(block=16), TopK(fraction=1.0), TopK(fraction=1e-6)]
every_encoding = pytest.mark.parametrize("encoding", KINDS, ids=str)
values = st.floats(-FLOAT16_MAX, FLOAT16_MAX, width=32)
deltas = arrays.arrays(np.float32, st.integers(1, 300), elements=values)


def layout(size: int) -> Layout:
    return Layout.of([("w", (size,), True)])


def encoded(encoding: Encoding, delta: np.ndarray, seed: int = 0):
    return encoding.encode(delta, generator(seed, "test"))


def sent(encoding: Encoding, delta: np.ndarray, seed: int = 0) -> bytes:
    return encode_compressed(encoding, encoded(encoding, delta, seed), 12, 0.25, 3)


def received(body: bytes, size: int, *accepted: Encoding):
    return decode_update(body, layout(size), MAX_ABS, accepted=accepted)


# Laws ------------------------------------------------------------------------------------------------------------


@every_encoding
@given(delta=deltas, seed=st.integers(0, 99))
def test_what_is_sent_has_the_form_that_the_cloud_expects(encoding, delta, seed):
    before = delta.tobytes()
    parts = encoded(encoding, delta, seed)
    form = encoding.form(delta.size)
    assert {name: (part.dtype, part.length) for name, part in form.items()} == {
        name: (next(tag for tag, dtype in DTYPES.items() if dtype == tensor.dtype), len(tensor))
        for name, tensor in parts.items()
    }
    assert encoding.flaw(parts, delta.size) == ""
    assert delta.tobytes() == before


@every_encoding
@given(delta=deltas, seed=st.integers(0, 99))
def test_a_round_trip_is_finite_hardly_larger_and_the_same_bits_in_pieces(encoding, delta, seed):
    body = sent(encoding, delta, seed)
    update = received(body, delta.size, encoding)
    assert (update.num_examples, update.loss, update.num_steps) == (12, 0.25, 3)
    assert update.delta.dtype == np.float32
    assert np.abs(update.delta).max() <= np.abs(delta).max() * (1 + 2.0**-11) + 2.0**-25  # half a unit of float16
    assert encoding_of(body) == encoding
    for start, stop in ((0, delta.size), (0, 1), (delta.size // 3, delta.size), (delta.size // 2, delta.size // 2)):
        assert decode_range(body, start, stop).tobytes() == update.delta[start:stop].tobytes()
    assert sent(encoding, delta, seed) == body
    assert len(body) <= max_update_bytes(delta.size, encoding=encoding)


@every_encoding
@given(size=st.integers(1, 2000))
def test_an_upload_may_be_as_large_as_its_encoding_or_float32(encoding, size):
    own = sum(part.num_bytes for part in encoding.form(size).values())
    assert max_update_bytes(size, encoding=encoding) == max(own, 4 * size) + 4096


@every_encoding
def test_zeros_come_back_as_zeros(encoding):
    assert not received(sent(encoding, np.zeros(40, np.float32)), 40, encoding).delta.any()


@every_encoding
def test_an_encoding_is_what_its_description_says(encoding):
    assert parse_encoding(json.loads(encoding.model_dump_json())) == encoding
    assert parse_plan({"compression": encoding.model_dump()}).compression == encoding


# What each may lose ------------------------------------------------------------------------------------------------


@given(deltas)
def test_float16_is_off_by_half_a_unit_of_its_last_place(delta):
    lost = np.abs(received(sent(Float16(), delta), delta.size, Float16()).delta.astype(np.float64) - delta)
    assert (lost <= np.maximum(2.0**-11 * np.abs(delta.astype(np.float64)), 2.0**-25)).all()


def test_float16_stops_at_its_largest_value():
    found = received(sent(Float16(), np.array([1e6, -1e6, 65519], np.float32)), 3, Float16()).delta
    assert found.tolist() == [FLOAT16_MAX, -FLOAT16_MAX, FLOAT16_MAX]


@given(deltas, st.sampled_from([16, 64, 256]), st.integers(0, 99))
def test_int8_is_off_by_less_than_one_unit_of_its_block(delta, block, seed):
    found = received(sent(Int8(block=block), delta, seed), delta.size, Int8(block=block)).delta
    for start in range(0, delta.size, block):
        part = delta[start : start + block].astype(np.float64)
        peak = np.abs(part).max()
        assert (np.abs(found[start : start + block] - part) <= peak / 127 * (1 + 1e-6)).all()
        largest = np.abs(part) == peak
        assert (found[start : start + block][largest] == delta[start : start + block][largest]).all()


def test_stochastic_rounding_is_right_on_average():
    """Hoeffding's inequality: a mean of n draws within one unit u is off by more than u sqrt(ln(2 / p) / 2n) with a
    probability below p. With p = 1e-9 for each of 512 values, chance fails this test once in two million seeds; a
    rounding to the nearest is off by up to u / 2, and n draws allow u / 13."""
    draws, chance = 2000, 1e-9
    delta = generator(3, "values").normal(0, 1, 512).astype(np.float32)
    total = np.zeros(512)
    for seed in range(draws):
        total += received(sent(Int8(block=128), delta, seed), 512, Int8(block=128)).delta
    unit = np.repeat([np.abs(delta[start : start + 128]).max() for start in range(0, 512, 128)], 128) / 127
    bound = unit * math.sqrt(math.log(2 / chance) / (2 * draws))
    off = np.abs(total / draws - delta)
    assert (off <= bound + 1e-6 * np.abs(delta)).all()
    nearest = np.abs(np.rint(delta / unit) * unit - delta)
    assert (nearest > bound).sum() > 256  # the same bound would find a rounding that is not unbiased


def test_int8_draws_anew_for_each_seed_and_value():
    delta = np.full(4096, 0.5, np.float32)
    delta[::256] = 127.0  # in each block half a unit
    one, other = (encoded(Int8(), delta, seed)["delta"] for seed in range(2))
    raised = one == 1
    assert abs(raised.mean() - 0.5) < 4 * 0.5 / 64
    assert 0.4 < (one == other).mean() < 0.6


@given(deltas, st.floats(0.001, 1))
def test_top_k_sends_the_largest_values_exactly_and_nothing_else(delta, fraction):
    encoding = TopK(fraction=fraction)
    found = received(sent(encoding, delta), delta.size, encoding).delta
    kept = encoded(encoding, delta)["indices"]
    assert len(kept) == max(1, math.ceil(fraction * delta.size))
    assert found[kept].tobytes() == delta[kept].tobytes()
    left = np.setdiff1d(np.arange(delta.size), kept)
    assert not found[left].any()
    if left.size:
        assert np.abs(delta[left]).max() <= np.abs(delta[kept]).min()


def test_of_equal_values_top_k_takes_the_first():
    assert encoded(TopK(fraction=0.5), np.array([1, -1, 1, -1], np.float32))["indices"].tolist() == [0, 1]


def test_with_its_memory_top_k_sends_all_in_the_end():
    """What was sent and what is still in memory add up to all deltas: Stich et al. 2018, Algorithm 1."""
    encoding, rng = TopK(fraction=0.1), generator(1, "deltas")
    memory, sent_so_far, total = np.zeros(50, np.float32), np.zeros(50), np.zeros(50)
    for _ in range(200):
        delta = rng.normal(0.1, 1, 50).astype(np.float32)
        total += delta
        parts = encoded(encoding, delta + memory)
        decoded = encoding.decode(parts, 0, 50)
        memory = delta + memory - decoded
        sent_so_far += decoded
    assert np.abs(sent_so_far + memory - total).max() < 1e-3
    assert np.abs(memory).max() < 20 < np.abs(total).max()  # and the memory does not grow with time


# Negotiation -----------------------------------------------------------------------------------------------------


def test_float32_is_taken_whatever_the_plan_asks_for():
    delta = np.ones(8, np.float32)
    assert received(encode_update(delta, 12, 0.25), 8, Int8()).delta.tobytes() == delta.tobytes()
    assert encode_compressed(FLOAT32, {"delta": delta}, 12, 0.25) == encode_update(delta, 12, 0.25)


@pytest.mark.parametrize("other", [Float16(), Int8(block=64), TopK()], ids=str)
def test_an_encoding_that_was_not_asked_for_is_refused_by_name(other):
    with pytest.raises(UpdateUnusable, match=f'"name":"{other.name}".* is none that the assignment takes'):
        received(sent(other, np.ones(8, np.float32)), 8, Int8())


def test_what_was_accepted_once_is_read_again_whatever_the_plan_says_now():
    for encoding in KINDS:
        decode_update(sent(encoding, np.ones(8, np.float32)), layout(8), MAX_ABS)


@pytest.mark.parametrize(
    "text",
    ["", "int8", "3", "null", "[]", "{}{}", '{"name": "zip"}', '{"name": "int8", "block": 0}', '"zip"', "[" * 900,
     '{"name": "top_k", "fraction": NaN}', '{"name": "int8", "more": 1}', '{"name": "int8"}' + " " * 2000],
)  # fmt: skip
def test_an_encoding_that_is_none_is_refused_saying_why(text):
    header = {
        "__metadata__": {"num_examples": "1", "loss": "1.0", "encoding": text},
        "delta": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
    }
    head = json.dumps(header).encode()
    with pytest.raises(UpdateUnusable, match="metadata 'encoding' must describe an encoding") as caught:
        received(len(head).to_bytes(8, "little") + head + bytes(8), 2)
    assert len(caught.value.message) < 200


def test_a_rule_with_a_control_takes_no_compression():
    with pytest.raises(PlanInvalid, match="cannot be combined with compression") as caught:
        parse_plan({"aggregation": {"name": "scaffold", "devices": 100}, "compression": "int8"})
    assert caught.value.fields == ("compression", "aggregation")


# Hostile tensors -------------------------------------------------------------------------------------------------


def changed(encoding: Encoding, **tensors: object) -> bytes:
    """Return an update of 8 values with other tensors in place of some of its own."""
    parts = dict(encoded(encoding, np.arange(8, dtype=np.float32)))
    parts |= {name: np.asarray(value, parts[name].dtype) for name, value in tensors.items()}
    return encode_compressed(encoding, parts, 12, 0.25)


HALF = TopK(fraction=0.5)
HOSTILE = {
    "a scale that is no number": (Int8(), {"peaks": [np.nan]}, "negative or not finite"),
    "a scale without end": (Int8(), {"peaks": [np.inf]}, "negative or not finite"),
    "a negative scale": (Int8(), {"peaks": [-1.0]}, "negative or not finite"),
    "a scale above the limit": (Int8(), {"peaks": [3e9], "delta": [127] * 8}, "'w' holds .* larger than the plan's"),
    "too many scales": (Int8(), {"peaks": [1.0, 1.0]}, r"'peaks' has shape \[2\]"),
    "a code below -127": (Int8(), {"delta": [0] * 7 + [-128]}, "code -128"),
    "too few codes": (Int8(), {"delta": [0] * 7}, r"'delta' has shape \[7\]"),
    "a half that is no number": (Float16(), {"delta": [np.nan] * 8}, "'w' holds nan at its element 0"),
    "a half without end": (Float16(), {"delta": [0] * 7 + [-np.inf]}, "'w' holds -inf at its element 7"),
    "an index twice": (HALF, {"indices": [1, 1, 2, 3]}, "do not rise"),
    "indices that fall": (HALF, {"indices": [3, 2, 1, 0]}, "do not rise"),
    "an index outside": (HALF, {"indices": [0, 1, 2, 8]}, "reach beyond the 8 parameters"),
    "an index of 2**32 - 1": (HALF, {"indices": [0, 1, 2, 2**32 - 1]}, "reach beyond the 8 parameters"),
    "fewer values than asked for": (HALF, {"indices": [0], "values": [1.0]}, "has shape"),
    "a value that is no number": (HALF, {"values": [np.nan] * 4}, "'w' holds nan at its element 4"),
}


@pytest.mark.parametrize(("encoding", "tensors", "said"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_tensors_are_refused_saying_why(encoding, tensors, said):
    with pytest.raises(UpdateUnusable, match=said) as caught:
        received(changed(encoding, **tensors), 8, encoding)
    assert len(caught.value.message) < 300


@every_encoding
@given(damage=st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4))
def test_any_damage_to_a_good_file(encoding, damage):
    body = bytearray(sent(encoding, np.linspace(-1, 1, 40).astype(np.float32)))
    for place, byte in damage:
        body[place % len(body)] = byte
    try:
        update = received(bytes(body), 40, encoding)
    except UpdateUnusable:
        return
    assert np.abs(update.delta).max() <= MAX_ABS
