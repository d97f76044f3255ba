"""The messages of an update that a phone puts into the store by itself: where to, and that it is there."""

from pydantic import Field

from flsys_ray.wire.schemas import Message, Sha256


class StagedUpdate(Message):
    """The update's file: how many bytes it has, and their hash."""

    size_bytes: int = Field(ge=1)
    sha256: Sha256


class UploadAddress(Message):
    """Where the file goes: one `PUT` of just these bytes with just these headers, and no token of ours.

    `412` from there says that it is there already.
    """

    url: str
    headers: dict[str, str]
    expires_in_s: float
