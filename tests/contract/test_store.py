"""The contract of an object store, one suite for every store: another one is a line in `STORES`.

S3 is moto's server behind a gate (`s3_server`), or a real bucket: `FLSYS_TEST_S3=s3://bucket/prefix`. What only a
folder can show (crashes, file modes, a full disk) stands at the end; what only S3 can show, in `test_store_s3.py`.
"""

import contextlib
import dataclasses
import errno
import os
import stat
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from s3_server import ENVIRONMENT, S3Server, below

from flsys_ray.errors import AlreadyExists, Changed, InvalidInput, Missing, StoreFull, StoreUnavailable
from flsys_ray.storage.base import MAX_KEY_LENGTH, ObjectStore, last_key, put_same
from flsys_ray.storage.local import LocalStore
from flsys_ray.storage.memory import MemoryStore
from flsys_ray.storage.s3 import S3Store, make_client
from flsys_ray.storage.s3_place import S3Place, parse_place
from flsys_ray.storage.uri import open_store

REAL_S3 = os.environ.get("FLSYS_TEST_S3")


@contextlib.contextmanager
def local_store() -> Iterator[ObjectStore]:
    with tempfile.TemporaryDirectory() as folder:
        yield LocalStore(folder)


@contextlib.contextmanager
def memory_store() -> Iterator[ObjectStore]:
    yield MemoryStore()


@contextlib.contextmanager
def s3_store() -> Iterator[ObjectStore]:
    """A store with a prefix of its own; all have one server and one client: each costs more than a test."""
    yield S3Store(dataclasses.replace(S3.place, prefix=f"{S3.place.prefix}{uuid.uuid4().hex}/"), S3.client)


STORES = {"memory": memory_store, "local": local_store, "s3": s3_store}
# Stores that notice when a key is the folder of another.
WITH_FOLDERS = {"memory", "local"}
# Stores that other processes can open, and how: a URI for `open_store`.
SHARED = {
    "local": lambda folder: f"file:{folder}",
    "s3": lambda folder: below(S3.uri, f"{uuid.uuid4().hex}/{folder.name}"),
}

every_store = pytest.mark.parametrize("kind", STORES)


class S3:
    """What the module's S3 stores share."""

    uri: str
    place: S3Place
    client: object
    server: S3Server | None = None

    @classmethod
    def settle(cls) -> None:
        """Let the server end what a dead client sent last. A real bucket does not tell: there it may come late."""
        if cls.server is not None:
            cls.server.settle()


@pytest.fixture(scope="module", autouse=True)
def _s3():
    with contextlib.ExitStack() as stack:
        if REAL_S3:
            S3.uri = REAL_S3
        else:
            patch = stack.enter_context(pytest.MonkeyPatch.context())
            for name, value in ENVIRONMENT.items():
                patch.setenv(name, value)
            S3.server = stack.enter_context(S3Server().running())
            S3.uri = S3.server.uri()
        S3.place = parse_place(S3.uri)
        S3.client = make_client(S3.place)
        yield
        S3.client.close()


@pytest.fixture(params=STORES)
def store(request):
    with STORES[request.param]() as opened:
        yield opened


@pytest.fixture(params=sorted(WITH_FOLDERS))
def store_with_folders(request):
    with STORES[request.param]() as opened:
        yield opened


@pytest.fixture(params=SHARED)
def shared(request):
    return SHARED[request.param]


# The verbs -------------------------------------------------------------------------------------------------------


def test_what_was_put_is_what_is_got(store):
    etag = store.put_new("models/a/plan", b"body")
    found = store.get("models/a/plan")
    assert (found.body, found.size, found.etag) == (b"body", 4, etag)


@pytest.mark.parametrize("body", [b"", b"\x00" * 10, bytes(range(256)) * 5000])
def test_any_bytes_are_kept(store, body):
    store.put_new("k", body)
    assert store.get("k").body == body
    assert store.get("k").size == len(body)


def test_put_new_never_replaces(store):
    store.put_new("k", b"first")
    for again in (b"second", b"first"):
        with pytest.raises(AlreadyExists, match="k exists"):
            store.put_new("k", again)
    assert store.get("k").body == b"first"


def test_swap_replaces_what_was_read_and_nothing_else(store):
    first = store.put_new("k", b"1")
    second = store.swap("k", b"2", first)
    assert (store.get("k").body, store.get("k").etag) == (b"2", second)
    for stale in (first, "", "other", second + "0"):
        with pytest.raises(Changed, match="k is not the object that was read"):
            store.swap("k", b"3", stale)
    assert store.get("k").body == b"2"


def test_an_etag_is_never_used_again(store):
    """Or who read the object long ago could replace one that it never saw."""
    etags = [store.put_new("k", b"%06d" % 0)]
    for number in range(1, 300):
        etags.append(store.swap("k", b"%06d" % (number % 7), etags[-1]))
    assert len(set(etags)) == len(etags)


def test_missing_is_missing(store):
    store.put_new("a/b", b"x")
    for key in ("k", "a", "a/c", "a/b/c", "a/b/c/d"):
        with pytest.raises(Missing, match=f"{key} does not exist"):
            store.get(key)
        with pytest.raises(Missing, match=f"{key} does not exist"):
            store.swap(key, b"x", "etag")
    assert list(store.list("")) == ["a/b"]


def test_a_key_is_never_the_folder_of_another(store_with_folders):
    store = store_with_folders
    store.put_new("a/b", b"1")
    for key in ("a", "a/b/c", "a/b/c/d"):
        with pytest.raises(InvalidInput, match=key):
            store.put_new(key, b"2")
    assert list(store.list("")) == ["a/b"]
    store.put_new("a/bc", b"3")
    store.put_new("ab", b"4")
    assert list(store.list("")) == ["a/b", "a/bc", "ab"]


@pytest.mark.parametrize("start", [0, 1, 5, 9, 10, 11, 1000])
@pytest.mark.parametrize("end", [None, 0, 1, 5, 10, 11, 1000])
def test_ranges_are_those_of_a_slice(store, start, end):
    store.put_new("k", b"0123456789")
    found = store.get("k", start, end)
    assert found.body == b"0123456789"[start:end]
    assert found.size == 10
    assert found.etag == store.get("k").etag


def test_bodies_are_copied(store):
    body = bytearray(b"before")
    store.put_new("k", body)
    body[:] = b"after!"
    assert store.get("k").body == b"before"
    assert isinstance(store.get("k").body, bytes)
    assert store.swap("k", bytearray(b"later"), store.get("k").etag)
    assert isinstance(store.get("k").body, bytes)


def test_put_same_is_new_once_and_refuses_other_bytes(store):
    assert put_same(store, "k", b"1")
    assert not put_same(store, "k", b"1")
    with pytest.raises(AlreadyExists):
        put_same(store, "k", b"2")


def test_what_was_removed_is_not_there_and_can_be_made_again(store):
    for key in ("a/1", "a/2", "b"):
        store.put_new(key, b"x")
    first = store.get("a/1").etag
    for _ in range(2):
        store.remove("a/1")
    assert list(store.list("")) == ["a/2", "b"]
    with pytest.raises(Missing):
        store.get("a/1")
    with pytest.raises(Missing):
        store.swap("a/1", b"y", first)
    store.put_new("a/1", b"again")
    assert store.get("a/1").body == b"again"


def test_what_never_was_is_removed_already(store):
    store.put_new("a/b", b"x")
    for key in ("a", "a/c", "a/b/c", "c"):
        store.remove(key)
    assert list(store.list("")) == ["a/b"]


def test_a_store_of_this_machine_has_no_address_for_phones(store_with_folders):
    assert not store_with_folders.presigns
    with pytest.raises(InvalidInput, match="no address"):
        store_with_folders.presigned_put("a", 1, 60)


# Keys ------------------------------------------------------------------------------------------------------------

BAD_KEYS = [
    *(
        "",
        "/",
        "/a",
        "a/",
        "a//b",
        "..",
        "../a",
        "a/..",
        "a/../b",
        ".",
        "./a",
        ".hidden",
        "a/.hidden",
        ".locks/x",
        ".new-1",
    ),
    *(
        "a\x00b",
        "\x00",
        "a b",
        "a\nb",
        "a\n",
        "\n",
        "a\\b",
        "C:\\a",
        "a:b",
        "a*",
        "a?",
        "~",
        "~root",
        "a%2fb",
        "$HOME",
    ),
    *("ü", "a/é", "日本", "a\u202eb", "\ud800", "１", "a" * 128, "a/" * 256 + "a", "/".join(["a" * 100] * 6)),
]


@pytest.mark.parametrize("key", BAD_KEYS, ids=[ascii(key)[:30] for key in BAD_KEYS])
def test_what_is_no_key_is_refused_by_every_verb(store, key):
    for call in (
        lambda: store.put_new(key, b"x"),
        lambda: store.get(key),
        lambda: store.swap(key, b"x", "etag"),
        lambda: store.remove(key),
    ):
        with pytest.raises(InvalidInput, match="is not a key"):
            call()
    assert list(store.list("")) == []


GOOD_KEYS = ["a", "A-Z_9", "a.b", "a..", "-", "_", "a" * 127, "/".join(["b" * 126] * 4), "/".join("c" * 256), "0/1/2"]


@pytest.mark.parametrize("key", GOOD_KEYS, ids=[key[:20] for key in GOOD_KEYS])
def test_what_is_a_key_works_with_every_verb(store, key):
    assert len(key) <= MAX_KEY_LENGTH
    etag = store.put_new(key, b"1")
    store.swap(key, b"2", etag)
    assert store.get(key).body == b"2"
    assert list(store.list(key)) == [key]


# Listing ---------------------------------------------------------------------------------------------------------


def test_keys_come_in_the_order_of_their_code_points(store):
    keys = [
        "a/b",
        "a-b",
        "a.b",
        "a0",
        "aB",
        "ab",
        "A",
        "a_b",
        "b/0",
        "b-/0",
        "b.c/0",
        "b/A",
        "b/a/z",
        "b/a-/z",
        "10",
        "9",
    ]
    for key in keys:
        store.put_new(key, b"")
    assert list(store.list("")) == sorted(keys)
    assert last_key(store, "b/") == "b/a/z"
    assert last_key(store, "c") is None


def test_after_begins_behind_a_key_whether_it_is_there_or_not(store):
    for key in ("a/1", "a/2", "a/2-", "a/3", "b/0"):
        store.put_new(key, b"")
    assert list(store.list("a/", after="a/2")) == ["a/2-", "a/3"]
    assert list(store.list("a/", after="a/20")) == ["a/3"]
    assert list(store.list("a/", after="a/3")) == []
    assert list(store.list("", after="a/3")) == ["b/0"]
    assert list(store.list("a/", after="A")) == ["a/1", "a/2", "a/2-", "a/3"]


@pytest.mark.parametrize("prefix", ["/", "/a", "../", "a/../", "a//", ".", ".locks/", "a/.", "a b", "ü", "a\x00"])
def test_what_begins_no_key_is_refused_as_a_prefix(store, prefix):
    store.put_new("a/b", b"")
    with pytest.raises(InvalidInput, match="begins no key"):
        list(store.list(prefix))


def test_listing_tolerates_writes_meanwhile(store):
    for number in range(10):
        store.put_new(f"a/{number}", b"")
    keys = store.list("a/")
    first = next(keys)
    store.put_new("b", b"")
    store.put_new("a/55", b"")
    rest = list(keys)
    assert first == "a/0"
    assert {f"a/{number}" for number in range(1, 10)} <= set(rest)
    assert rest == sorted(rest)


segments = st.sampled_from(["a", "b", "ab", "a-", "a.b", "B", "0"])
some_keys = st.lists(segments, min_size=1, max_size=3).map("/".join)
prefixes = st.one_of(st.just(""), some_keys, some_keys.map(lambda key: key + "/"), some_keys.map(lambda key: key[:-1]))
operations = st.one_of(
    st.tuples(st.just("put"), some_keys, st.binary(max_size=6)),
    st.tuples(st.just("swap"), some_keys, st.binary(max_size=6), st.booleans()),
    st.tuples(st.just("get"), some_keys, st.integers(0, 7), st.one_of(st.none(), st.integers(0, 7))),
    st.tuples(st.just("list"), prefixes, st.one_of(st.just(""), some_keys)),
)


def answer_of(call):
    """Return what a call answers, or the class of what it raises."""
    try:
        return call()
    except (AlreadyExists, Changed, Missing, InvalidInput) as error:
        return type(error)


class Model:
    """The contract as a dictionary, with plain loops."""

    def __init__(self, *, folders):
        self.objects = {}
        self.folders = folders

    def put(self, key, body):
        if key in self.objects:
            return AlreadyExists
        related = (other.startswith(key + "/") or key.startswith(other + "/") for other in self.objects)
        if self.folders and any(related):
            return InvalidInput
        self.objects[key] = body
        return None

    def swap(self, key, body, fresh):
        if key not in self.objects:
            return Missing
        if not fresh:
            return Changed
        self.objects[key] = body
        return None

    def get(self, key, start, end):
        return self.objects[key][start:end] if key in self.objects else Missing

    def list(self, prefix, after):
        return sorted(key for key in self.objects if key.startswith(prefix) and key > after)


def run(store, name, key, *rest):
    if name == "put":
        return answer_of(lambda: store.put_new(key, *rest) and None)
    if name == "swap":
        body, fresh = rest
        etag = answer_of(lambda: store.get(key).etag)
        return answer_of(lambda: store.swap(key, body, etag if fresh and isinstance(etag, str) else "stale") and None)
    if name == "get":
        return answer_of(lambda: store.get(key, *rest).body)
    return list(store.list(key, *rest))


@every_store
@settings(max_examples=60)
@given(steps=st.lists(operations, max_size=25))
def test_every_store_answers_like_a_dictionary(kind, steps):
    model = Model(folders=kind in WITH_FOLDERS)
    with STORES[kind]() as store:
        for name, key, *rest in steps:
            assert run(store, name, key, *rest) == getattr(model, name)(key, *rest)
        assert {key: store.get(key).body for key in store.list("")} == model.objects


# Races -----------------------------------------------------------------------------------------------------------

THREADS = 8


def in_threads(work):
    """Run `work(number)` in THREADS threads that start together; return the answers."""
    barrier, answers = threading.Barrier(THREADS), [None] * THREADS

    def body(number):
        barrier.wait()
        answers[number] = work(number)

    threads = [threading.Thread(target=body, args=(number,)) for number in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def test_of_many_threads_that_put_one_key_one_wins(store):
    for trial in range(10):
        key = f"new/{trial}/k"

        def put(number, key=key):
            return answer_of(lambda: store.put_new(key, b"%d" % number * 1000) and number)

        answers = in_threads(put)
        (winner,) = [answer for answer in answers if answer is not AlreadyExists]
        assert store.get(key).body == b"%d" % winner * 1000


def test_of_many_threads_that_swap_one_object_one_wins(store):
    etag = store.put_new("k", b"0")
    for trial in range(10):
        answers = in_threads(
            lambda number, etag=etag, trial=trial: answer_of(lambda: store.swap("k", b"%d.%d" % (trial, number), etag))
        )
        (etag,) = [answer for answer in answers if answer is not Changed]
        assert store.get("k").etag == etag


def test_counting_by_swap_loses_nothing(store):
    """Each thread adds 1 ten times, and tries again when another was faster."""
    store.put_new("k", b"0")

    def add(_):
        added = 0
        while added < 10:
            found = store.get("k")
            with contextlib.suppress(Changed):
                store.swap("k", b"%d" % (int(found.body) + 1), found.etag)
                added += 1

    in_threads(add)
    assert store.get("k").body == b"%d" % (10 * THREADS)


RACER = """
import sys
from flsys_ray.errors import AlreadyExists, Changed
from flsys_ray.storage.uri import open_store

store, me = open_store(sys.argv[1]), sys.argv[2]
store.get("counter")
print("ready", flush=True)
for line in iter(sys.stdin.readline, "\\n"):
    key = line.strip()
    try:
        store.put_new(key, me.encode() * 50_000)
        print("won", flush=True)
    except AlreadyExists:
        assert len(store.get(key).body) == 50_000
        print("lost", flush=True)
added = 0
while added < 20:
    found = store.get("counter")
    try:
        store.swap("counter", b"%d" % (int(found.body) + 1), found.etag)
        added += 1
    except Changed:
        pass
print("done", flush=True)
"""


def start(code, *arguments):
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def close(process):
    process.stdin.close()
    process.stdout.close()
    process.wait(timeout=60)


def tell(racers, line):
    for racer in racers:
        racer.stdin.write(f"{line}\n")
        racer.stdin.flush()


def race(uri, names, keys):
    """Let one process for each name race for each key, all at once; return who won each of them."""
    racers = {name: start(RACER, uri, name) for name in names}
    assert [racer.stdout.readline() for racer in racers.values()] == ["ready\n"] * len(names)
    winners = []
    for number, key in enumerate(keys):
        turn = number % len(names)  # who hears it first has an edge
        tell([racers[name] for name in names[turn:] + names[:turn]], key)
        told = {name: racer.stdout.readline() for name, racer in racers.items()}
        assert sorted(told.values()) == ["lost\n"] * (len(names) - 1) + ["won\n"]
        winners += [name for name, line in told.items() if line == "won\n"]
    tell(racers.values(), "")
    assert [racer.stdout.read() for racer in racers.values()] == ["done\n"] * len(names)
    for racer in racers.values():
        close(racer)
        assert racer.returncode == 0
    return winners


def test_of_many_processes_one_wins_each_key_and_no_swap_is_lost(tmp_path, shared):
    uri = shared(tmp_path / "store")
    store = open_store(uri)
    store.put_new("counter", b"0")
    keys = [f"race/{number // 4}/{number}" for number in range(40)]
    winners = race(uri, "abcd", keys)
    for key, name in zip(keys, winners, strict=True):
        assert store.get(key).body == name.encode() * 50_000
    assert store.get("counter").body == b"80"
    assert len(set(winners)) > 1  # a race that one process wins alone proves little


WRITER = """
import sys
from flsys_ray.storage.uri import open_store

store = open_store(sys.argv[1])
size, number = int(sys.argv[2]), 0
etag = store.put_new("head", b"%08d" % 0 * size)
while True:
    number += 1
    store.put_new(f"log/{number // 10:04d}/{number:08d}", b"%08d" % number * size)
    print("put", number, flush=True)
    etag = store.swap("head", b"%08d" % number * size, etag)
    print("swap", number, flush=True)
"""


@pytest.mark.parametrize(("size", "acknowledged"), [(1, 60), (1, 61), (20_000, 31), (200_000, 12), (200_000, 13)])
def test_what_was_acknowledged_survives_kill_9_and_nothing_is_half_there(tmp_path, shared, size, acknowledged):
    uri = shared(tmp_path / "store")
    writer = start(WRITER, uri, str(size))
    told = dict.fromkeys(("put", "swap"), 0)
    for _ in range(acknowledged):
        verb, number = writer.stdout.readline().split()
        told[verb] = int(number)
    writer.kill()
    for line in writer.stdout.read().splitlines(keepends=True):  # what it told between our last look and its end
        if line.endswith("\n"):
            told[line.split()[0]] = int(line.split()[1])
    close(writer)
    store = open_store(uri)
    list(store.list(""))
    S3.settle()
    keys = list(store.list("log/"))
    assert keys == [f"log/{number // 10:04d}/{number:08d}" for number in range(1, len(keys) + 1)]
    assert told["put"] <= len(keys) <= told["put"] + 1
    for number, key in enumerate(keys, start=1):
        assert store.get(key).body == b"%08d" % number * size
    head = store.get("head")
    number = int(head.body[:8])
    assert head.body == b"%08d" % number * size
    assert told["swap"] <= number <= told["swap"] + 1
    store.swap("head", b"next", head.etag)  # the lock of the dead is free
    assert list(store.list("")) == ["head", *keys]


# The local store -------------------------------------------------------------------------------------------------


def files_in(folder):
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())


def test_files_are_for_their_owner_alone(tmp_path):
    previous = os.umask(0)
    try:
        store = LocalStore(tmp_path / "deep" / "store")
        store.swap("a/b/c", b"2", store.put_new("a/b/c", b"1"))
    finally:
        os.umask(previous)
    for path in (tmp_path / "deep").rglob("*"):
        mode = stat.S_IMODE(path.stat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), path
    assert stat.S_IMODE((tmp_path / "deep").stat().st_mode) == 0o700


def test_what_a_crash_left_behind_is_not_listed_and_not_got(tmp_path):
    store = LocalStore(tmp_path)
    store.put_new("a/b", b"1")
    (tmp_path / "a" / ".new-0123456789abcdef").write_bytes(b"half")
    (tmp_path / ".new-0123456789abcdef").write_bytes(b"half")
    assert list(store.list("")) == ["a/b"]
    assert list(store.list("a/")) == ["a/b"]
    with pytest.raises(InvalidInput):
        store.get("a/.new-0123456789abcdef")


def test_nothing_temporary_stays(tmp_path):
    store = LocalStore(tmp_path)
    etag = store.put_new("a/b", b"1")
    with pytest.raises(AlreadyExists):
        store.put_new("a/b", b"2")
    store.swap("a/b", b"3", etag)
    with pytest.raises(Changed):
        store.swap("a/b", b"4", etag)
    assert [name for name in files_in(tmp_path) if not name.startswith(".locks")] == ["a/b"]


FULL = """
import resource, sys
from flsys_ray.errors import StoreFull
from flsys_ray.storage.local import LocalStore

store = LocalStore(sys.argv[1])
etag = store.put_new("kept", b"1")
if sys.argv[2] == "limit":
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
for call in (lambda: store.put_new("a/b", bytes(200_000)), lambda: store.swap("kept", bytes(200_000), etag)):
    try:
        call()
    except StoreFull as error:
        print("full", error.status, flush=True)
print(list(store.list("")), store.get("kept").body)
store.put_new("small", b"there is room for this")
print(list(store.list("")))
"""
AFTER_FULL = ["full 507", "full 507", "['kept'] b'1'", "['kept', 'small']"]


def test_a_file_that_may_not_grow_is_a_full_store_with_nothing_half_written(tmp_path):
    done = subprocess.run([sys.executable, "-c", FULL, tmp_path, "limit"], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == AFTER_FULL, done.stderr
    assert [name for name in files_in(tmp_path) if not name.startswith(".locks")] == ["kept", "small"]


def test_a_full_disk_is_a_full_store_with_nothing_half_written(tmp_path):
    script = 'mount -t tmpfs -o size=128k none "$0" || exit 77; exec "$@"'
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script]
    command += [str(tmp_path), sys.executable, "-c", FULL, str(tmp_path / "store"), "disk"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    except FileNotFoundError:
        pytest.skip("no unshare on this machine: a small disk cannot be made")
    if not done.stdout and ("unshare" in done.stderr or done.returncode == 77):
        pytest.skip("this machine does not let a test make a small disk")
    assert done.stdout.splitlines() == AFTER_FULL, done.stderr


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS])
def test_a_disk_that_fails_while_syncing_leaves_nothing(tmp_path, monkeypatch, code):
    """Delayed allocation: the disk turns out to be full when the file is synced."""
    store = LocalStore(tmp_path)
    etag = store.put_new("kept", b"1")

    def fail(_):
        raise OSError(code, os.strerror(code))

    expected = StoreUnavailable if code in (errno.EIO, errno.EROFS) else StoreFull
    with monkeypatch.context() as broken:
        broken.setattr(os, "fsync", fail)
        for call in (lambda: store.put_new("new", b"2"), lambda: store.swap("kept", b"2", etag)):
            with pytest.raises(StoreUnavailable) as caught:
                call()
            assert type(caught.value) is expected
            assert str(tmp_path) not in caught.value.message
    assert list(store.list("")) == ["kept"]
    assert store.get("kept").body == b"1"
    assert not [name for name in files_in(tmp_path) if ".new-" in name]


def test_a_repeat_that_finds_its_own_bytes_makes_them_last(tmp_path, monkeypatch):
    """The first call fails after the link and before the folder is synced; a power cut could still undo it."""
    store = LocalStore(tmp_path)
    real, failed, synced = os.fsync, [], []

    def fsync(descriptor):
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        if is_folder and not failed:
            failed.append("once")
            raise OSError(errno.EIO, "the disk is tired")
        real(descriptor)
        if is_folder:
            synced.append(os.fstat(descriptor).st_ino)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(StoreUnavailable):
        store.put_new("k", b"1")
    assert not put_same(store, "k", b"1")
    assert synced == [tmp_path.stat().st_ino]


def test_put_new_answers_with_the_etag_of_its_own_object(tmp_path, monkeypatch):
    """Even if another writer swaps it before the call has returned: or it would be overwritten unseen."""
    store, other = LocalStore(tmp_path), LocalStore(tmp_path)
    real = os.link

    def link(source, target):
        real(source, target)
        if not swapped:
            swapped.append(other.swap("k", b"theirs", other.get("k").etag))

    swapped: list[str] = []
    monkeypatch.setattr(os, "link", link)
    mine = store.put_new("k", b"mine")
    with pytest.raises(Changed):
        store.swap("k", b"mine again", mine)
    assert store.get("k").body == b"theirs"


def test_an_object_is_younger_than_the_one_that_it_replaces(tmp_path):
    """Inode numbers are used again: on a coarse clock, or one that jumps back, nothing else tells two objects apart."""
    store = LocalStore(tmp_path)
    store.put_new("k", b"1")
    future = (tmp_path / "k").stat().st_mtime_ns + 3600 * 10**9
    os.utime(tmp_path / "k", ns=(future, future))
    store.swap("k", b"2", store.get("k").etag)
    assert (tmp_path / "k").stat().st_mtime_ns > future


def test_a_folder_that_cannot_be_made_is_unavailable(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnavailable):
        LocalStore(tmp_path / "file" / "store")
    with pytest.raises(StoreUnavailable):
        LocalStore(tmp_path / "file")


@pytest.mark.skipif(not Path("/proc/self/root").is_dir(), reason="this system has no /proc")
def test_a_store_may_lie_below_folders_that_cannot_be_synced(tmp_path):
    """As below an automount: what is above the store was there before it."""
    store = LocalStore(f"/proc/self/root{tmp_path}/store")
    store.put_new("a/k", b"1")
    assert LocalStore(tmp_path / "store").get("a/k").body == b"1"


def test_another_object_on_the_same_folder_is_the_same_store(tmp_path):
    LocalStore(tmp_path).put_new("k", b"1")
    assert LocalStore(str(tmp_path)).get("k").body == b"1"
    assert LocalStore(tmp_path).get("k").etag == LocalStore(tmp_path).get("k").etag


# URIs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["{}", "file:{}", "file://{}"])
def test_a_path_and_a_file_uri_are_a_folder(tmp_path, form):
    open_store(form.format(tmp_path / "s")).put_new("k", b"1")
    assert (tmp_path / "s" / "k").read_bytes() == b"1"


def test_a_memory_uri_is_a_store_of_its_holder():
    open_store("memory:").put_new("k", b"1")
    assert list(open_store("memory:").list("")) == []


def test_an_unknown_scheme_is_refused_by_name():
    with pytest.raises(InvalidInput, match="unknown scheme 'ftp'"):
        open_store("ftp://somewhere")


def test_a_folder_that_another_has_made_and_not_synced_is_synced(tmp_path, monkeypatch):
    """Its maker may have died before it could: an object in it would be gone with it after a power cut."""
    store = LocalStore(tmp_path / "store")
    (store.folder / "a" / "b").mkdir(parents=True)
    synced = []
    monkeypatch.setattr("flsys_ray.storage.local._sync_folder", lambda folder: synced.append(folder))
    store.put_new("a/b/k", b"1")
    assert {store.folder, store.folder / "a", store.folder / "a" / "b"} <= {*synced}
    synced.clear()
    store.put_new("a/b/l", b"2")
    assert synced == [store.folder / "a" / "b"]
