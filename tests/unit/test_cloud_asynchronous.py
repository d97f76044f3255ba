"""Models whose work outlives its round, made durable: what was acknowledged is in exactly one version, whatever dies.

The sessions of `test_cloud_crashes` with buffers and with late updates, and the rivals of `test_cloud_owners` with a
plan under which any update may count in several rounds.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np
import pytest
from cloud_fakes import SIZE, Clock, FaultyStore, fake_initial, fake_program
from hypothesis import event, given, settings
from hypothesis import strategies as st
from test_cloud_crashes import (
    MODEL,
    NAME,
    READS,
    WRITES,
    Play,
    manifests,
    played_among_deaths,
    struck_at_each,
    what_lasts,
)
from test_cloud_owners import STEP, Rivals, body_of, upload

from flsys_ray.cloud import places
from flsys_ray.cloud.creation import create_model
from flsys_ray.cloud.journal import Journal
from flsys_ray.cloud.model import DurableModel
from flsys_ray.cloud.offers import Offer
from flsys_ray.cloud.replay import replay
from flsys_ray.cloud.versions import load_parameters, sha256
from flsys_ray.core.plan import TrainingPlan, parse_plan
from flsys_ray.core.types import Assignment, Counted, GivenBack, Rejected
from flsys_ray.storage.base import ObjectStore
from flsys_ray.storage.memory import MemoryStore

BUFFERED = {"name": "buffered", "buffer": 2, "concurrency": 20, "deadline_s": 1000, "max_staleness": 2}
LATE = {"name": "rounds", "cohort": 2, "quorum": 2, "over_selection": 3, "deadline_s": 60, "late": {"max_staleness": 1}}


def plan(pacing: object, **changes: object) -> TrainingPlan:
    optimizer = {"name": "adam", "learning_rate": 0.1}
    return parse_plan({"pacing": pacing, "selection": "first_come", "server_optimizer": optimizer} | changes)


# Crashes ---------------------------------------------------------------------------------------------------------


def opened(play: Play, how: TrainingPlan) -> None:
    play.do(lambda: play.cloud.put_model("acme", NAME, how))
    play.put_program()
    play.host(lambda model: model.start(fake_initial))


def buffered_session(play: Play) -> None:
    """Updates of one, two and three versions ago; a repeat after the commit; work given back; another plan."""
    opened(play, plan(BUFFERED))
    play.check_in("slow", "slower", "slowest", "back")
    play.check_in("a", "b")
    play.upload("a", 0.5)
    play.upload("b", -0.25)  # version 1
    play.upload("b", -0.25)  # a phone that did not hear the answer
    play.upload("slow", 1.0)
    play.upload("slow", 1.0)
    play.give_back("back")
    play.do(lambda: play.cloud.put_model("acme", NAME, plan(BUFFERED, local={"epochs": 7})))
    play.check_in("a")
    play.upload("a", 0.125)  # version 2, of one that is one version old
    play.upload("slow", 1.0)  # again a repeat, from version 0
    play.upload("slower", 2.0)
    play.late("back")
    play.check_in("b")
    play.upload("b", 0.75)  # version 3
    play.late("slowest")  # three versions old
    play.upload("slower", 2.0)
    play.check_in("a")
    play.upload("a", 0.0625)
    play.host(DurableModel.pause)
    play.host(DurableModel.stop)


def late_session(play: Play) -> None:
    """Rounds that fold late updates in; one misses its quorum, and what was counted in it goes on."""
    opened(play, plan(LATE))
    play.check_in("a", "b", "c", "d")
    play.upload("a", 0.5)
    play.upload("b", -0.25)  # version 1
    play.upload("c", 1.0)  # late
    play.until_the_round_is_over()
    play.upload("c", 1.0)
    play.check_in("a")
    play.upload("a", 0.125)  # version 2
    play.check_in("b", "c")
    play.upload("b", 0.75)
    play.late("d")  # two versions old
    play.upload("c", 0.25)  # version 3
    play.upload("a", 0.125)
    play.host(DurableModel.stop)


SESSIONS: dict[str, Callable[[Play], None]] = {"buffered": buffered_session, "late": late_session}


def check(play: Play, store: ObjectStore, expected: list[tuple[object, ...]]) -> None:
    assert what_lasts(store) == expected
    held = Counter(line.assignment_id for info in manifests(store) for line in info.updates)
    assert set(held.values()) == {1}
    last = max(int(key.split("/")[-3]) for key in store.list(places.MODELS) if "/updates/" in key)
    for assignment_id in play.counted:
        assert held[assignment_id] == 1 or int(assignment_id[:8]) == last, assignment_id
    assert {one.verdict for one in replay(store, MODEL)} == {"equal"}


@pytest.fixture(scope="module")
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as one:
        yield one


@pytest.fixture(scope="module", params=SESSIONS)
def undisturbed(request, runner):
    """A session without a fault: itself, its calls of the store, and what it leaves behind."""
    store, session = FaultyStore(MemoryStore()), SESSIONS[request.param]
    play = Play(store, runner)
    session(play)
    lasting = what_lasts(store.inner)
    check(play, store.inner, lasting)
    return session, store.calls, lasting


def test_the_sessions_are_what_the_tests_below_take_them_for(undisturbed):
    session, _, lasting = undisturbed
    assert [row[0] for row in lasting] == [0, 1, 2, 3]
    stalenesses = [sorted(line.staleness for line in row[5]) for row in lasting]
    assert stalenesses == (
        [[], [0, 0], [0, 1], [0, 2]] if session is buffered_session else [[], [0, 0], [0, 1], [0, 0]]
    )


@pytest.mark.parametrize(
    ("kind", "when", "verbs"),
    [
        ("crash", "before", WRITES),
        ("crash", "after", WRITES),
        ("unavailable", "after", WRITES),
        ("crash", "before", READS),
    ],
)
def test_a_fault_at_any_call_of_the_store_changes_nothing_that_lasts(undisturbed, runner, kind, when, verbs):
    session, calls, expected = undisturbed
    assert struck_at_each(calls, (kind, when, verbs), runner, session, lambda *end: check(*end, expected)) > 20


@pytest.mark.parametrize("first", range(0, 50, 10))
def test_a_process_that_dies_over_and_over_still_gets_there(undisturbed, runner, first):
    """Ten seeds at a time: one of them alone may be lucky."""
    session, _, expected = undisturbed
    deaths = 0
    for seed in range(first, first + 10):
        play, inner = played_among_deaths(seed, runner, session)
        deaths += play.deaths
        check(play, inner, expected)
    assert deaths > 30


# Two owners ------------------------------------------------------------------------------------------------------


def trained(store: ObjectStore, clock: Clock, how: TrainingPlan) -> DurableModel:
    create_model(store, MODEL, "acme", how, clock())
    model = DurableModel(store, MODEL, clock)
    store.put_new(places.program(MODEL, sha256(fake_program())), fake_program())
    model.put_program(sha256(fake_program()))
    model.start(fake_initial)
    return model


def rivals_on(how: TrainingPlan) -> Rivals:
    rivals = Rivals.__new__(Rivals)
    rivals.store, rivals.clock = MemoryStore(), Clock()
    rivals.works, rivals.counted, rivals.given_back = {}, set(), set()
    trained(rivals.store, rivals.clock, how)
    rivals.views = [FaultyStore(rivals.store), FaultyStore(rivals.store)]
    rivals.models = [DurableModel(view, MODEL, rivals.clock) for view in rivals.views]
    rivals.lost = [False, False]
    return rivals


@pytest.mark.parametrize("pacing", [BUFFERED, BUFFERED | {"max_staleness": 0}, LATE], ids=["buffered", "fresh", "late"])
@given(steps=st.lists(STEP, max_size=30))
@settings(max_examples=120)
def test_whatever_two_owners_do_what_was_acknowledged_is_in_one_version(pacing, steps):
    rivals = rivals_on(plan(pacing))
    for who, verb, device, cut in steps:
        if verb == "plan" or (cut is not None and cut[1][0] == "plan"):
            continue  # a plan without late updates may leave an abandoned round's behind
        if cut is None:
            rivals.act(who, verb, device)
        else:
            rivals.act_cut(who, verb, device, *cut)
    store = rivals.store
    last = DurableModel(store, MODEL, rivals.clock)
    last.tick()
    infos = manifests(store)
    assert [info.version for info in infos] == list(range(last.info().version + 1))
    held = Counter(line.assignment_id for info in infos for line in info.updates)
    assert set(held.values()) <= {1}
    assert not rivals.given_back & set(held)
    waiting = rivals.counted - set(held)
    assert len(waiting) <= last.info().open_round.counters.counted
    assert {one.verdict for one in replay(store, MODEL)} == {"equal"}
    entries = [*Journal(store, MODEL).entries()]
    assert [entry.seq for entry in entries] == list(range(len(entries)))
    event(f"stale {max((line.staleness for info in infos for line in info.updates), default=0)}")


# By name ---------------------------------------------------------------------------------------------------------


def work_of(model: DurableModel, device: str) -> Assignment:
    outcome = model.check_in(f"d-{device}").outcome
    assert isinstance(outcome, Offer)
    return outcome.assignment


def test_work_in_hand_is_offered_again_with_the_parameters_of_its_own_version():
    store, clock = MemoryStore(), Clock()
    model = trained(store, clock, plan(BUFFERED))
    slow = work_of(model, "c")
    for device in "ab":
        upload(store, model, work_of(model, device), device)
    offer = model.check_in("d-c").outcome
    assert offer.assignment == slow
    assert load_parameters(store, MODEL, offer.weights_sha256, SIZE).tobytes() == np.zeros(SIZE, np.float32).tobytes()
    assert model.check_in("d-d").outcome.weights_sha256 != offer.weights_sha256


def test_a_new_owner_knows_what_is_in_a_version_and_what_waits():
    store, clock = MemoryStore(), Clock()
    old = trained(store, clock, plan(BUFFERED))
    slow, back = work_of(old, "c"), work_of(old, "d")
    works = [work_of(old, device) for device in "ab"]
    for work, device in zip(works, "ab", strict=True):
        upload(store, old, work, device)
    assert old.give_back(back) == GivenBack(duplicate=False)
    assert upload(store, old, slow, "c") == Counted(duplicate=False)
    new = DurableModel(store, MODEL, clock)
    assert new.info().open_round.counters.counted == 1
    for work, device in zip([*works, slow], "abc", strict=True):
        assert upload(store, new, work, device) == Counted(duplicate=True)
    assert upload(store, new, back, "d").reason == "given-back"
    assert isinstance(new.give_back(slow), Rejected)
    assert upload(store, new, work_of(new, "e"), "e") == Counted(duplicate=False)
    assert [sorted(line.staleness for line in info.updates) for info in manifests(store)] == [[], [0, 0], [0, 1]]


def test_an_update_that_nobody_counted_before_the_owner_died_counts_a_version_later():
    store, clock = MemoryStore(), Clock()
    old = trained(store, clock, plan(BUFFERED))
    slow = work_of(old, "c")
    for device in "ab":
        upload(store, old, work_of(old, device), device)
    store.put_new(places.update(MODEL, slow.round, slow.assignment_id, slow.device_id), body_of("c"))
    assert DurableModel(store, MODEL, clock).info().open_round.counters.counted == 1
