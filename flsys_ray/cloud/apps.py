"""Records of apps: quotas, which generations of keys are good, how phones prove that they are the app's own."""

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flsys_ray.cloud import places
from flsys_ray.cloud.attestation.base import VERIFIERS, Attestation
from flsys_ray.cloud.attestation.none import NoAttestation
from flsys_ray.errors import AlreadyExists, Changed, InvalidInput, Missing, NotFound, StoreUnavailable, TryLater
from flsys_ray.storage.base import ObjectStore, check_key
from flsys_ray.wire.developer_schemas import Quotas

if TYPE_CHECKING:
    AnyAttestation = Attestation
else:
    AnyAttestation = VERIFIERS.union("none")


UNREADABLE_S = 60.0


class AppRecord(BaseModel):
    """What the store keeps of an app. Records of before have quotas alone, or nothing but the name."""

    model_config = ConfigDict(frozen=True)

    app_id: str
    quotas: Quotas = Quotas()
    keys: tuple[int, ...] = (1,)  # the generations whose keys are good
    last_key: int = 1  # the newest that there ever was
    attestation: AnyAttestation = Field(default=NoAttestation(), repr=False)


Change = Callable[[AppRecord], AppRecord]


class AppRecords:
    """Reads and changes records. Thread-safe, and so are replicas among each other: records are swapped."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def read(self, app_id: str) -> AppRecord:
        """Return an app's record. Raises `NotFound`."""
        try:
            return _parsed(self._store.get(check_key(places.app(app_id))).body)
        except Missing:
            raise NotFound(f"app {app_id!r} is not registered") from None

    def change(self, app_id: str, change: Change) -> AppRecord:
        """Change a record and return it: `change` may be called several times. Raises `NotFound`, what it raises."""
        key = check_key(places.app(app_id))
        while True:
            try:
                present = self._store.get(key)
                record = _parsed(present.body)
                changed = change(record)
                if changed != record:
                    self._store.swap(key, _body(changed), present.etag)
            except Missing:
                raise NotFound(f"app {app_id!r} is not registered") from None
            except Changed:
                continue
            return changed

    def register(self, app_id: str, change: Change) -> AppRecord:
        """Make a record, or change the one that is there. Returns it."""
        while True:
            try:
                return self.change(app_id, change)
            except NotFound:
                made = change(AppRecord(app_id=app_id))
            try:
                self._store.put_new(places.app(app_id), _body(made))
            except AlreadyExists:
                continue
            return made


def check_verifiers(store: ObjectStore) -> None:
    """Raises `InvalidInput` if an app's phones attest with what this cloud cannot judge: none of them could enrol."""
    records = AppRecords(store)
    for key in store.list(places.APPS):
        try:
            app = records.read(places.app_of(key))
        except StoreUnavailable:
            raise
        except TryLater as error:  # its record cannot be read here
            raise InvalidInput(error.message) from None
        if app.attestation.lacks is not None:
            raise InvalidInput(
                f"{_attests(app.app_id, app.attestation.name)}: this cloud lacks {app.attestation.lacks}"
            )


def _parsed(body: bytes) -> AppRecord:
    try:
        return AppRecord.model_validate_json(body)
    except ValidationError:
        found = json.loads(body)
        name = found.get("attestation", {}).get("name")
        if name is None or name in VERIFIERS.classes:
            raise
        what = f"{_attests(str(found['app_id']), str(name))}, and no such verifier is installed in this cloud"
        raise TryLater(f"{what}: it has {', '.join(VERIFIERS.classes)}", UNREADABLE_S) from None


def _attests(app_id: str, name: str) -> str:
    return f"the phones of app {app_id!r} attest with {name!r}"


def _body(record: AppRecord) -> bytes:
    return record.model_dump_json(serialize_as_any=True).encode()
