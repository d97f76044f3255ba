"""Messages about who may call: renewing and revoking device tokens, keys of apps and of the cloud."""

from typing import Annotated

from pydantic import Field, StringConstraints

from flsys_ray.wire.schemas import Message, Name

DeviceId = Annotated[str, StringConstraints(pattern=r"^d-[0-9a-f]{24}$")]
KeyId = Annotated[str, StringConstraints(pattern=r"^[1-9][0-9]{0,8}$")]


def statement(nonce: str, installation_id: str) -> bytes:
    """Return what evidence is made over: the nonce, a line feed, the installation id, in UTF-8.

    A nonce holds no line feed, so no two pairs give the same bytes.
    """
    return f"{nonce}\n{installation_id}".encode("utf-8", "surrogatepass")


class NonceReply(Message):
    """A nonce for one enrolment, to be part of the evidence."""

    nonce: str
    expires_in_s: float


class RevokeTokensRequest(Message):
    """Which device tokens of an app are refused; null: all that there are now."""

    issued_before: float | None = Field(
        None, ge=0, description="UTC seconds, not in the future: tokens of devices that enrolled before are refused"
    )


class RevokeTokensReply(Message):
    """The instant before which no token is good. It only ever rises."""

    issued_before: float


class AttestationReply(Message):
    """How an app's phones prove what they are: its name alone, none of its fields."""

    attestation: str


class AppKeys(Message):
    """An app's newest keys, and which generations of keys are good."""

    app_id: Name
    generation: int
    key: str
    enrol_key: str
    generations: list[int]


class SigningKeyInfo(Message):
    """A signing key: it signs from `since`, and verifies until `until` (null: as long as it is the newest)."""

    kid: str
    since: float
    until: float | None


class SigningKeysReply(Message):
    """The signing keys in use, oldest first."""

    keys: list[SigningKeyInfo]


class RotateKeysRequest(Message):
    """Make a new signing key."""

    retire_old: bool = Field(
        default=False, description="no other key verifies any more: every device has to enrol again, open work is lost"
    )
