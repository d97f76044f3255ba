"""Tensors on the wire: whatever the bytes are, they become an update or `UpdateUnusable`, which names what is wrong."""

import json
import math
import struct

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import example, given
from hypothesis import strategies as st

from flsys_ray.core.layout import Layout
from flsys_ray.errors import UpdateUnusable
from flsys_ray.wire.container import MAX_HEADER_BYTES, data_offset, read_tensors
from flsys_ray.wire.tensors import (
    decode_update,
    decode_vector,
    encode_update,
    encode_vector,
    max_update_bytes,
)

LAYOUT = Layout.of([("conv1/kernel", (2, 2), True), ("conv1/bias", (2,), True), ("bn/moving_mean", (2,), False)])
MAX_ABS = 10.0
METADATA = {"num_examples": "12", "loss": "0.25"}
deltas = st.lists(st.floats(-MAX_ABS, MAX_ABS, width=32), min_size=8, max_size=8)
MAX_FLOAT32 = float(np.finfo(np.float32).max)


def decoded(body):
    return decode_update(body, LAYOUT, MAX_ABS)


def assembled(header, data=b""):
    """Return a file with any header: a mapping, or its bytes."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def tensor(start=0, end=32, shape=(8,), dtype="F32"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


def file_of(metadata=METADATA, name="delta", array=None):
    array = np.zeros(8, dtype=np.float32) if array is None else array
    return bytes(safetensors.numpy.save({name: array}, metadata=metadata))


# What is good ----------------------------------------------------------------------------------------------------


@given(deltas, st.integers(1, 10**12 - 1), st.floats(-MAX_FLOAT32, MAX_FLOAT32), st.integers(1, 10**12 - 1))
def test_what_is_encoded_is_decoded_to_the_bit(values, num_examples, loss, num_steps):
    delta = np.array(values, dtype=np.float32)
    body = encode_update(delta, num_examples, loss, num_steps)
    update = decoded(body)
    assert update.delta.tobytes() == delta.tobytes()
    assert (update.delta.dtype, update.delta.shape) == (np.float32, (8,))
    assert (update.num_examples, update.loss, update.num_steps) == (num_examples, loss, num_steps)
    assert encode_update(update.delta, update.num_examples, update.loss, update.num_steps) == body
    assert body[data_offset(body[:8]) :] == delta.tobytes()


def test_steps_are_one_where_a_phone_does_not_say():
    assert "num_steps" not in METADATA
    assert decoded(file_of()).num_steps == 1


@pytest.mark.parametrize("steps", ["0", "-1", "1.5", "", "many", "9" * 13])
def test_steps_that_make_no_sense_are_refused(steps):
    with pytest.raises(UpdateUnusable, match="'num_steps' must be a positive whole number"):
        decoded(file_of(METADATA | {"num_steps": steps}))


@pytest.mark.parametrize("edge", [MAX_ABS, -MAX_ABS, 0.0, -0.0, 1e-45])
def test_values_up_to_the_limit_are_taken(edge):
    delta = np.full(8, edge, dtype=np.float32)
    assert decoded(encode_update(delta, 1, 0.0)).delta.tobytes() == delta.tobytes()


def test_a_decoded_delta_cannot_be_changed():
    with pytest.raises(ValueError, match="read-only"):
        decoded(encode_update(np.zeros(8, dtype=np.float32), 1, 0.0)).delta[0] = 1.0


@pytest.mark.parametrize(
    "view",
    [
        np.arange(16, dtype=np.float32)[::2],
        np.arange(8, dtype=np.float32)[::-1],
        np.arange(16, dtype=np.float32).reshape(8, 2)[:, 1],
        np.arange(8, dtype=">f4"),
        np.arange(8, dtype=np.float64),
    ],
    ids=["every second", "reversed", "column", "big-endian", "float64"],
)
def test_any_view_of_memory_is_encoded_by_its_values(view):
    before = view.tobytes()
    assert decode_vector(encode_vector("delta", view), "delta", 8).tolist() == view.tolist()
    assert view.tobytes() == before


@pytest.mark.parametrize("size", [1, 3, 1000, 100_003])
def test_an_update_fits_into_the_bytes_that_are_allowed(size):
    body = encode_update(np.zeros(size, dtype=np.float32), 10**12 - 1, -1.2345678901234567e-300)
    assert len(body) <= max_update_bytes(size)
    assert decode_vector(body, "delta", size).size == size


def test_a_decoded_delta_is_aligned_enough_to_compute_with():
    for name_length in range(1, 9):
        name = "x" * name_length
        vector = decode_vector(encode_vector(name, np.arange(8, dtype=np.float32)), name, 8)
        assert float(vector.sum()) == 28.0


def test_the_order_of_metadata_is_not_told():
    vector = np.zeros(3, dtype=np.float32)
    one = encode_vector("delta", vector, {"a": "1", "b": "2"})
    assert one == encode_vector("delta", vector, {"b": "2", "a": "1"})


@pytest.mark.parametrize("metadata", [None, {"loss": "0.1", "num_examples": "3", "a": "ü", "z": '"'}])
def test_the_library_reads_what_is_written_here(metadata):
    vector = np.arange(5, dtype=np.float32)
    body = encode_vector("parameters", vector, metadata)
    assert safetensors.numpy.load(body)["parameters"].tolist() == vector.tolist()
    length = int.from_bytes(body[:8], "little")
    assert length % 8 == 0  # the tensor is aligned
    assert json.loads(body[8 : 8 + length]).get("__metadata__") == metadata
    if metadata is None:
        assert body == safetensors.numpy.save({"parameters": vector})


# Names, types, lengths -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (file_of(name="weights"), "expected exactly one tensor 'delta', found 'weights'"),
        (file_of(name="Delta"), "found 'Delta'"),
        (file_of(array=np.zeros(8)), "'delta' has dtype F64, expected F32"),
        (file_of(array=np.zeros(8, dtype=np.float16)), "dtype F16"),
        (file_of(array=np.zeros(8, dtype=np.int32)), "dtype I32"),
        (file_of(array=np.zeros(7, dtype=np.float32)), r"'delta' has shape \[7\], the model has \[8\]"),
        (file_of(array=np.zeros(9, dtype=np.float32)), r"shape \[9\], the model has \[8\]"),
        (file_of(array=np.zeros((8, 1), dtype=np.float32)), r"shape \[8, 1\], the model has \[8\]"),
        (file_of(array=np.zeros((2, 4), dtype=np.float32)), r"shape \[2, 4\]"),
        (file_of(array=np.zeros((), dtype=np.float32)), r"shape \[\]"),
        (file_of(array=np.zeros(0, dtype=np.float32)), r"shape \[0\]"),
        (bytes(safetensors.numpy.save({})), "found none"),
        (
            bytes(safetensors.numpy.save({name: np.zeros(8, dtype=np.float32) for name in ("delta", "other")})),
            "found 'delta', 'other'|found 'other', 'delta'",
        ),
        (file_of(name="x" * 5000), "'x{80}'$"),
    ],
)
def test_another_name_type_or_length_is_told(body, message):
    with pytest.raises(UpdateUnusable, match=message):
        decoded(body)


# Values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (math.nan, "holds nan at its element {}: not finite"),
        (math.inf, "holds inf at its element {}: not finite"),
        (-math.inf, "holds -inf at its element {}: not finite"),
        (10.5, "holds 10.5 at its element {}: larger than the plan's limit 10"),
        (-1e30, "larger than the plan's limit 10"),
        (float(np.nextafter(np.float32(10), np.float32(11))), "larger than the plan's limit 10"),
    ],
)
@pytest.mark.parametrize(
    ("index", "leaf", "element"),
    [(0, "conv1/kernel", 0), (3, "conv1/kernel", 3), (4, "conv1/bias", 0), (7, "bn/moving_mean", 1)],
)
def test_a_bad_value_is_told_with_its_leaf_and_element(value, what, index, leaf, element):
    delta = np.zeros(8, dtype=np.float32)
    delta[index] = value
    with pytest.raises(UpdateUnusable) as caught:
        decoded(encode_update(delta, 1, 0.0))
    assert repr(leaf) in caught.value.message
    assert what.format(element) in caught.value.message


def test_the_first_of_several_bad_values_is_told():
    delta = np.array([0, 0, 0, 0, 99, math.nan, math.inf, -99], dtype=np.float32)
    with pytest.raises(UpdateUnusable, match=r"'conv1/bias' holds 99.0 at its element 0"):
        decoded(encode_update(delta, 1, 0.0))


# Metadata --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "number", ["", "0", "-1", "1.5", "1e3", " 1", "1 ", "+1", "0x10", "١", "²", "1_000", "9" * 13, "9" * 5000, "nan"]
)
def test_examples_must_be_a_positive_whole_number(number):
    with pytest.raises(UpdateUnusable, match="metadata 'num_examples' must be a positive whole number") as caught:
        decoded(file_of(METADATA | {"num_examples": number}))
    assert len(caught.value.message) < 200


@pytest.mark.parametrize("loss", ["", "nan", "inf", "-Infinity", "1e999", "1e308", "-3.5e38", "x", "1" * 5000, "0,5"])
def test_the_loss_must_be_a_finite_float32(loss):
    with pytest.raises(UpdateUnusable, match="metadata 'loss' must be a finite float32") as caught:
        decoded(file_of(METADATA | {"loss": loss}))
    assert len(caught.value.message) < 200


@pytest.mark.parametrize(
    "metadata", [None, {}, {"num_examples": "3"}, {"loss": "1.0"}, {"Num_Examples": "3", "loss": "1"}]
)
def test_missing_metadata_is_told_by_name(metadata):
    with pytest.raises(UpdateUnusable, match=r"metadata '(num_examples|loss)'"):
        decoded(file_of(metadata))


def test_more_metadata_than_needed_is_ignored():
    assert decoded(file_of(METADATA | {"sdk": "1.2.3"})).num_examples == 12


# Hostile bytes ---------------------------------------------------------------------------------------------------

DATA = bytes(32)
HOSTILE = {
    "no bytes": b"",
    "seven bytes": bytes(7),
    "a header of length 0": struct.pack("<Q", 0),
    "a header of 2**64 - 1 bytes": struct.pack("<Q", 2**64 - 1) + b"{}",
    "a header of 2**63 bytes": struct.pack("<Q", 2**63) + b"{}",
    "a header longer than the file": struct.pack("<Q", 100) + b"{}",
    "a header above the limit": assembled(
        b'{"delta":' + b" " * MAX_HEADER_BYTES + json.dumps(tensor()).encode() + b"}", DATA
    ),
    "no JSON": assembled(b"hello", DATA),
    "half JSON": assembled(b'{"delta": {', DATA),
    "not UTF-8": assembled(b'{"\xff": 1}', DATA),
    "UTF-16": assembled('{"delta": 1}'.encode("utf-16"), DATA),
    "a list": assembled(b"[]", DATA),
    "a number": assembled(b"3", DATA),
    "null": assembled(b"null", DATA),
    "deep nesting": assembled(b"[" * 60_000, DATA),
    "deep objects": assembled(b'{"a":' * 10_000 + b"1" + b"}" * 10_000, DATA),
    "a number of 60,000 digits": assembled(b'{"a":' + b"9" * 60_000 + b"}", DATA),
    "a tensor that is a number": assembled({"delta": 3}, DATA),
    "a tensor without offsets": assembled({"delta": {"dtype": "F32", "shape": [8]}}, DATA),
    "negative offsets": assembled({"delta": tensor(-32, 0)}, DATA),
    "reversed offsets": assembled({"delta": tensor(32, 0)}, DATA),
    "offsets beyond the file": assembled({"delta": tensor(0, 64, (16,))}, DATA),
    "huge offsets": assembled({"delta": tensor(0, 2**64 - 1, (2**62,))}, DATA),
    "offsets beyond 64 bits": assembled({"delta": tensor(0, 2**70)}, DATA),
    "a hole before": assembled({"delta": tensor(4, 36)}, bytes(36)),
    "bytes behind": assembled({"delta": tensor()}, bytes(40)),
    "overlapping": assembled({"delta": tensor(), "other": tensor()}, DATA),
    "half overlapping": assembled({"delta": tensor(), "other": tensor(16, 48)}, bytes(48)),
    "a negative shape": assembled({"delta": tensor(shape=(-8,))}, DATA),
    "a shape that overflows": assembled({"delta": tensor(shape=(2**33, 2**33))}, DATA),
    "a shape that says less": assembled({"delta": tensor(shape=(4,))}, DATA),
    "a shape that says more": assembled({"delta": tensor(shape=(16,))}, DATA),
    "a shape of text": assembled({"delta": tensor(shape=("8",))}, DATA),
    "a shape of floats": assembled({"delta": tensor(shape=(8.0,))}, DATA),
    "an unknown dtype": assembled({"delta": tensor(dtype="F31")}, DATA),
    "a dtype that is null": assembled({"delta": tensor(dtype=None)}, DATA),
    "a number as metadata": assembled({"__metadata__": 3, "delta": tensor()}, DATA),
    "metadata of numbers": assembled({"__metadata__": {"num_examples": 12, "loss": 0.5}, "delta": tensor()}, DATA),
    "a list as metadata": assembled({"__metadata__": ["12"], "delta": tensor()}, DATA),
    "metadata only": assembled({"__metadata__": METADATA}),
    "a name twice, one of them other": assembled(
        b'{"delta": %s, "delta": %s}' % (json.dumps(tensor()).encode(), json.dumps(tensor(32, 64)).encode()), bytes(64)
    ),
    "many tensors": assembled({f"t{i}": tensor(32 * i, 32 * i + 32) for i in range(500)}, bytes(32 * 500)),
    "a pickle": b"\x80\x04\x95\x10\x00\x00\x00\x00\x00\x00\x00",
    "a zip": b"PK\x03\x04" + bytes(60),
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=list(HOSTILE))
def test_hostile_files_are_unusable_and_the_answer_is_short(body):
    with pytest.raises(UpdateUnusable) as caught:
        decoded(body)
    assert len(caught.value.message) < 1000


@pytest.mark.parametrize(("extra", "usable"), [(0, True), (1, False)])
def test_a_header_may_have_so_many_bytes_and_no_more(extra, usable):
    text = json.dumps({"__metadata__": METADATA, "delta": tensor()}).encode().ljust(MAX_HEADER_BYTES + extra)
    body = assembled(text, DATA)
    if usable:
        assert decoded(body).num_examples == 12
    else:
        with pytest.raises(UpdateUnusable, match="header is missing, truncated or too long"):
            decoded(body)


def test_metadata_given_twice_means_one_thing():
    """Whichever of two readers looks at it."""
    text = b'{"__metadata__": {"num_examples": "1", "loss": "1", "num_examples": "2"}, "delta": %s}'
    body = assembled(text % json.dumps(tensor()).encode(), DATA)
    try:
        assert decoded(body).num_examples == 2
    except UpdateUnusable as error:
        assert "safetensors" in error.message  # noqa: PT017 -- refusing it is as good


def test_a_file_cut_off_anywhere_is_unusable():
    body = encode_update(np.ones(8, dtype=np.float32), 12, 0.25)
    assert decoded(body).num_examples == 12
    for length in range(len(body)):
        with pytest.raises(UpdateUnusable):
            decoded(body[:length])
    with pytest.raises(UpdateUnusable):
        decoded(body + b"\x00")


def survives(body):
    """Decode; return whether it was an update. Anything but `UpdateUnusable` fails the test."""
    try:
        update = decoded(body)
    except UpdateUnusable:
        return False
    assert np.abs(update.delta).max() <= MAX_ABS
    assert update.num_examples >= 1
    assert math.isfinite(update.loss)
    return True


@given(st.binary(max_size=200))
def test_any_bytes_at_all(body):
    survives(body)


@given(st.binary(max_size=200), st.binary(max_size=64))
def test_any_header_at_all(header, data):
    survives(assembled(header, data))


keys = st.sampled_from(["delta", "__metadata__", "dtype", "shape", "data_offsets", "num_examples", "loss"])
scalars = st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.sampled_from(["F32", "12", "0.5"])


@given(
    st.recursive(
        scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=4), max_leaves=12
    ),
    st.integers(0, 64),
)
@example({"delta": tensor(), "__metadata__": METADATA}, 32)
def test_any_json_at_all(header, length):
    usable = survives(assembled(header, bytes(length)))
    assert usable == (header == {"delta": tensor(), "__metadata__": METADATA} and length == 32)


@given(deltas, st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 255)), min_size=1, max_size=4))
def test_any_damage_to_a_good_file(values, damage):
    body = bytearray(encode_update(np.array(values, dtype=np.float32), 12, 0.25))
    for place, byte in damage:
        body[place % len(body)] = byte
    survives(bytes(body))


# Beside the format's own library ---------------------------------------------------------------------------------

arrays = st.tuples(
    st.sampled_from(["<f4", "<f2", "<f8", "<u4", "i1", "u1", "<i4", "<i8", "?"]),
    st.lists(st.integers(0, 3), max_size=3).map(tuple),
).map(lambda one: np.arange(math.prod(one[1])).reshape(one[1]).astype(one[0]))


def as_the_library_reads(body):
    return {
        name: (entry["dtype"], tuple(entry["shape"]), bytes(entry["data"]))
        for name, entry in safetensors.deserialize(body)
    }


@given(st.dictionaries(st.text(max_size=8).filter(lambda name: name != "__metadata__"), arrays, max_size=5))
def test_tensors_are_read_as_the_library_reads_them(tensors):
    body = safetensors.numpy.save(tensors, metadata=METADATA)
    read = read_tensors(body)
    assert {each.name: (each.dtype, each.shape, bytes(each.data)) for each in read} == as_the_library_reads(body)
    for each in read:
        array = each.as_array(tensors[each.name].dtype)
        assert array.tobytes() == tensors[each.name].tobytes()
        assert array.flags.aligned
        assert not array.flags.writeable


places = st.integers(0, 4).map(lambda at: 8 * at)


@given(
    st.dictionaries(
        st.sampled_from("abc"),
        st.builds(
            tensor, places, places, st.lists(st.integers(0, 4), max_size=2), st.sampled_from(["F32", "U8", "F8"])
        ),
        max_size=3,
    ),
    places,
)
@example({"a": tensor(0, 16, (4,)), "b": tensor(16, 32, (2, 2))}, 32)
@example({"b": tensor(8, 16, (8,), "U8"), "a": tensor(0, 8, (2,))}, 16)
def test_a_file_that_is_taken_is_one_for_the_library_too(header, length):
    body = assembled(header, bytes(range(length)))
    try:
        read = read_tensors(body)
    except UpdateUnusable:
        return
    assert {each.name: (each.dtype, each.shape, bytes(each.data)) for each in read} == as_the_library_reads(body)


def test_numbers_at_an_odd_address_are_copied():
    values = np.arange(8, dtype=np.float32)
    text = json.dumps({"__metadata__": METADATA, "delta": tensor()}).encode()
    body = assembled(text + b" " * (1 + -len(text) % 4), values.tobytes())
    (found,) = read_tensors(body)
    assert found.as_array(values.dtype).flags.aligned
    assert decoded(body).delta.tobytes() == values.tobytes()
