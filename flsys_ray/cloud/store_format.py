"""The format of what is in the store: its number is written when a store is first used, and looked at at each start.

`FORMAT` rises when this version writes what an older one would misread. `docs/operations.md` says how to go from one to
the next. Stores of before the mark was introduced have format 1 and get it.
"""

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from flsys_ray.cloud import places
from flsys_ray.cloud.apps import check_verifiers
from flsys_ray.errors import AlreadyExists, InvalidInput, Missing
from flsys_ray.storage.base import ObjectStore
from flsys_ray.storage.probe import check_conditions

FORMAT = 1
_SEGMENTS = len(places.log_entry("app/model", 0).split("/"))


class Mark(BaseModel):
    """What stands in the store. What a newer version adds to it is not looked at."""

    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    format: int = Field(ge=1)


def prepare(store: ObjectStore, name: str) -> None:
    """Look whether a cloud can be started on a store, called `name`, and mark it if it is new. May be repeated.

    Raises:
        InvalidInput: it ignores conditions, has another format, or an app in it attests with what is not installed.
    """
    check_conditions(store, name)
    check_format(store, name)
    check_verifiers(store)


def check_format(store: ObjectStore, name: str) -> None:
    """Look at the mark, or make it. Raises `InvalidInput` for another format than ours."""
    try:
        body = store.get(places.FORMAT).body
    except Missing:
        _check_unmarked(store, name)
        try:
            store.put_new(places.FORMAT, Mark(format=FORMAT).model_dump_json().encode())
            return
        except AlreadyExists:
            body = store.get(places.FORMAT).body
    try:
        found = Mark.model_validate_json(body).format
    except ValidationError:
        raise InvalidInput(f"store {name}: its {places.FORMAT} is not one of ours: is it another program's?") from None
    if found > FORMAT:
        raise InvalidInput(
            f"store {name} has format {found}, and this version of flsys reads up to {FORMAT}: install the version "
            "that used it last, or a newer one, or go back with a backup of before the upgrade (docs/operations.md)"
        )


def _check_unmarked(store: ObjectStore, name: str) -> None:
    """Raises `InvalidInput` for a store of before models had a name of their own for each app."""
    first = next(iter(store.list(places.MODELS)), None)
    if first is not None and len(first.split("/")) < _SEGMENTS:
        raise InvalidInput(
            f"store {name} was written before models had names of their own for each app ({first}): "
            "this version cannot read it, so start on an empty store"
        )
