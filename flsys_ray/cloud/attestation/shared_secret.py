"""A secret that all phones of an app share: HMAC-SHA256 (RFC 2104) of the nonce and the installation id, in hex.

It keeps out who has the app's enrolment key alone. A secret that is shipped in an app can be taken out of it: this is
for phones that get it in another way (managed devices, a sign-in), and for trying the protocol out.
"""

import hmac
from typing import Literal

from pydantic import Field

from flsys_ray.cloud.attestation.base import ACCEPTED, Attestation, Verdict
from flsys_ray.wire.access import statement


class SharedSecret(Attestation):
    """Accepts who knows the secret."""

    name: Literal["shared_secret"] = "shared_secret"
    secret: str = Field(min_length=32, max_length=1000, repr=False, description="random, at least 32 characters")

    def verify(self, evidence: str, installation_id: str, nonce: str, now: float) -> Verdict:
        """Return whether the evidence is the MAC. Takes constant time for a length."""
        said = statement(nonce, installation_id)
        expected = hmac.digest(self.secret.encode("utf-8", "surrogatepass"), said, "sha256").hex()
        if hmac.compare_digest(evidence.encode("utf-8", "surrogatepass"), expected.encode()):
            return ACCEPTED
        return Verdict(accepted=False, reason="the evidence is not the MAC of nonce and installation id")
