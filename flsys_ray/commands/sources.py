"""Where commands that look at rounds read them: a cloud, with an app's key or the operator's, or a store by itself."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Protocol

from flsys_ray.cloud import places
from flsys_ray.cloud.journal import Journal
from flsys_ray.cloud.reports import closed_rounds
from flsys_ray.commands.options import client
from flsys_ray.commands.state import kept_operator_key
from flsys_ray.core.ids import model_id, model_name
from flsys_ray.developer import DeveloperClient
from flsys_ray.errors import InvalidInput, NotFound
from flsys_ray.storage.base import ObjectStore
from flsys_ray.wire.developer_schemas import ModelInfo, RoundInfo


class Rounds(Protocol):
    """Rounds that are over. Where several apps can be seen, a model's name is its id, `app/name`."""

    def closed(self) -> dict[str, int]:
        """Return how many rounds of each model are over."""

    def rounds(self, model: str, since: int) -> list[RoundInfo]:
        """Return those of a model from number `since` on, oldest first."""


class CloudView:
    """What one key shows of a cloud: the models of its app by name, or with the operator's key all by `app/name`."""

    def __init__(self, cloud: DeveloperClient, *, operator: bool) -> None:
        self._cloud = cloud
        self._operator = operator

    def models(self) -> dict[str, ModelInfo]:
        """Return the models as they are now."""
        if self._operator:
            return {model_id(info.app_id, info.model): info for info in self._cloud.overview()}
        return {info.model: info for info in self._cloud.models()}

    def closed(self) -> dict[str, int]:
        """Return how many rounds of each model are over."""
        return {name: info.rounds_closed for name, info in self.models().items()}

    def rounds(self, model: str, since: int) -> list[RoundInfo]:
        """Return a model's rounds that are over, from number `since` on."""
        app_id, _, name = model.rpartition("/")
        return self._cloud.overview_rounds(app_id, name, since) if self._operator else self._cloud.rounds(name, since)


class StoreView:
    """Rounds as the store has them, cloud or no cloud. It only reads: whoever owns a model goes on owning it."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store

    def closed(self) -> dict[str, int]:
        """Return how many rounds of each model are over."""
        found = {}
        for model in stored_models(self._store):
            try:
                found[model] = Journal(self._store, model).read_tail().head.round
            except NotFound:  # its name is taken, its log not written yet
                continue
        return found

    def rounds(self, model: str, since: int) -> list[RoundInfo]:
        """Return a model's rounds that are over, from number `since` on."""
        journal = Journal(self._store, model)
        journal.read_tail()
        return closed_rounds(journal, since)


def stored_models(store: ObjectStore) -> list[str]:
    """Return the ids of a store's models."""
    return [places.model_of(key) for key in store.list(places.CATALOG)]


def chosen(known: Collection[str], given: str) -> str:
    """Return the one that is meant: an id, or a name that one app alone uses. Raises `InvalidInput`."""
    found = [given] if given in known else sorted(name for name in known if model_name(name) == given)
    if not found:
        raise InvalidInput(f"no model {given!r} among those that can be seen here")
    if len(found) > 1:
        raise InvalidInput(f"model {given!r}: several apps have one: say {' or '.join(found)}")
    return found[0]


@contextmanager
def cloud_view(url: str | None, app_key: str | None, operator_key: str | None) -> Iterator[CloudView]:
    """Yield what the app's key shows, else the operator's. Raises `InvalidInput` without either."""
    key = app_key or operator_key or kept_operator_key()
    if not key:
        raise InvalidInput("no key: give --app-key or --operator-key, or set FLSYS_APP_KEY or FLSYS_OPERATOR_KEY")
    with client(url, key) as cloud:
        yield CloudView(cloud, operator=not app_key)
