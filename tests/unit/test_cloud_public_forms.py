"""Public forms and crashes: what an owner that dies at any write of a commit leaves, the next one mends."""

import hashlib
from itertools import count

import numpy as np
import pytest
from cloud_fakes import Clock, Crash, FaultyStore

from flsys_ray.cloud import places
from flsys_ray.cloud.creation import create_model
from flsys_ray.cloud.model import DurableModel
from flsys_ray.cloud.offers import Offer
from flsys_ray.cloud.public_forms import public_form
from flsys_ray.cloud.replay import replay
from flsys_ray.cloud.stored_updates import to_update
from flsys_ray.cloud.versions import sha256
from flsys_ray.compression.top_k import TopK
from flsys_ray.core.plan import parse_plan
from flsys_ray.core.types import Counted, OptimizerState, Version
from flsys_ray.programs.manifest import LeafEntry, Manifest, pack, read_manifest
from flsys_ray.storage.base import put_same
from flsys_ray.storage.memory import MemoryStore
from flsys_ray.wire.developer_schemas import VersionInfo
from flsys_ray.wire.public_forms import STEPS
from flsys_ray.wire.tensors import decode_update, encode_update

MODEL, SIZE = "acme/har", 1000
PLAN = parse_plan({
    "pacing": {"name": "rounds", "cohort": 1, "deadline_s": 60}, "selection": "first_come", "download": "int8",
    "server_optimizer": {"name": "adam", "learning_rate": 0.1},
})  # fmt: skip


def program() -> bytes:
    body = b"no flatbuffer"
    manifest = Manifest(
        name="fake", flatbuffer_sha256=hashlib.sha256(body).hexdigest(), parameters=SIZE, slots=0, batch_size=4,
        input_shape=(2,), input_dtype="float32", classes=("a", "b"), local_optimizer="sgd",
        layout=(LeafEntry(name="all", shape=(SIZE,), offset=0, trainable=True),),
    )  # fmt: skip
    return pack(body, manifest)


LAYOUT = read_manifest(program()).to_layout()


def initial(_: bytes, seed: int) -> Version:
    return Version(0, np.random.default_rng(seed).normal(0, 1, SIZE).astype(np.float32), OptimizerState())


def draft(store: MemoryStore, clock: Clock) -> None:
    create_model(store, MODEL, "acme", PLAN, clock())
    store.put_new(places.program(MODEL, sha256(program())), program())
    DurableModel(store, MODEL, clock).put_program(sha256(program()))


def round_of(model: DurableModel) -> None:
    """One device trains: repeatable, as a phone repeats until it has an answer."""
    outcome = model.check_in("phone").outcome
    if not isinstance(outcome, Offer):
        return
    work = outcome.assignment
    delta = np.random.default_rng(work.round).normal(0, 0.1, SIZE).astype(np.float32)
    body = encode_update(delta, 5, 0.5)
    key = places.update(MODEL, work.round, work.assignment_id, work.device_id)
    if key not in [*model.store.list(key)]:
        model.store.put_new(key, body)
    assert isinstance(model.submit(to_update(work, decode_update(body, LAYOUT, 1024.0), body)), Counted)


def versions(store: MemoryStore) -> list[tuple[str, object]]:
    found = [VersionInfo.model_validate_json(store.get(key).body) for key in store.list(places.versions(MODEL))]
    return [(info.weights_sha256, info.public) for info in found]


def lived(crash_at: int | None) -> tuple[MemoryStore, int]:
    """Start, and commit three versions; the owner dies at the write of that number. Returns the number of writes."""
    inner, clock, writes = MemoryStore(), Clock(), count(1)
    draft(inner, clock)
    seen = 0

    def before(verb: str, key: str) -> None:
        nonlocal seen
        if verb == "put_new":
            seen = next(writes)
            if seen == crash_at:
                raise Crash

    store = FaultyStore(inner, before=before)
    while len([*inner.list(places.versions(MODEL))]) < 4:
        try:
            model = DurableModel(store, MODEL, clock)
            model.start(initial)
            while model.info().version < 3:
                round_of(model)
        except Crash:
            continue
    return inner, seen


def test_after_a_crash_at_any_write_forms_are_those_of_a_life_without_one():
    whole, writes = lived(None)
    expected = versions(whole)
    assert [len(public.steps) for _, public in expected] == [0, 1, 1, 1]
    assert writes > 25
    for number in range(1, writes + 1):
        store, _ = lived(number)
        assert versions(store) == expected, number
        assert [one.verdict for one in replay(store, MODEL)] == ["equal"] * 4, number


@pytest.mark.parametrize("change", ["half_sha256", "steps"])
def test_a_replay_notices_a_form_that_is_not_what_the_plan_makes(change: str, monkeypatch: pytest.MonkeyPatch):
    from flsys_ray.cloud import replay as module

    store, _ = lived(None)
    made = module.public_form

    def other(*about: object):
        found = made(*about)
        changed = {"half_sha256": "0" * 64, "steps": ()}[change]
        return type(found)(found.form.model_copy(update={change: changed}), found.files)

    monkeypatch.setattr(module, "public_form", other)
    assert [one.verdict for one in replay(store, MODEL)] == ["equal", *["differs"] * 3]


def test_what_an_assignment_says_of_its_steps_stays_small_however_small_they_are():
    """It is said in each assignment, entry of the log and manifest, to phones that need no step of them as well."""
    size, form, store = 20_000, None, MemoryStore()
    plan = PLAN.model_copy(update={"download": TopK(fraction=1e-4)})
    for number in range(50):
        version = Version(number, np.full(size, number / 100, np.float32), OptimizerState())
        made = public_form(store, MODEL, version, plan, form)
        assert made is not None
        for place, body in made.files.items():
            put_same(store, place, body)
        form = made.form
    assert form is not None
    assert len(form.steps) == STEPS
    assert len(form.model_dump_json()) < 10_000
