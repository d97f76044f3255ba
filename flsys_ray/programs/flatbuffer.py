"""Read the flatbuffer of a program without running it, and without trusting it.

A small reader of the TFLite schema (version 3): operators, tensors and signatures. It needs neither TensorFlow nor
LiteRT, so that the cloud can check an uploaded program. Every offset is checked against the file, the number of reads
is bounded (tables may be shared, so a small file can describe a huge one), and nothing but `ProgramInvalid` is raised.
"""

import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn, TypeVar

from flsys_ray.errors import ProgramInvalid
from flsys_ray.programs.manifest import Manifest, read_manifest
from flsys_ray.programs.operators import BUILTIN_OPERATORS, CUSTOM, NOT_BUILT_IN, WITH_STATE

MAX_READS = 1_000_000
MAX_TENSOR_ELEMENTS = 2**30
_IDENTIFIER = b"TFL3"
_TYPES = {0: "float32", 2: "int32"}
_Item = TypeVar("_Item")


@dataclass(frozen=True)
class TensorInfo:
    """Shape and type of an input or output; a dtype that no signature may have reads as `type N`."""

    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Signature:
    """One signature: its tensors by name."""

    inputs: dict[str, TensorInfo]
    outputs: dict[str, TensorInfo]


@dataclass(frozen=True)
class Contents:
    """What is in a flatbuffer: how often each operator occurs (`CUSTOM:code` for custom ones), and its signatures."""

    operators: dict[str, int]
    signatures: dict[str, Signature]


def read(flatbuffer: bytes) -> Contents:
    """List the operators and signatures of a TFLite flatbuffer; bytes behind it are ignored.

    Raises:
        ProgramInvalid: the bytes are not a flatbuffer of the schema.
    """
    if flatbuffer[4:8] != _IDENTIFIER:
        raise ProgramInvalid("program: not a LiteRT flatbuffer (its identifier is missing)")
    try:
        return _read_model(_Table(_Bytes(flatbuffer), struct.unpack_from("<I", flatbuffer, 0)[0]))
    except (struct.error, IndexError, UnicodeDecodeError, OverflowError) as error:
        raise ProgramInvalid(f"program: the flatbuffer is damaged ({type(error).__name__})") from error


def check(program: bytes) -> Contents:
    """Check that a program file keeps the contract: its manifest, built-in operators only, the four signatures.

    Raises:
        ProgramInvalid: it does not; the message says what is wrong.
    """
    manifest = read_manifest(program)
    contents = read(program)
    for operator in contents.operators:
        if operator.split(":")[0] in NOT_BUILT_IN:
            raise ProgramInvalid(f"program: operator {operator!r} is not built into LiteRT")
        if operator in WITH_STATE:
            raise ProgramInvalid(f"program: operator {operator!r} keeps state between calls")
    for name, expected in contract(manifest).items():
        found = contents.signatures.get(name)
        if found is None:
            raise ProgramInvalid(f"program: signature {name!r} is missing")
        _compare(f"{name} input", expected.inputs, found.inputs)
        _compare(f"{name} output", expected.outputs, found.outputs)
    return contents


def contract(manifest: Manifest) -> dict[str, Signature]:
    """Return the four signatures that a program with this manifest must have."""
    batch, size = manifest.batch_size, manifest.parameters
    vector, scalar = TensorInfo((size,), "float32"), TensorInfo((), "float32")
    data = {
        "x": TensorInfo((batch, *manifest.input_shape), manifest.input_dtype),
        "y": TensorInfo((batch,), "int32"),
        "mask": TensorInfo((batch,), "float32"),
    }
    steering = {"learning_rate": scalar, "anchor": vector, "proximal_mu": scalar}
    slots = {"slots": TensorInfo((manifest.slots,), "float32")} if manifest.slots else {}
    one = TensorInfo((1, *manifest.input_shape), manifest.input_dtype)
    scores = TensorInfo((1, len(manifest.classes)), "float32")
    sums = dict.fromkeys(("loss_sum", "correct", "count"), scalar)
    return {
        "init": Signature({"seed": TensorInfo((), "int32")}, {"parameters": vector}),
        "train": Signature(
            {"parameters": vector, **data, **steering, **slots},
            {"parameters": vector, "loss": scalar, **slots},
        ),
        "evaluate": Signature({"parameters": vector, **data}, sums),
        "infer": Signature({"parameters": vector, "x": one}, {"scores": scores}),
    }


def _compare(where: str, expected: dict[str, TensorInfo], found: dict[str, TensorInfo]) -> None:
    for name in sorted(expected.keys() | found.keys()):
        if name not in found:
            raise ProgramInvalid(f"program: {where} {name!r} is missing")
        if name not in expected:
            raise ProgramInvalid(f"program: {where} {name!r} is not in the contract")
        if found[name] != expected[name]:
            is_, must = found[name], expected[name]
            raise ProgramInvalid(
                f"program: {where} {name!r} is {is_.dtype} {is_.shape}, the manifest says {must.dtype} {must.shape}"
            )


class _Bytes:
    """Bounded reads of little-endian numbers. Raises `struct.error` outside of the file."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self._left = MAX_READS

    def number(self, kind: str, at: int) -> int:
        self._left -= 1
        if self._left < 0:
            _refuse("it has more parts than a program may have")
        if at < 0:
            raise IndexError(at)
        return int(struct.unpack_from(kind, self.data, at)[0])

    def text(self, at: int) -> str:
        length = self.number("<I", at)
        if length > 1000 or at + 4 + length > len(self.data):
            raise IndexError(length)
        return self.data[at + 4 : at + 4 + length].decode()


class _Table:
    """A flatbuffer table: fields by their number in the schema."""

    def __init__(self, source: _Bytes, at: int) -> None:
        self._source = source
        self._at = at
        self._fields = at - source.number("<i", at)
        self._length = source.number("<H", self._fields)

    def _place(self, field: int) -> int | None:
        entry = 4 + 2 * field
        if entry + 2 > self._length:
            return None
        offset = self._source.number("<H", self._fields + entry)
        return self._at + offset if offset else None

    def number(self, field: int, kind: str, default: int) -> int:
        place = self._place(field)
        return default if place is None else self._source.number(kind, place)

    def text(self, field: int) -> str:
        place = self._place(field)
        return "" if place is None else self._source.text(self._follow(place))

    def numbers(self, field: int) -> list[int]:
        return self._vector(field, lambda at: self._source.number("<i", at))

    def tables(self, field: int) -> list["_Table"]:
        return self._vector(field, lambda at: _Table(self._source, self._follow(at)))

    def _vector(self, field: int, item: Callable[[int], _Item]) -> list[_Item]:
        place = self._place(field)
        if place is None:
            return []
        start = self._follow(place)
        return [item(start + 4 + 4 * i) for i in range(self._source.number("<I", start))]

    def _follow(self, at: int) -> int:
        return at + self._source.number("<I", at)


def _refuse(why: str) -> NoReturn:
    raise ProgramInvalid(f"program: the flatbuffer cannot be used: {why}")


def _read_model(model: _Table) -> Contents:
    if model.number(0, "<I", 0) != 3:
        _refuse("its schema version is not 3")
    codes = [_operator(code) for code in model.tables(1)]
    operators: Counter[str] = Counter()
    tensors: list[list[TensorInfo]] = []
    for subgraph in model.tables(2):
        tensors.append([_tensor(tensor) for tensor in subgraph.tables(0)])
        if sum(_elements(tensor) for tensor in tensors[-1]) > MAX_TENSOR_ELEMENTS:
            _refuse(f"its tensors have more than {MAX_TENSOR_ELEMENTS} elements")
        for operator in subgraph.tables(3):
            operators[codes[_index(operator.number(0, "<I", 0), codes)]] += 1
            for tensor in operator.numbers(1) + operator.numbers(2):
                if tensor != -1:  # an optional input that is not there
                    _index(tensor, tensors[-1])
    signatures: dict[str, Signature] = {}
    for signature in model.tables(7):
        inside = tensors[_index(signature.number(4, "<I", 0), tensors)]
        signatures[signature.text(2)] = Signature(_named(signature, 0, inside), _named(signature, 1, inside))
    return Contents(dict(sorted(operators.items())), signatures)


def _operator(code: _Table) -> str:
    """The name of an operator code. Old files have it in a byte, newer ones in an int; the larger one counts."""
    number = max(code.number(0, "<b", 0), code.number(3, "<i", 0))
    if not 0 <= number < len(BUILTIN_OPERATORS):
        _refuse(f"operator code {number} is experimental or newer than this platform")
    name = BUILTIN_OPERATORS[number]
    return f"{CUSTOM}:{code.text(1)}" if name == CUSTOM else name


def _tensor(tensor: _Table) -> TensorInfo:
    shape = tuple(tensor.numbers(0))
    if any(n < 0 for n in shape) or len(shape) > 8:
        _refuse(f"a tensor has shape {shape[:9]}")
    kind = tensor.number(1, "<b", 0)
    return TensorInfo(shape, _TYPES.get(kind, f"type {kind}"))


def _elements(tensor: TensorInfo) -> int:
    size = 1
    for n in tensor.shape:
        size *= n
    return size


def _index(index: int, items: list[_Item]) -> int:
    if not 0 <= index < len(items):
        raise IndexError(index)
    return index


def _named(signature: _Table, field: int, tensors: list[TensorInfo]) -> dict[str, TensorInfo]:
    entries = signature.tables(field)
    return {entry.text(0): tensors[_index(entry.number(1, "<I", 0), tensors)] for entry in entries}
