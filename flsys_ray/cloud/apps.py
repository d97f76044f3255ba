"""Records of apps: quotas, which generations of keys are good, how phones prove that they are the app's own."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from flsys_ray.cloud import places
from flsys_ray.cloud.attestation.base import VERIFIERS, Attestation
from flsys_ray.cloud.attestation.none import NoAttestation
from flsys_ray.errors import AlreadyExists, Changed, Missing, NotFound
from flsys_ray.storage.base import ObjectStore, check_key
from flsys_ray.wire.developer_schemas import Quotas

if TYPE_CHECKING:
    AnyAttestation = Attestation
else:
    AnyAttestation = VERIFIERS.union("none")


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


def _parsed(body: bytes) -> AppRecord:
    return AppRecord.model_validate_json(body)


def _body(record: AppRecord) -> bytes:
    return record.model_dump_json(serialize_as_any=True).encode()
