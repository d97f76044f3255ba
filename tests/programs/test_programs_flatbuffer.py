"""The reader of flatbuffers: it agrees with LiteRT's schema, finds what must not be there, survives hostile bytes."""

import contextlib
import hashlib
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from flsys_ray.errors import ProgramInvalid
from flsys_ray.programs import flatbuffer
from flsys_ray.programs.compile import CompiledProgram
from flsys_ray.programs.manifest import Manifest, pack, read_asset, read_manifest
from flsys_ray.programs.operators import BUILTIN_OPERATORS


def _body(program: bytes) -> bytes:
    """The flatbuffer in front of the archive."""
    return program[: program.index(b"PK\x03\x04")]


def _repack(body: bytes, manifest: Manifest, **changes: Any) -> bytes:
    changes["flatbuffer_sha256"] = hashlib.sha256(body).hexdigest()
    return pack(body, Manifest.model_validate({**manifest.model_dump(), **changes}))


def _schema_model(body: bytes) -> Any:
    from ai_edge_litert import schema_py_generated as schema

    return schema.ModelT.InitFromObj(schema.Model.GetRootAs(body, 0))


def _serialized(model: Any) -> bytes:
    import flatbuffers

    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def test_operators_and_signatures_are_those_of_the_official_schema(small: CompiledProgram) -> None:
    from ai_edge_litert import schema_py_generated as schema

    names = {v: k for k, v in vars(schema.BuiltinOperator).items() if isinstance(v, int)}
    assert [names[i] for i in range(len(BUILTIN_OPERATORS))] == list(BUILTIN_OPERATORS)
    model = _schema_model(_body(small.data))
    codes = [names[max(c.builtinCode, c.deprecatedBuiltinCode)] for c in model.operatorCodes]
    expected = Counter(codes[o.opcodeIndex] for graph in model.subgraphs for o in graph.operators)
    contents = flatbuffer.read(small.data)
    assert contents.operators == dict(expected)
    for definition in model.signatureDefs:
        graph = model.subgraphs[definition.subgraphIndex]
        found = contents.signatures[definition.signatureKey.decode()]
        for side, tensors in ((definition.inputs, found.inputs), (definition.outputs, found.outputs)):
            shapes = {m.name.decode(): tuple(graph.tensors[m.tensorIndex].shape) for m in side}
            assert {name: info.shape for name, info in tensors.items()} == shapes


def test_a_compiled_program_keeps_the_contract(small: CompiledProgram) -> None:
    contents = flatbuffer.check(small.data)
    assert set(contents.signatures) == {"init", "train", "evaluate", "infer"}
    assert set(contents.operators) <= set(BUILTIN_OPERATORS)
    assert contents.signatures == flatbuffer.contract(small.manifest)


@pytest.mark.parametrize(
    ("code", "custom", "says"),
    [
        (32, b"FlexErf", "'CUSTOM:FlexErf' is not built into LiteRT"),
        (32, b"Mine", "'CUSTOM:Mine' is not built into LiteRT"),
        (51, None, "'DELEGATE' is not built into LiteRT"),
        (148, None, "'RANDOM_UNIFORM' keeps state"),
        (173, None, "operator code 173 is experimental"),
        (5000, None, "operator code 5000 is experimental or newer"),
    ],
)
def test_foreign_operators_are_refused(small: CompiledProgram, code: int, custom: bytes | None, says: str) -> None:
    model = _schema_model(_body(small.data))
    operator = model.operatorCodes[0]
    operator.builtinCode, operator.deprecatedBuiltinCode, operator.customCode = code, min(code, 127), custom
    with pytest.raises(ProgramInvalid, match=says):
        flatbuffer.check(_repack(_serialized(model), small.manifest))


def test_a_real_flex_operator_is_found() -> None:
    import tensorflow as tf

    from flsys_ray.programs.lowering.convert import quiet

    function = tf.function(lambda x: {"y": tf.math.erf(x)}, input_signature=[tf.TensorSpec([3], name="x")])
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function.get_concrete_function()])
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS, tf.lite.OpsSet.SELECT_TF_OPS]
    with quiet():
        body = converter.convert()
    assert "CUSTOM:FlexErf" in flatbuffer.read(body).operators


def test_a_missing_signature_is_refused(small: CompiledProgram) -> None:
    model = _schema_model(_body(small.data))
    model.signatureDefs = [d for d in model.signatureDefs if d.signatureKey != b"evaluate"]
    with pytest.raises(ProgramInvalid, match="signature 'evaluate' is missing"):
        flatbuffer.check(_repack(_serialized(model), small.manifest))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"batch_size": 9}, r"evaluate input 'mask' is float32 \(8,\)|train input 'mask' is float32 \(8,\)"),
        ({"input_shape": (12, 4)}, "input 'x' is float32"),
        ({"input_dtype": "int32"}, "the manifest says int32"),
        ({"classes": ("a", "b")}, "infer output 'scores'"),
        ({"slots": 0}, "'slots' is not in the contract"),
        ({"slots": 7}, r"'slots' is float32 \(\d+,\), the manifest says float32 \(7,\)"),
    ],
)
def test_a_manifest_that_says_something_else_is_refused(small: CompiledProgram, change: Any, says: str) -> None:
    with pytest.raises(ProgramInvalid, match=says):
        flatbuffer.check(_repack(_body(small.data), small.manifest, **change))


def test_a_program_with_another_flatbuffer_is_refused(small: CompiledProgram) -> None:
    body = bytearray(_body(small.data))
    body[-1] ^= 1
    with pytest.raises(ProgramInvalid, match="sha256 differs"):
        flatbuffer.check(bytes(body) + small.data[len(body) :])


@pytest.mark.parametrize(
    "data", [b"", b"TFL3", b"\0" * 8, b"\0\0\0\0TFL3", b"\x08\0\0\0TFL3", b"PK\x05\x06" + b"\0" * 18]
)
def test_what_is_no_flatbuffer_is_refused(data: bytes) -> None:
    with pytest.raises(ProgramInvalid):
        flatbuffer.read(data)
    with pytest.raises(ProgramInvalid):
        read_manifest(data)


def test_shared_tables_cannot_make_the_reader_work_for_ever(small: CompiledProgram) -> None:
    """Ten thousand subgraphs that are all the same table: a small file that describes a huge model."""
    import struct

    count = 10_000
    vtable = struct.pack("<HHHHH", 10, 12, 4, 0, 8)
    subgraphs_at = 8 + len(vtable) + 2
    root = struct.pack("<iII", subgraphs_at - 8, 3, 4)
    vector = struct.pack("<I", count) + b"".join(struct.pack("<I", 4 * (count - i)) for i in range(count))
    tensors = struct.pack("<I", count) + b"".join(struct.pack("<I", 4 * (count - i)) for i in range(count))
    leaf_vtable = struct.pack("<HH", 4, 4)
    graph_vtable = struct.pack("<HHH", 6, 8, 4)
    graph = struct.pack("<iI", 0, 4)
    data = struct.pack("<I", subgraphs_at) + b"TFL3" + vtable + b"\0\0" + root + vector
    graph = struct.pack("<iI", -(8 + len(tensors) + 4), 4)
    data += graph + tensors + struct.pack("<i", -(4 + len(graph_vtable))) + graph_vtable + leaf_vtable
    with pytest.raises(ProgramInvalid):
        flatbuffer.read(data)


@given(st.data())
def test_damaged_programs_raise_nothing_but_program_invalid(small: CompiledProgram, data: Any) -> None:
    damaged = bytearray(small.data)
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, len(damaged) - 1))
        damaged[at : at + 4] = data.draw(st.binary(min_size=0, max_size=5))
    cut = data.draw(st.integers(0, len(damaged)))
    for candidate in (bytes(damaged), bytes(damaged[:cut]), _body(small.data)[:cut]):
        for reader in (flatbuffer.read, flatbuffer.check):
            with contextlib.suppress(ProgramInvalid):
                reader(candidate)


@given(st.data())
def test_damaged_tables_raise_nothing_but_program_invalid(small: CompiledProgram, data: Any) -> None:
    """Most of a flatbuffer's meaning is in its offsets: change whole 32-bit words to values that are nearly right."""
    body = _body(small.data)
    words = np.frombuffer(body[: len(body) // 4 * 4], np.uint32).copy()
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(words) - 1))
        words[at] = data.draw(st.one_of(st.integers(0, 64), st.integers(0, len(body)), st.integers(2**31, 2**32 - 1)))
    with contextlib.suppress(ProgramInvalid):
        flatbuffer.check(_repack(words.tobytes(), small.manifest))


def test_the_file_is_the_same_to_the_byte_each_time(small: CompiledProgram) -> None:
    body = _body(small.data)
    assert pack(body, small.manifest, {"a": b"1"}) == pack(body, small.manifest, {"a": b"1"})
    assert read_asset(pack(body, small.manifest, {"a": b"1"}), "a") == b"1"
    assert small.sha256 == hashlib.sha256(small.data).hexdigest()
    with pytest.raises(ProgramInvalid, match=r"'words\.txt'"):
        read_asset(small.data, "words.txt")


def test_an_archive_bomb_is_not_unpacked(small: CompiledProgram, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("flsys_ray.programs.manifest.MAX_ASSET_BYTES", 1000)
    with pytest.raises(ProgramInvalid, match="larger than 1000 bytes"):
        read_asset(pack(_body(small.data), small.manifest, {"a": b"0" * 1001}), "a")


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"parameters": 5}, "`parameters` says 5"),
        ({"layout": [{"name": "a", "shape": [5], "offset": 1, "trainable": True}]}, "starts at 1"),
        ({"layout": [{"name": "a", "shape": [-5], "offset": 0, "trainable": True}]}, "layout.0.shape.0"),
        ({"format": 2}, "format"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(small: CompiledProgram, change: Any, says: str) -> None:
    import io
    import json
    import zipfile

    buffer = io.BytesIO()
    buffer.write(_body(small.data))
    with zipfile.ZipFile(buffer, "a") as archive:
        archive.writestr("manifest.json", json.dumps({**small.manifest.model_dump(mode="json"), **change}))
    with pytest.raises(ProgramInvalid, match=says):
        read_manifest(buffer.getvalue())
