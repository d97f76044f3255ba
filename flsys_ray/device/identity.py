"""Who this phone is to the cloud: an installation id made once, and the token that enrolling gives."""

import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from flsys_ray.device.attestation import Attest
from flsys_ray.device.client import CloudClient
from flsys_ray.device.clock import Clock
from flsys_ray.device.database import Database
from flsys_ray.errors import Unauthenticated
from flsys_ray.wire.schemas import EnrolReply

MARGIN_S = 60.0
RENEW_FRACTION = 1 / 3  # of its life that is left when a token is renewed
RETRY_S = 3600.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Identity:
    """Enrols when needed. The token stays in the database and in request headers."""

    database: Database
    client: CloudClient
    clock: Clock
    app_key: str = field(repr=False)
    attest: Attest | None = field(default=None, repr=False)

    @property
    def device_id(self) -> str | None:
        """The device's id, None before it has enrolled."""
        found = self.database.setting("device_id")
        return None if found is None else str(found)

    @property
    def enrolled(self) -> bool:
        """Whether there is a token that is still good for a while."""
        expires_at = self.database.setting("expires_at")
        known = self.database.setting("token") is not None and isinstance(expires_at, int | float)
        return known and float(expires_at or 0) > self.clock.now() + MARGIN_S

    def enrol(self) -> str:
        """Enrol, or enrol again as the same device; return its id. Raises `Unauthenticated` for a wrong app key."""
        reply = self.client.enrol(self.app_key, self._installation_id(), self.attest)
        self._keep(reply)
        return reply.device_id

    @property
    def renewal_due(self) -> bool:
        """Whether less than a third of the token's life is left, and the last try to renew it is an hour ago."""
        now = self.clock.now()
        return now >= max(self._instant("renew_at"), self._instant("renew_tried_at") + RETRY_S)

    def renew(self) -> None:
        """Get another token for the present one. A token that the cloud does not take ends in an enrolment.

        Raises `Forbidden` if the device is revoked, `TryLater` if the cloud cannot be reached.
        """
        self.database.set_settings({"renew_tried_at": self.clock.now()})
        try:
            self._keep(self.client.renew(self._token()))
        except Unauthenticated:
            self.enrol()

    def call(self, request: Callable[[str], T]) -> T:
        """Make a request with the device's token; if the cloud does not take the token, enrol again and repeat once."""
        if not self.enrolled:
            self.enrol()
        try:
            return request(self._token())
        except Unauthenticated:
            self.enrol()
            return request(self._token())

    def _keep(self, reply: EnrolReply) -> None:
        # Counted from now by the phone's clock: it may differ from the cloud's, and then renews early or not at all.
        life_s = max(0.0, reply.expires_at - self.clock.now())
        self.database.set_settings(
            {
                "device_id": reply.device_id,
                "token": reply.token,
                "expires_at": reply.expires_at,
                "renew_at": reply.expires_at - RENEW_FRACTION * life_s,
                "renew_tried_at": None,
            }
        )

    def _instant(self, name: str) -> float:
        found = self.database.setting(name)
        return float(found) if isinstance(found, int | float) else float("-inf")

    def _token(self) -> str:
        return str(self.database.setting("token"))

    def _installation_id(self) -> str:
        with self.database.transaction():
            found = self.database.setting("installation_id")
            if found is None:
                found = secrets.token_hex(16)
                self.database.set_settings({"installation_id": found})
        return str(found)
