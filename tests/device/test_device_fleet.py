import threading
from collections import Counter
from dataclasses import dataclass, replace
from functools import partial

import httpx2
import numpy as np
import pytest
from device_fakes import CLASSES, START, FakeCloud, FakeModel, SoftmaxProgram, config, open_phone, windows

from flsys_ray.core.plan import Eligibility
from flsys_ray.device import fleet as fleets
from flsys_ray.device.client import RetryPolicy
from flsys_ray.device.clock import SystemClock
from flsys_ray.device.collector import ReplaySource, Sample, collect
from flsys_ray.device.configuration import Shared
from flsys_ray.device.fleet import Fleet, run_fleet
from flsys_ray.device.participation import Habits
from flsys_ray.device.trainer import Programs
from flsys_ray.errors import InvalidInput


@dataclass(frozen=True)
class Stream:
    x: np.ndarray
    y: np.ndarray
    start_s: np.ndarray
    end_s: np.ndarray
    session: np.ndarray


@dataclass(frozen=True)
class FakeData:
    users: tuple[str, ...] = ("ann", "bob")
    count: int = 60
    name: str = "fake"
    classes: tuple[str, ...] = CLASSES

    def examples(self, user: str) -> Stream:
        x, y, start_s = (np.array(c) for c in zip(*windows(self.count, self.users.index(user)), strict=True))
        start_s = start_s - START
        half = np.arange(self.count) >= self.count // 2
        return Stream(x, y, start_s, start_s + 5, np.where(half, "evening", "morning"))


def fleet(tmp_path, **changes) -> Fleet:
    quick = config(habits=Habits(recheck_s=0.05, backoff_s=0.1), retry=RetryPolicy(attempts=2, base_s=0.01))
    return Fleet(**{"folder": tmp_path, "config": quick, "data": {"har-wild": FakeData()}, "count": 5, **changes})


def run(monkeypatch, cloud: FakeCloud, *apps: Fleet, until) -> list[fleets.FleetEvent]:
    lock, handle = threading.Lock(), cloud.handle

    def one_at_a_time(request):
        with lock:
            return handle(request)

    monkeypatch.setattr(fleets, "Shared", partial(Shared, programs=Programs(SoftmaxProgram)))
    events, stop = [], threading.Event()

    def on_event(event):
        events.append(event)
        if until(events):
            stop.set()

    run_fleet(*apps, stop=stop, on_event=on_event, transport=httpx2.MockTransport(one_at_a_time))
    return events


@pytest.fixture
def quick_cloud() -> FakeCloud:
    model = FakeModel("har-wild", cohort=5, rounds=2, eligibility=Eligibility(min_examples=2))
    cloud = FakeCloud(SystemClock(), model)
    cloud.retry_after_s = 0.05
    return cloud


@pytest.mark.parametrize("most_open", [128, 2])
def test_a_fleet_trains(tmp_path, monkeypatch, quick_cloud, most_open):
    monkeypatch.setattr(fleets, "MOST_OPEN", most_open)
    model = quick_cloud.models["har-wild"]
    events = run(monkeypatch, quick_cloud, fleet(tmp_path), until=lambda events: model.version == 2)
    assert Counter(event.outcome.kind for event in events)["uploaded"] >= 9
    assert model.outcomes() == ["counted"] * 10
    assert len(quick_cloud.devices) == 5
    assert len(quick_cloud.calls("GET .*/program/.*")) == 1  # shared
    assert {event.phone for event in events} == {f"phone-{i:05d}" for i in range(5)}
    # The same folder is the same phones: nothing is enrolled or replayed again.
    model.rounds = 3
    run(monkeypatch, quick_cloud, fleet(tmp_path), until=lambda events: model.version == 3)
    assert len(quick_cloud.devices) == 5
    assert model.outcomes() == ["counted"] * 15


def test_phones_of_one_user_share_their_examples_without_overlap(tmp_path):
    plan = fleet(tmp_path)
    sources = [source for i in range(5) for source in plan.sources(i, "har-wild")]
    assert [(s.user, s.part) for s in sources] == [
        ("ann", (0, 3)), ("bob", (0, 2)), ("ann", (1, 3)), ("bob", (1, 2)), ("ann", (2, 3))
    ]  # fmt: skip
    ann = np.concatenate([[e.start_s for e in s.due(0, 0)] for s in sources[::2]])
    assert ann.tolist() == FakeData().examples("ann").start_s.tolist()


def test_users_are_dealt_out_to_fewer_phones(tmp_path):
    data = {"har-wild": FakeData(users=("ann", "bob", "carl", "dora", "eve"))}

    def users(**changes):
        plan = fleet(tmp_path, data=data, **changes)
        return [[source.user for source in plan.sources(i, "har-wild")] for i in range(plan.count)]

    assert users(count=2) == [["ann"], ["bob"]]
    assert users(count=2, deal=True) == [["ann", "carl", "eve"], ["bob", "dora"]]
    assert users(count=7, deal=True) == users(count=7)


@pytest.fixture
def two_models() -> FakeCloud:
    made = (FakeModel(n, cohort=5, rounds=2, eligibility=Eligibility(min_examples=2)) for n in ("har-wild", "steps"))
    cloud = FakeCloud(SystemClock(), *made)
    cloud.retry_after_s = 0.05
    return cloud


def two_apps(tmp_path, **changes) -> tuple[Fleet, Fleet]:
    first = fleet(tmp_path / "first", **changes)
    config = replace(first.config, models=("steps",))
    return first, fleet(tmp_path / "second", config=config, data={"steps": FakeData()}, **changes)


@pytest.mark.parametrize("most_open", [128, 3])
def test_two_apps_train_on_the_same_phones(tmp_path, monkeypatch, two_models, most_open):
    monkeypatch.setattr(fleets, "MOST_OPEN", most_open)
    both = two_models.models.values()
    events = run(
        monkeypatch, two_models, *two_apps(tmp_path), until=lambda events: all(model.version == 2 for model in both)
    )
    assert [model.outcomes() for model in both] == [["counted"] * 10] * 2
    assert len(two_models.devices) == 10, "each app enrols on its own"
    trained = {(event.phone, event.outcome.model) for event in events if event.outcome.kind == "trained"}
    assert trained == {(f"phone-{i:05d}", model.name) for i in range(5) for model in both}


def test_a_phone_trains_for_one_app_at_a_time_and_as_long_as_it_takes(tmp_path, monkeypatch, two_models):
    both = two_models.models.values()
    apps = two_apps(tmp_path, training_s=lambda index: 0.1 + 0.05 * index)
    events = run(monkeypatch, two_models, *apps, until=lambda events: all(model.version == 2 for model in both))
    for index in range(5):
        steps = [event.outcome for event in events if event.index == index]
        trained = [i for i, step in enumerate(steps) if step.kind == "trained"]
        assert len(trained) == 4
        for i in trained:
            downloaded, uploaded = steps[i - 1], steps[i + 1]
            assert (downloaded.kind, uploaded.kind) == ("downloaded", "uploaded")
            assert downloaded.assignment_id == steps[i].assignment_id == uploaded.assignment_id
            assert uploaded.at - downloaded.at >= 0.1 + 0.05 * index


def test_wrong_fleets_are_refused(tmp_path):
    for changes in ({"count": 0}, {"data": {}}, {"users": ("carl",)}):
        with pytest.raises(InvalidInput):
            fleet(tmp_path, **changes)
    with pytest.raises(InvalidInput, match="worker"):
        run_fleet(fleet(tmp_path), stop=threading.Event(), workers=0)
    one, other = fleet(tmp_path / "one"), fleet(tmp_path / "other", count=6)
    for apps in ((), (one, other), (one, one)):
        with pytest.raises(InvalidInput, match="same phones"):
            run_fleet(*apps, stop=threading.Event())


def test_a_bug_in_a_callback_stops_the_fleet(tmp_path, monkeypatch, quick_cloud):
    with pytest.raises(ZeroDivisionError):
        run(monkeypatch, quick_cloud, fleet(tmp_path), until=lambda events: 1 / 0)


def test_a_replay_at_a_speed_comes_in_time(tmp_path, cloud):
    source = ReplaySource(FakeData(count=20), "ann", speed=10.0)
    with open_phone(tmp_path, cloud) as phone:
        counts = []
        for _ in range(8):
            counts.append(phone.replay("har-wild", source))
            cloud.clock.wait(1.0)
    # Two sessions of 10 windows; the second follows the first: ends at 5, 7.5 ... 27.5, 32.5 ... 55 s of the stream.
    assert counts == [0, 3, 4, 3, 4, 4, 2, 0]


def test_a_replay_is_not_repeated_by_another_life(tmp_path, cloud):
    source = ReplaySource(FakeData(), "ann")
    for expected in (60, 0):
        with open_phone(tmp_path, cloud) as phone:
            assert phone.replay("har-wild", source) == expected
    with pytest.raises(InvalidInput):
        ReplaySource(FakeData(), "ann", part=(2, 2))
    with pytest.raises(InvalidInput):
        ReplaySource(FakeData(), "ann", speed=0)


def test_a_live_source_is_collected(tmp_path, cloud):
    samples = [Sample(START + i / 20, (0.0, 0.0, 9.8), "walking" if i < 400 else "sitting") for i in range(1000)]
    with open_phone(tmp_path, cloud, sensor_models=("har-wild",)) as phone:
        made = collect(iter(samples), phone, stop=lambda: False)
        labels = phone._database.rows("SELECT DISTINCT label FROM examples ORDER BY label")
        assert labels == [("sitting",), ("walking",)]
        assert made == 7 + 10
        source = iter(samples)
        collect(source, phone, stop=lambda: True)
        assert next(source) is samples[1]
