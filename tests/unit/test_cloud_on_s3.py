"""The session of `test_cloud_crashes` on S3: dying processes above the store, and faults of HTTP below it."""

import random

import pytest
from cloud_fakes import Crash, FaultyStore
from s3_server import FAULTS, client_of, s3_with_keys
from test_cloud_crashes import Play, check, runner, session, undisturbed, what_lasts  # noqa: F401 - two are fixtures

from flsys_ray.errors import StoreUnavailable
from flsys_ray.storage.s3 import S3Store
from flsys_ray.storage.s3_place import parse_place

QUICK = [fault for fault in FAULTS if "late" not in fault]


class PatientPlay(Play):
    """A process that also starts again when its store does not answer while it starts."""

    def start_process(self) -> None:
        for _ in range(self.patience):
            try:
                return super().start_process()
            except StoreUnavailable:
                continue
        raise AssertionError("the store never answered")


@pytest.fixture(scope="module")
def server():
    with s3_with_keys() as running:
        yield running


@pytest.fixture(scope="module")
def client(server):
    with client_of(server) as made:
        yield made


def test_the_session_on_s3_leaves_the_same_bits_as_in_memory(server, client, undisturbed, runner):  # noqa: F811
    calls, expected = undisturbed
    store = FaultyStore(S3Store(parse_place(server.uri()), client))
    play = Play(store, runner)
    session(play)
    assert what_lasts(store.inner) == expected
    assert [verb for verb, _ in store.calls] == [verb for verb, _ in calls]


@pytest.mark.parametrize("seed", range(4))
def test_dying_processes_and_faults_of_http_change_nothing_that_lasts(server, client, undisturbed, runner, seed):  # noqa: F811
    """Two tries a call: many calls are in doubt for good, and the cloud hears `StoreUnavailable`."""
    _, expected = undisturbed
    inner = S3Store(parse_place(server.uri(tries=2)), client, pause=lambda seconds: None)
    store, chance, play, struck = FaultyStore(inner), random.Random(seed), None, []

    def die(verb: str, key: str) -> None:
        if play is not None and chance.random() < 0.015:
            raise Crash

    def break_the_line(verb: str, key: str) -> None:
        die(verb, key)
        if play is not None and chance.random() < 0.08:
            struck.append(chance.choice(QUICK))
            server.gate.faults[:] = struck[-1:] * chance.choice((1, 2))

    store.before, store.after = break_the_line, die
    try:
        play = PatientPlay(store, runner, patience=50)
        session(play)
    finally:
        server.gate.faults.clear()
    assert play.deaths > 1
    assert len(struck) > 10
    store.before = store.after = lambda verb, key: None
    check(play, inner, expected)
