"""The interface of verifiers, and their registry.

A verifier is asked when a device enrols. The cloud has checked by then that the nonce is its own, fresh, made for this
app and never used by this installation before: so what a verifier accepts cannot be sent a second time, as long as its
evidence depends on the nonce and on the installation.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from flsys_ray.core.registry import Extension, Registry


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the evidence is good; `reason` is told to the caller if it is not, and holds no secret."""

    accepted: bool
    reason: str = ""


ACCEPTED = Verdict(accepted=True)


class Attestation(Extension, ABC):
    """Judges the evidence that a phone sends when it enrols. Its fields are kept in the store and never told again.

    `asks` says whether it needs evidence at all: a phone that sends none is then refused before it is asked.
    """

    asks: ClassVar[bool] = True

    @property
    def lacks(self) -> str | None:
        """What this cloud would have to install before it can judge evidence, None if it can."""
        return None

    @abstractmethod
    def verify(self, evidence: str, installation_id: str, nonce: str, now: float) -> Verdict:
        """Return whether `evidence` proves that an app's own phone asks to enrol `installation_id` with this nonce.

        Must not raise for any evidence. `now` is UTC seconds.
        """


VERIFIERS: Registry[Attestation] = Registry(Attestation, __package__)
