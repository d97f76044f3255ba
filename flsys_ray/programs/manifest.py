"""The manifest of a device program, and the one file that holds both.

A program file is a LiteRT flatbuffer with a ZIP archive behind it (the convention of TFLite metadata: a reader of the
flatbuffer ignores what follows, a reader of ZIP archives finds its directory at the end). The archive holds
`manifest.json` and, where a model needs them, assets such as a tokenizer. One file, one hash, one download.
"""

import hashlib
import io
import json
import zipfile
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from flsys_ray.core.layout import Layout, Leaf
from flsys_ray.errors import ProgramInvalid

MANIFEST_NAME = "manifest.json"
MAX_MANIFEST_BYTES = 4 * 1024 * 1024
_FIXED_TIME = (1980, 1, 1, 0, 0, 0)


class LeafEntry(BaseModel):
    """One leaf of the layout, as JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(min_length=1)
    shape: tuple[int, ...]
    offset: int = Field(ge=0)
    trainable: bool


class Manifest(BaseModel):
    """What a phone and the cloud must know of a program without running it.

    Shapes leave the batch out: `input_shape` (100, 3) with `batch_size` 32 means that `train` takes `x` [32, 100, 3]
    and `infer` takes `x` [1, 100, 3].
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    name: str = Field(min_length=1, max_length=100)
    flatbuffer_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    parameters: int = Field(gt=0, description="P, the length of the flat vector")
    slots: int = Field(ge=0, description="S, the length of the local optimizer's state; 0: it has none")
    batch_size: int = Field(gt=0, description="B, fixed at conversion; the last batch is padded and masked")
    input_shape: tuple[int, ...]
    input_dtype: Literal["float32", "int32"]
    classes: tuple[str, ...] = Field(min_length=2, description="class names; index = label; C = their number")
    loss: Literal["sparse_categorical_crossentropy"] = "sparse_categorical_crossentropy"
    local_optimizer: Literal["sgd", "momentum", "adam"]
    layout: tuple[LeafEntry, ...]

    @model_validator(mode="after")
    def _layout_fills_the_vector(self) -> "Manifest":
        if self.to_layout().size != self.parameters:
            raise ValueError(f"layout holds {self.to_layout().size} elements, `parameters` says {self.parameters}")
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
    try:
        with zipfile.ZipFile(io.BytesIO(program)) as archive:
            if archive.getinfo(MANIFEST_NAME).file_size > MAX_MANIFEST_BYTES:
                raise ProgramInvalid(f"program: {MANIFEST_NAME} is larger than {MAX_MANIFEST_BYTES} bytes")
            body = archive.read(MANIFEST_NAME)
            start = min(info.header_offset for info in archive.infolist())
    except (zipfile.BadZipFile, KeyError, ValueError, OSError, NotImplementedError, RuntimeError) as error:
        raise ProgramInvalid(
            f"program: not a program file made by flsys_ray.compile ({type(error).__name__}: {error})"
        ) from error
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
    """Return one asset of a program file. Raises `ProgramInvalid` if it is not there."""
    try:
        with zipfile.ZipFile(io.BytesIO(program)) as archive:
            return archive.read(name)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ProgramInvalid(f"program: it holds no asset {name!r}") from error
