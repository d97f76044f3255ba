"""The manifest of a device program, and the one file that holds both.

A program file is a LiteRT flatbuffer with a ZIP archive behind it (the convention of TFLite metadata: a reader of the
flatbuffer ignores what follows, a reader of ZIP archives finds its directory at the end). The archive holds
`manifest.json` and, where a model needs them, assets such as a tokenizer. One file, one hash, one download.
"""

import hashlib
import io
import json
import struct
import zipfile
import zlib
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from flsys_ray.core.layout import Layout, Leaf
from flsys_ray.errors import InvalidInput, ProgramInvalid
from flsys_ray.tokenizer import ASSET, Tokenizer

MANIFEST_NAME = "manifest.json"
MAX_MANIFEST_BYTES = 4 * 1024 * 1024
MAX_ASSET_BYTES = 64 * 1024 * 1024
MAX_PARAMETERS = 2**28
_FIXED_TIME = (1980, 1, 1, 0, 0, 0)
_UNREADABLE = (
    zipfile.BadZipFile, zlib.error, struct.error, EOFError, ValueError, OSError, NotImplementedError, RuntimeError,
)  # fmt: skip


Extent = Annotated[int, Field(ge=1, le=MAX_PARAMETERS)]


class LeafEntry(BaseModel):
    """One leaf of the layout, as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    shape: tuple[Extent, ...] = Field(max_length=8)
    offset: int = Field(ge=0, le=MAX_PARAMETERS)
    trainable: bool

    @classmethod
    def of(cls, leaf: Leaf) -> "LeafEntry":
        """Write down a leaf."""
        return cls(name=leaf.name, shape=leaf.shape, offset=leaf.offset, trainable=leaf.trainable)


class Manifest(BaseModel):
    """What a phone and the cloud must know of a program without running it.

    Shapes leave the batch out: `input_shape` (100, 3) with `batch_size` 32 means that `train` takes `x` [32, 100, 3]
    and `infer` takes `x` [1, 100, 3].
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    name: str = Field(min_length=1, max_length=100)
    flatbuffer_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    parameters: int = Field(gt=0, le=MAX_PARAMETERS, description="P, the length of the flat vector")
    slots: int = Field(ge=0, description="S, the length of the local optimizer's state; 0: it has none")
    batch_size: int = Field(gt=0, description="B, fixed at conversion; the last batch is padded and masked")
    input_shape: tuple[Extent, ...] = Field(min_length=1, max_length=7)
    input_dtype: Literal["float32", "int32"]
    classes: tuple[str, ...] = Field(min_length=2, description="class names; index = label; C = their number")
    loss: Literal["sparse_categorical_crossentropy"] = "sparse_categorical_crossentropy"
    local_optimizer: Literal["sgd", "momentum", "adam"]
    layout: tuple[LeafEntry, ...]

    @model_validator(mode="after")
    def _layout_fills_the_vector(self) -> "Manifest":
        try:
            size = self.to_layout().size
        except InvalidInput as error:
            raise ValueError(error.message) from error
        if size != self.parameters:
            raise ValueError(f"layout holds {size} elements, `parameters` says {self.parameters}")
        return self

    def to_layout(self) -> Layout:
        """Return the layout as the core's type."""
        return Layout(tuple(Leaf(e.name, e.shape, e.offset, e.trainable) for e in self.layout))


def pack(flatbuffer: bytes, manifest: Manifest, assets: dict[str, bytes] | None = None) -> bytes:
    """Return a program file. Same input, same bytes."""
    buffer = io.BytesIO()
    buffer.write(flatbuffer)
    with zipfile.ZipFile(buffer, "a", compression=zipfile.ZIP_DEFLATED) as archive:
        body = json.dumps(manifest.model_dump(mode="json"), indent=1, sort_keys=True)
        for name, content in {MANIFEST_NAME: body.encode(), **(assets or {})}.items():
            info = zipfile.ZipInfo(name, _FIXED_TIME)
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, content)
    return buffer.getvalue()


def read_manifest(program: bytes) -> Manifest:
    """Return the manifest of a program file, checked against the flatbuffer in front of it.

    Raises:
        ProgramInvalid: no archive, no manifest, a manifest that does not validate, or a hash that does not fit.
    """
    body, start = _read(program, MANIFEST_NAME, MAX_MANIFEST_BYTES)
    try:
        manifest = Manifest.model_validate_json(body)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "manifest"
        raise ProgramInvalid(f"program: {MANIFEST_NAME}: {where}: {first['msg']}") from error
    digest = hashlib.sha256(program[:start]).hexdigest()
    if digest != manifest.flatbuffer_sha256:
        raise ProgramInvalid("program: the flatbuffer is not the one that the manifest was made for (sha256 differs)")
    return manifest


def read_asset(program: bytes, name: str) -> bytes:
    """Return one asset of a program file. Raises `ProgramInvalid` if it is not there, or too large."""
    return _read(program, name, MAX_ASSET_BYTES)[0]


def read_tokenizer(program: bytes) -> Tokenizer | None:
    """Return the tokenizer of a program file; None if it has none, and takes no texts.

    Raises:
        ProgramInvalid: its asset is no tokenizer that this code can be.
    """
    try:
        asset = read_asset(program, ASSET)
    except ProgramInvalid as error:
        if isinstance(error.__cause__, KeyError):
            return None
        raise
    try:
        return Tokenizer.from_json(asset)
    except InvalidInput as error:
        raise ProgramInvalid(f"program: {error.message}") from error


def _read(program: bytes, name: str, limit_bytes: int) -> tuple[bytes, int]:
    """Return one file of the archive, and where the archive starts. The bytes may be hostile."""
    try:
        with zipfile.ZipFile(io.BytesIO(program)) as archive:
            if archive.getinfo(name).file_size > limit_bytes:
                raise ProgramInvalid(f"program: {name} is larger than {limit_bytes} bytes")
            return archive.read(name), min(info.header_offset for info in archive.infolist())
    except KeyError as error:
        raise ProgramInvalid(f"program: it holds no file {name!r}; was it made by flsys_ray.compile?") from error
    except _UNREADABLE as error:
        raise ProgramInvalid(
            f"program: not a program file made by flsys_ray.compile ({type(error).__name__}: {error})"
        ) from error
