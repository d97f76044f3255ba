"""How the phone encodes its update: as the assignment asks, if it can, and in float32 otherwise."""

from contextlib import suppress
from dataclasses import dataclass

from flsys_ray.compression.base import Encoding
from flsys_ray.compression.float32 import FLOAT32
from flsys_ray.compression.memory import encoded
from flsys_ray.core.layout import Vector
from flsys_ray.errors import UpdateUnusable
from flsys_ray.programs.manifest import Manifest
from flsys_ray.wire.schemas import AssignmentMessage, UploadLink
from flsys_ray.wire.tensors import decode_vector, encode_compressed, encode_vector, parse_encoding


@dataclass(frozen=True, slots=True)
class Told:
    """What the cloud is told beside the delta."""

    num_examples: int
    loss: float
    num_steps: int
    train_s: float | None = None
    labels: tuple[int, ...] | None = None

    @property
    def more(self) -> dict[str, str]:
        """The metadata that may be left out."""
        found = {} if self.train_s is None else {"train_s": repr(float(self.train_s))}
        return found if self.labels is None else found | {"labels": ",".join(map(str, self.labels))}


@dataclass(frozen=True, slots=True)
class Upload:
    """The bytes to send, and the residual (safetensors) once they are counted; None: it stays as it is."""

    body: bytes
    residual: bytes | None = None


def chosen_encoding(upload: UploadLink) -> Encoding:
    """Return the encoding that an assignment asks for; float32 if this phone does not know it."""
    if upload.compression is None or upload.compression.get("name") not in upload.encodings:
        return FLOAT32
    return parse_encoding(upload.compression) or FLOAT32


def compressed(
    delta: Vector, told: Told, message: AssignmentMessage, manifest: Manifest, residual: bytes | None
) -> Upload:
    """Encode a delta, float32 [P]. The same assignment and delta give the same bytes.

    A residual of another program counts as none. Raises `UpdateUnusable` if delta and residual add up to no number.
    """
    encoding = chosen_encoding(message.upload)
    memory, trainable = _residual(residual, delta.size), manifest.to_layout().trainable_mask()
    found = encoded(encoding, delta, memory, trainable, round_=message.round, assignment_id=message.assignment_id)
    body = encode_compressed(encoding, found.parts, told.num_examples, told.loss, told.num_steps, more=told.more)
    return Upload(body, None if found.residual is None else encode_vector("residual", found.residual))


def _residual(residual: bytes | None, size: int) -> Vector | None:
    if residual is not None:
        with suppress(UpdateUnusable):
            return decode_vector(residual, "residual", size)
    return None
