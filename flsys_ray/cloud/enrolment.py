"""How phones come by their tokens: they enrol with their app's key, and renew a token with itself.

Steps of an enrolment, each of which may be the last one before a crash: the evidence is judged, a new device is
counted, its record is written, the token is made. Whatever was done, the same call again ends in the same device.
"""

from collections.abc import Callable

from flsys_ray.cloud.apps import AppRecord, AppRecords
from flsys_ray.cloud.credentials import NONCE_LIFE_S, Credentials, Device
from flsys_ray.cloud.devices import DeviceRecord, DeviceRecords
from flsys_ray.cloud.enrolled import EnrolledDevices
from flsys_ray.errors import Forbidden, InvalidInput, Unauthenticated
from flsys_ray.storage.base import ObjectStore
from flsys_ray.wire.access import NonceReply
from flsys_ray.wire.schemas import EnrolReply, EnrolRequest

REVOKED = "this device was revoked: the app's developer can readmit it"


class Enrolment:
    """Gives and renews device tokens, and takes them away."""

    def __init__(self, store: ObjectStore, credentials: Credentials, clock: Callable[[], float]) -> None:
        self._credentials = credentials
        self._apps = AppRecords(store)
        self._devices = DeviceRecords(store)
        self._enrolled = EnrolledDevices(store)
        self._clock = clock

    # Phones ------------------------------------------------------------------------------------------------------

    def nonce(self, app_id: str) -> NonceReply:
        """Return a nonce for one enrolment."""
        return NonceReply(nonce=self._credentials.nonce(app_id, self._clock()), expires_in_s=NONCE_LIFE_S)

    def enrol(self, app_id: str, request: EnrolRequest) -> EnrolReply:
        """Give an installed app a device's identity, always the same.

        Raises:
            Forbidden: the device is revoked, or its evidence is missing, not good, or was used before.
            QuotaExceeded: the app has too many devices, or too many new ones of the last hour.
        """
        app = self._apps.read(app_id)
        device_id = self._credentials.device_id(app_id, request.installation_id)
        attested_at = self._judge(app, request)
        while True:
            record, etag = self._devices.read(app_id, device_id)
            new = self._admitted(record, attested_at)
            if self._noted(app, device_id, (record, new), etag):
                now = self._clock()
                return self._credentials.device_token(Device(device_id, app_id, new.generation, now), now)

    def renew(self, device: Device) -> EnrolReply:
        """Give a device another token for the one that it came with. Raises `Forbidden`, `Unauthenticated`."""
        record, _ = self._devices.read(device.app_id, device.device_id)
        if record is not None and record.revoked:
            raise Forbidden(REVOKED)
        if record is not None and record.generation != device.generation:
            raise Unauthenticated("this device token was revoked: enrol again")
        return self._credentials.device_token(device, self._clock())

    def _judge(self, app: AppRecord, request: EnrolRequest) -> float:
        """Return when the nonce in accepted evidence was made, 0 if the app asks for none. Raises `Forbidden`."""
        verifier, now = app.attestation, self._clock()
        if not verifier.asks:
            return 0.0
        if request.nonce is None or request.attestation is None:
            raise Forbidden(f"this app's devices attest ({verifier.name}): send a nonce and evidence")
        made_at = self._credentials.check_nonce(request.nonce, app.app_id, now)
        verdict = verifier.verify(request.attestation, request.installation_id, request.nonce, now)
        if not verdict.accepted:
            raise Forbidden(f"attestation refused: {verdict.reason}")
        return made_at

    def _admitted(self, record: DeviceRecord | None, attested_at: float) -> DeviceRecord:
        """Return a device's record after an enrolment. Raises `Forbidden`."""
        found = record or DeviceRecord()
        if found.revoked:
            raise Forbidden(REVOKED)
        if not attested_at:
            return found
        if attested_at <= found.attested_at:
            raise Forbidden("this evidence, or newer one, was used before: ask for another nonce")
        return found.model_copy(update={"attested_at": attested_at})

    def _noted(
        self, app: AppRecord, device_id: str, records: tuple[DeviceRecord | None, DeviceRecord], etag: str
    ) -> bool:
        """Count a device that is new, and write its record. Returns whether nobody else did meanwhile."""
        before, after = records
        if before == after:
            return True
        if before is None:
            self._enrolled.add(app.app_id, app.quotas, self._clock())
        written = self._devices.write(app.app_id, device_id, after, etag)
        if before is None and not written:
            self._enrolled.take_back(app.app_id)
        return written

    # Developers and operators ------------------------------------------------------------------------------------

    def revoke(self, app_id: str, device_id: str) -> None:
        """Refuse a device's tokens, and its enrolment until it is readmitted. Raises `Conflict` if too many are."""
        self._apps.read(app_id)
        while True:
            record, etag = self._devices.read(app_id, device_id)
            found = record or DeviceRecord()
            new = (
                found
                if found.revoked
                else DeviceRecord(generation=found.generation + 1, revoked=True, attested_at=found.attested_at)
            )
            if new == found or self._devices.write(app_id, device_id, new, etag):
                self._credentials.revocations.add(app_id, device_id, new.generation, self._clock())
                return

    def readmit(self, app_id: str, device_id: str) -> None:
        """Let a revoked device enrol again. Its old tokens stay refused."""
        self._apps.read(app_id)
        while True:
            record, etag = self._devices.read(app_id, device_id)
            if record is None or not record.revoked:
                return
            if self._devices.write(app_id, device_id, record.model_copy(update={"revoked": False}), etag):
                return

    def revoke_all(self, app_id: str, issued_before: float | None) -> float:
        """Refuse the tokens of every device that enrolled before an instant (None: now), whenever they were renewed.

        Returns the instant before which none is good. Raises `InvalidInput` for one in the future.
        """
        now = self._clock()
        instant = now if issued_before is None else issued_before
        if instant > now:
            raise InvalidInput(f"issued_before: {instant:.0f} is in the future; it is {now:.0f} now")
        self._apps.read(app_id)
        return self._credentials.revocations.add_all(app_id, instant, now)
