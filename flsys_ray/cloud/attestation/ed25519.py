"""Signatures of the app's own attestation service: Ed25519 (RFC 8032) over the nonce and the installation id, base64.

The service judges what the platform says of the phone (Play Integrity, App Attest) in its own way, and signs. The cloud
holds its public key only, so who reads the store can forge nothing.
"""

import base64
import binascii
from importlib.util import find_spec
from typing import Literal

from pydantic import Field, field_validator

from flsys_ray.cloud.attestation.base import ACCEPTED, Attestation, Verdict
from flsys_ray.wire.access import statement

KEY_BYTES = 32


class Ed25519(Attestation):
    """Accepts what the holder of a private key has signed. Needs `pip install 'flsys-ray[attestation]'`."""

    name: Literal["ed25519"] = "ed25519"
    public_key: str = Field(min_length=44, max_length=44, description="32 bytes in base64")

    @field_validator("public_key")
    @classmethod
    def _is_a_key(cls, text: str) -> str:
        if len(_from_base64(text) or b"") != KEY_BYTES:
            raise ValueError(f"expected {KEY_BYTES} bytes in base64")
        return text

    @property
    def lacks(self) -> str | None:
        """The library that knows the curve."""
        return None if find_spec("cryptography") else "cryptography: pip install 'flsys-ray[attestation]'"

    def verify(self, evidence: str, installation_id: str, nonce: str, now: float) -> Verdict:
        """Return whether the evidence is the service's signature."""
        try:
            from cryptography.exceptions import InvalidSignature
            from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
        except ModuleNotFoundError:
            return Verdict(accepted=False, reason="the cloud lacks the package cryptography")
        key = Ed25519PublicKey.from_public_bytes(base64.b64decode(self.public_key))
        try:
            key.verify(_from_base64(evidence) or b"", statement(nonce, installation_id))
        except InvalidSignature:
            return Verdict(accepted=False, reason="the evidence is not the attestation service's signature")
        return ACCEPTED


def _from_base64(text: str) -> bytes | None:
    try:
        return base64.b64decode(text.encode("ascii"), validate=True)
    except (binascii.Error, ValueError):
        return None
