"""What a store is asked before a cloud starts on it: whether it keeps conditions, and what format it has."""

import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from s3_server import S3Server, s3_with_keys

from flsys_ray.cloud import places
from flsys_ray.cloud.store_format import FORMAT, check_format, prepare
from flsys_ray.errors import Changed, InvalidInput, StoreUnavailable
from flsys_ray.storage.base import ObjectStore
from flsys_ray.storage.local import LocalStore
from flsys_ray.storage.memory import MemoryStore
from flsys_ray.storage.probe import KEY, check_conditions
from flsys_ray.storage.uri import open_store


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_with_keys() as running:
        yield running


@pytest.fixture(params=["memory", "folder", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    if request.param == "s3":
        return open_store(request.getfixturevalue("server").uri())
    return MemoryStore() if request.param == "memory" else LocalStore(tmp_path)


# Conditions ------------------------------------------------------------------------------------------------------


def test_a_store_that_keeps_conditions_may_be_asked_again_and_again(store: ObjectStore):
    for _ in range(3):
        check_conditions(store, "s")
    assert [*store.list("")] == [KEY]
    assert store.get(KEY).body == b"probe"


def test_several_that_start_at_once_do_not_take_each_other_for_a_broken_store(store: ObjectStore):
    broken: list[Exception] = []

    def start() -> None:
        try:
            check_conditions(store, "s")
        except Exception as error:
            broken.append(error)

    threads = [threading.Thread(target=start) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert broken == []


@pytest.mark.parametrize("header", ["If-None-Match", "If-Match"])
def test_a_bucket_behind_something_that_loses_a_header_is_refused_by_name(server: S3Server, header: str):
    """Whether it is the first start there or a later one."""
    uri = server.uri()
    for _ in range(2):
        server.gate.deaf_to = (header,)
        try:
            with pytest.raises(InvalidInput, match=rf"store {uri.partition('?')[0]}\S* ignores {header}: it "):
                prepare(open_store(uri), uri)
        finally:
            server.gate.deaf_to = ()
        prepare(open_store(uri), uri)


def test_a_store_that_never_lets_anybody_replace_is_refused():
    class Stubborn(MemoryStore):
        def swap(self, key: str, body: bytes, etag: str) -> str:
            raise Changed("no")

    with pytest.raises(InvalidInput, match="refused 20 times to replace"):
        check_conditions(Stubborn(), "s")


def test_a_store_that_does_not_answer_is_not_called_broken(server: S3Server):
    uri = server.uri(tries=1)
    server.gate.faults[:] = ["503-before"]
    with pytest.raises(StoreUnavailable):
        prepare(open_store(uri), uri)


# Format ----------------------------------------------------------------------------------------------------------


def test_a_new_store_is_marked_once(store: ObjectStore):
    for _ in range(3):
        check_format(store, "s")
    assert json.loads(store.get(places.FORMAT).body) == {"format": FORMAT}


def test_a_store_of_before_the_mark_gets_it_and_nothing_else_changes(store: ObjectStore):
    for key in (places.SIGNING_KEY, places.log_entry("acme/steps", 0), places.weights("acme/steps", "0" * 64)):
        store.put_new(key, b"x")
    before = {*store.list("")}
    prepare(store, "s")
    assert {*store.list("")} - before == {places.FORMAT, KEY}


def test_a_newer_format_is_refused_with_what_to_do_and_stays(store: ObjectStore):
    mark = b'{"format": 7, "since": "2031"}'
    store.put_new(places.FORMAT, mark)
    with pytest.raises(InvalidInput, match=f"store s has format 7, and this version of flsys reads up to {FORMAT}"):
        prepare(store, "s")
    assert store.get(places.FORMAT).body == mark


@pytest.mark.parametrize("mark", [b"", b"1", b"{}", b'{"format": 0}', b'{"format": "1"}', b"\xff"])
def test_a_mark_that_is_none_is_refused(mark: bytes):
    store = MemoryStore()
    store.put_new(places.FORMAT, mark)
    with pytest.raises(InvalidInput, match=r"store s: its format.json is not one of ours"):
        check_format(store, "s")


def test_a_store_whose_models_have_no_app_is_refused():
    store = MemoryStore()
    store.put_new("models/steps/log/000000000000.json", b"{}")
    with pytest.raises(InvalidInput, match=r"before models had names of their own .*models/steps/log"):
        check_format(store, "s")
    assert [*store.list("format")] == []


def test_two_that_mark_at_once_agree():
    class Slow(MemoryStore):
        """Another one marks between the look and the mark."""

        def list(self, prefix: str, after: str = "") -> Iterator[str]:
            if prefix == places.MODELS:
                self.put_new(places.FORMAT, b'{"format":2}')
            return super().list(prefix, after)

    with pytest.raises(InvalidInput, match="has format 2"):
        check_format(Slow(), "s")
