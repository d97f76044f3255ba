"""What operators and developers decide about keys: those of apps, those that sign, and how phones attest."""

from collections.abc import Callable

from flsys_ray.cloud.apps import AppRecord, AppRecords
from flsys_ray.cloud.attestation.base import Attestation
from flsys_ray.cloud.credentials import Credentials
from flsys_ray.cloud.keys import KeyLife
from flsys_ray.errors import Conflict, InvalidInput, NotFound
from flsys_ray.storage.base import ObjectStore
from flsys_ray.wire.access import AppKeys, SigningKeyInfo, SigningKeysReply
from flsys_ray.wire.developer_schemas import AppCreated

MAX_GENERATIONS = 10


class Access:
    """Changes who may call. Every change is one swap of one object: after a crash it was made, or it was not."""

    def __init__(self, store: ObjectStore, credentials: Credentials, clock: Callable[[], float]) -> None:
        self._apps = AppRecords(store)
        self._credentials = credentials
        self._clock = clock

    # Apps --------------------------------------------------------------------------------------------------------

    def created(self, record: AppRecord) -> AppCreated:
        """Return what an operator is told of a registered app."""
        keys = self._keys(record)
        return AppCreated(
            app_id=record.app_id,
            key=keys.key,
            enrol_key=keys.enrol_key,
            generations=keys.generations,
            next_generation=record.last_key + 1,
            quotas=record.quotas,
        )

    def new_app_key(self, app_id: str, generation: int) -> AppKeys:
        """Make an app's keys of a generation, which must be the next one, or one that is good. May be repeated.

        Those of before stay good until they are revoked. Raises `NotFound`, `Conflict`.
        """

        def added(record: AppRecord) -> AppRecord:
            if generation in record.keys:
                return record
            if generation != record.last_key + 1:
                raise Conflict(f"app {app_id!r}: the next generation of keys is {record.last_key + 1}")
            if len(record.keys) >= MAX_GENERATIONS:
                raise Conflict(f"app {app_id!r} has {len(record.keys)} generations of keys: revoke some first")
            return record.model_copy(update={"keys": (*record.keys, generation), "last_key": generation})

        return self._keys(self._apps.change(app_id, added))

    def revoke_app_key(self, app_id: str, generation: int) -> None:
        """Have an app's keys of a generation open nothing any more. Raises `NotFound`; `Conflict` for the last one."""

        def without(record: AppRecord) -> AppRecord:
            if generation > record.last_key:
                raise NotFound(f"app {app_id!r} has no keys of generation {generation}")
            if record.keys == (generation,):
                raise Conflict(f"app {app_id!r} has no other keys: rotate first, and revoke these then")
            return record.model_copy(update={"keys": tuple(key for key in record.keys if key != generation)})

        self._apps.change(app_id, without)

    def set_attestation(self, app_id: str, attestation: Attestation) -> None:
        """Have an app's devices attest from their next enrolment on.

        Raises:
            NotFound: there is no such app.
            InvalidInput: this cloud cannot judge their evidence.
        """
        if attestation.lacks is not None:
            raise InvalidInput(f"attestation {attestation.name}: this cloud lacks {attestation.lacks}")
        self._apps.change(app_id, lambda record: record.model_copy(update={"attestation": attestation}))

    def attestation(self, app_id: str) -> str:
        """Return the name of what an app's devices attest with. Raises `NotFound`."""
        return self._apps.read(app_id).attestation.name

    def _keys(self, record: AppRecord) -> AppKeys:
        app_id, newest = record.app_id, record.keys[-1]
        return AppKeys(
            app_id=app_id,
            generation=newest,
            key=self._credentials.app_key(app_id, newest),
            enrol_key=self._credentials.app_key(app_id, newest, kind="enrol"),
            generations=list(record.keys),
        )

    # Signing keys ------------------------------------------------------------------------------------------------

    def signing_keys(self) -> SigningKeysReply:
        """Return the signing keys in use, without their secrets."""
        return _listed(self._credentials.keys.lives(self._clock()))

    def rotate(self, *, retire_old: bool) -> SigningKeysReply:
        """Make a new signing key. Returns those in use. Raises `Conflict` if there are too many."""
        return _listed(self._credentials.keys.rotate(self._clock(), retire_old=retire_old))

    def retire(self, kid: str) -> SigningKeysReply:
        """Have a signing key verify nothing any more. Returns those in use. Raises `NotFound`, `Conflict`."""
        return _listed(self._credentials.keys.retire(kid, self._clock()))


def _listed(keys: list[KeyLife]) -> SigningKeysReply:
    return SigningKeysReply(keys=[SigningKeyInfo(kid=key.kid, since=key.since, until=key.until) for key in keys])
