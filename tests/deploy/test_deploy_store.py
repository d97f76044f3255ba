"""No cloud is started on a store that would lose updates, whichever way it is deployed."""

from pathlib import Path

import pytest

from flsys_ray.errors import InvalidInput
from flsys_ray.storage.memory import MemoryStore
from serve_apps import cluster, up
from serve_apps.cloud import Args


class Deaf(MemoryStore):
    """Creates what is there already, as S3 does behind something that loses `If-None-Match`."""

    def put_new(self, key: str, body: bytes) -> str:
        self.remove(key)
        return super().put_new(key, body)


def test_flsys_up_refuses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Deaf()
    monkeypatch.setattr(up, "open_store", lambda uri: store)
    with pytest.raises(InvalidInput, match="store s3://bucket/flsys ignores If-None-Match"):
        up.deploy(up.Place(store="s3://bucket/flsys"), "flsys_operator_x")
    assert [*store.list("secrets/")] == []


def test_a_serve_config_refuses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    store = Deaf()
    monkeypatch.setattr(cluster, "open_store", lambda uri: store)
    monkeypatch.setenv(cluster.KEY_VARIABLE, "flsys_operator_x")
    with pytest.raises(InvalidInput, match="conditional writes"):
        cluster.build(Args(store="s3://bucket/flsys"))
    assert [*store.list("secrets/")] == []


def test_a_store_of_a_newer_version_is_refused_and_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "format.json").write_text('{"format": 1000}')
    with pytest.raises(InvalidInput, match="has format 1000"):
        up.deploy(up.Place(store=str(tmp_path)), "flsys_operator_x")
    assert not (tmp_path / "secrets").exists()
