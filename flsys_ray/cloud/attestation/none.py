"""No attestation: whoever has a key that enrols may enrol any number of installations, as far as the quotas go."""

from typing import ClassVar, Literal

from flsys_ray.cloud.attestation.base import ACCEPTED, Attestation, Verdict


class NoAttestation(Attestation):
    """Accepts every installation."""

    name: Literal["none"] = "none"
    asks: ClassVar[bool] = False

    def verify(self, evidence: str, installation_id: str, nonce: str, now: float) -> Verdict:
        """Return that it is accepted."""
        return ACCEPTED
