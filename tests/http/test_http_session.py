"""The life of a model through HTTP: what developers and phones do when all goes well, and when phones vanish."""

import hashlib

import numpy as np
import pytest
from cloud_world import OPERATOR_KEY, PAIR, World, bearer, problem
from safetensors.numpy import load
from tiny_program import CLASSES, LEAVES, PARAMETERS

from flsys_ray.cloud.checkins import Terms
from flsys_ray.core.plan import parse_plan
from flsys_ray.errors import TryLater
from flsys_ray.programs.runner import Program


def test_a_model_from_the_first_call_to_inference(world: World, tiny):
    key = world.app()
    created = world.http.put("/v1/models/tiny", json={"plan": PAIR}, headers=bearer(key))
    assert (created.status_code, created.json()["state"]) == (201, "draft")
    assert world.put_program(key).json()["program_sha256"] == hashlib.sha256(tiny.data).hexdigest()
    assert world.act(key, "start").json()["version"] == 0

    base = Program.load(tiny.data).init(0)
    expected = base.copy()
    for number in (1, 2):
        for name, value in (("one", 0.25), ("two", 0.75)):
            token = world.device(key, name)
            work = world.work(token)
            assert (work["round"], work["version"]) == (number - 1, number - 1)
            weights = world.http.get(work["weights"]["url"], headers=bearer(token))
            assert hashlib.sha256(weights.content).hexdigest() == work["weights"]["sha256"]
            np.testing.assert_array_equal(load(weights.content)["parameters"], expected)
            program = world.http.get(work["program"]["url"], headers=bearer(token))
            assert program.content == tiny.data
            assert world.evaluate(token, work).json() == {"status": "counted", "duplicate": False}
            assert world.upload(token, work, world.body(value)).json() == {"status": "counted", "duplicate": False}
        expected = expected + np.float32(0.5)  # the mean of 0.25 and 0.75, with the same number of examples

    manifest = world.manifest(key, 2)
    assert (manifest["version"], manifest["round"], len(manifest["updates"])) == (2, 1, 2)
    assert {line["sha256"] for line in manifest["updates"]} == {
        hashlib.sha256(world.body(value)).hexdigest() for value in (0.25, 0.75)
    }
    first, second = world.rounds(key)
    assert (first["committed"], second["committed"]) == (1, 2)
    assert first["evaluation"] == {"loss": 0.75, "accuracy": 0.5, "examples": 8, "devices": 2, "per_class": None}
    assert world.info(key)["last_metrics"] == first["evaluation"]
    assert world.http.get("/v1/models/tiny/versions", headers=bearer(key)).json()["versions"] == [0, 1, 2]
    answer = world.http.post("/v1/models/tiny/infer", json={"instances": [[1, 2, 3, 4]]}, headers=bearer(key)).json()
    scores = Program.load(tiny.data).infer(expected, np.array([[1, 2, 3, 4]], dtype=np.float32))
    np.testing.assert_array_equal(np.array(answer["scores"], dtype=np.float32), scores)
    assert answer["labels"] == [CLASSES[int(scores[0].argmax())]]


def test_the_assignment_says_all_that_a_phone_needs(world: World, key):
    world.training(key)
    work = world.work(world.device(key, "one"))
    assert work["deadline_s"] == 60
    assert work["upload"] == {
        "url": f"/v1/assignments/{work['assignment_id']}/update",
        "encodings": ["float32"],
        "compression": None,
        "max_bytes": 4 * PARAMETERS + 4096,
        "staged": None,
    }
    assert work["local"] == {"epochs": 1, "learning_rate": 0.05, "proximal_mu": 0.0, "max_steps": None}
    assert work["augmentation"] is None


def test_the_names_of_leaves_are_those_of_the_model(tiny):
    assert tuple(leaf.name for leaf in tiny.manifest.layout) == LEAVES  # tests below name them


# Repeats -------------------------------------------------------------------------------------------------------------


def test_an_app_is_created_once_and_keeps_its_key(world: World):
    assert world.app("acme") == world.app("acme")
    assert world.app("acme") != world.app("other")


def test_enrolment_gives_the_same_device_again(world: World, key):
    body = {"installation_id": "installation-1"}
    first = world.http.post("/v1/devices", json=body, headers=bearer(key)).json()
    world.clock.advance(1000)
    again = world.http.post("/v1/devices", json=body, headers=bearer(key)).json()
    other = world.http.post("/v1/devices", json=body, headers=bearer(world.app("other"))).json()
    assert again["device_id"] == first["device_id"] != other["device_id"]
    assert again["expires_at"] == first["expires_at"] + 1000


def test_the_same_plan_again_changes_nothing(world: World, key):
    world.draft(key)
    before = [*world.store.list("")]
    again = world.http.put("/v1/models/tiny", json={"plan": PAIR}, headers=bearer(key))
    assert (again.status_code, again.json()["state"]) == (200, "draft")
    assert [*world.store.list("")] == before


def test_the_same_program_again_changes_nothing_even_after_the_start(world: World, key):
    world.training(key)
    before = [*world.store.list("")]
    assert world.put_program(key).status_code == 200
    assert [*world.store.list("")] == before


def test_starting_twice_opens_one_version(world: World, key):
    world.training(key)
    assert world.act(key, "start").json()["version"] == 0
    assert world.http.get("/v1/models/tiny/versions", headers=bearer(key)).json()["versions"] == [0]


def test_checking_in_again_gives_the_same_assignment(world: World, key):
    world.training(key)
    token = world.device(key, "one")
    first = world.work(token)
    world.clock.advance(7)
    again = world.work(token)
    assert again == first | {"deadline_s": first["deadline_s"] - 7}
    assert world.info(key)["open_round"]["counters"]["assigned"] == 1


def test_an_upload_again_is_a_duplicate_and_counts_once(world: World, key):
    world.training(key)
    token = world.device(key, "one")
    work = world.work(token)
    assert world.upload(token, work).json() == {"status": "counted", "duplicate": False}
    assert world.upload(token, work).json() == {"status": "counted", "duplicate": True}
    assert world.upload(token, work, world.body(0.9)).json() == {"status": "counted", "duplicate": True}
    assert world.info(key)["open_round"]["counters"]["counted"] == 1
    world.commit(key, "two")
    shas = [line["sha256"] for line in world.manifest(key, 1)["updates"]]
    assert shas == [hashlib.sha256(world.body()).hexdigest()] * 2  # the bytes that came first


def test_an_upload_that_was_counted_is_a_duplicate_for_ever(world: World, key):
    world.training(key)
    token = world.device(key, "one")
    work = world.work(token)
    world.upload(token, work)
    world.commit(key, "two")
    assert world.info(key)["version"] == 1
    assert world.upload(token, work).json() == {"status": "counted", "duplicate": True}
    world.clock.advance(10_000)
    world.commit(key)
    assert world.upload(token, work).json() == {"status": "counted", "duplicate": True}
    world.act(key, "stop")
    assert world.upload(token, work).json() == {"status": "counted", "duplicate": True}


def test_an_evaluation_again_is_a_duplicate_and_the_first_one_stays(world: World, key):
    world.training(key)
    token = world.device(key, "one")
    work = world.work(token)
    assert world.evaluate(token, work, correct=1).json() == {"status": "counted", "duplicate": False}
    assert world.evaluate(token, work, correct=4).json() == {"status": "counted", "duplicate": True}
    world.upload(token, work)
    world.commit(key, "two")
    assert world.rounds(key)[0]["evaluation"]["accuracy"] == 0.25
    problem(world.evaluate(token, work), 410, "late")


# Giving back ---------------------------------------------------------------------------------------------------------


def test_giving_back_frees_the_slot_and_may_be_repeated(world: World, key):
    world.training(key, plan=PAIR | {"pacing": {"cohort": 1, "over_selection": 1}})
    one, two = world.device(key, "one"), world.device(key, "two")
    work = world.work(one)
    assert world.check_in(two)["rejections"] == [{"model": "tiny", "reason": "round-full"}]
    for _ in range(2):
        assert world.give_back(one, work).status_code == 204
    assert world.info(key)["open_round"]["counters"]["given_back"] == 1
    assert world.work(two)["assignment_id"] != work["assignment_id"]
    assert world.check_in(one)["rejections"] == [{"model": "tiny", "reason": "already-contributed"}]


def test_the_reason_may_be_left_out(world: World, key):
    world.training(key)
    token = world.device(key, "one")
    work = world.work(token)
    reply = world.http.delete(f"/v1/assignments/{work['assignment_id']}", headers=bearer(token, work["token"]))
    assert (reply.status_code, reply.content) == (204, b"")


def test_an_upload_after_giving_back_is_late(world: World, key):
    world.training(key)
    token = world.device(key, "one")
    work = world.work(token)
    world.give_back(token, work)
    assert "given-back" in problem(world.upload(token, work), 410, "late")["detail"]


def test_giving_back_after_the_upload_conflicts_and_the_update_stays(world: World, key):
    world.training(key)
    token = world.device(key, "one")
    work = world.work(token)
    world.upload(token, work)
    problem(world.give_back(token, work), 409, "conflict")
    world.commit(key, "two")
    assert len(world.manifest(key, 1)["updates"]) == 2


def test_giving_back_when_the_round_is_over_needs_nothing(world: World, key):
    world.training(key)
    token = world.device(key, "three")
    work = world.work(token)
    world.commit(key)
    assert world.give_back(token, work).status_code == 204


# Deadlines -----------------------------------------------------------------------------------------------------------


def test_a_deadline_with_the_quorum_commits(world: World, key):
    world.training(key)
    token = world.device(key, "one")
    world.upload(token, world.work(token))
    world.clock.advance(61)
    info = world.info(key)
    assert (info["version"], info["rounds_closed"]) == (1, 1)
    assert len(world.manifest(key, 1)["updates"]) == 1


def test_a_missed_quorum_opens_the_next_round_from_the_same_version(world: World, key):
    world.training(key, plan=PAIR | {"pacing": {"cohort": 4, "deadline_s": 60}})
    token = world.device(key, "one")
    work = world.work(token)
    world.upload(token, work)
    world.clock.advance(61)
    info = world.info(key)
    assert (info["version"], info["open_round"]["round"], info["open_round"]["version"]) == (0, 1, 0)
    assert world.http.get("/v1/models/tiny/versions", headers=bearer(key)).json()["versions"] == [0]
    assert (world.rounds(key)[0]["committed"], world.rounds(key)[0]["num_examples"]) == (None, 5)
    assert "round-over" in problem(world.upload(token, work), 410, "late")["detail"]  # counted, but in no version
    assert world.work(token)["version"] == 0


def test_an_upload_after_the_deadline_is_late(world: World, key):
    world.training(key)
    token = world.device(key, "one")
    work = world.work(token)
    world.clock.advance(61)
    assert "deadline-passed" in problem(world.upload(token, work), 410, "late")["detail"]


def test_an_upload_at_the_deadline_is_in_time_for_nobody_or_counted(world: World, key):
    """The instant of the deadline itself: the answer and the committed version agree."""
    world.training(key)
    one, two = world.device(key, "one"), world.device(key, "two")
    works = [world.work(one), world.work(two)]
    world.upload(one, works[0])
    world.clock.advance(60)
    reply = world.upload(two, works[1])
    lines = {line["assignment_id"] for line in world.manifest(key, 1)["updates"]}
    assert (reply.status_code == 200) == (works[1]["assignment_id"] in lines)


def test_an_upload_that_came_first_but_was_not_counted_is_late(world: World, key):
    """Durable, and then the round committed without it: its repeat must not be told that it counts."""
    world.training(key)
    token = world.device(key, "three")
    work = world.work(token)
    world.commit(key)
    problem(world.upload(token, work), 410, "late")
    problem(world.upload(token, work), 410, "late")


# Pause, stop, plans --------------------------------------------------------------------------------------------------


def test_paused_gives_no_work_and_counts_what_comes_back(world: World, key):
    world.training(key)
    token = world.device(key, "one")
    work = world.work(token)
    for _ in range(2):
        assert world.act(key, "pause").json()["state"] == "paused"
    assert world.check_in(world.device(key, "two"))["rejections"] == [{"model": "tiny", "reason": "not-training"}]
    assert world.upload(token, work).status_code == 200
    for _ in range(2):
        assert world.act(key, "resume").json()["state"] == "training"
    world.commit(key, "two")
    assert world.info(key)["version"] == 1


def test_stopped_is_finished_and_keeps_its_version(world: World, key):
    world.training(key)
    world.commit(key)
    for _ in range(2):
        assert world.act(key, "stop").json()["state"] == "finished"
    assert world.info(key)["version"] == 1
    assert world.info(key)["open_round"] is None
    assert world.check_in(world.device(key, "one"))["rejections"] == [{"model": "tiny", "reason": "finished"}]
    for action in ("start", "resume", "pause"):
        problem(world.act(key, action), 409, "conflict")


def test_a_draft_cannot_be_paused_or_started_without_a_program(world: World, key):
    world.draft(key)
    problem(world.act(key, "pause"), 409, "conflict")
    assert "program" in problem(world.act(key, "start"), 409, "conflict")["detail"]
    assert world.check_in(world.device(key, "one"))["rejections"] == [{"model": "tiny", "reason": "not-training"}]
    problem(world.http.get("/v1/models/tiny/versions/latest", headers=bearer(key)), 404, "not-found")


def test_the_plans_last_version_finishes_the_model(world: World, key):
    world.training(key, plan=PAIR | {"stopping": {"versions": 1}})
    world.commit(key)
    assert world.info(key)["state"] == "finished"
    assert world.check_in(world.device(key, "one"))["rejections"] == [{"model": "tiny", "reason": "finished"}]


@pytest.mark.parametrize("action", ["pause", "resume", "start"])
def test_a_model_that_finishes_by_its_deadline_stays_finished_whatever_is_called(world: World, key, action):
    world.training(key, plan=PAIR | {"stopping": {"versions": 1}})
    token = world.device(key, "one")
    world.upload(token, world.work(token))
    if action != "pause":
        world.act(key, "pause")
    world.clock.advance(61)  # the quorum is there: the first look at the clock commits the last version
    problem(world.act(key, action), 409, "conflict")
    assert (world.info(key)["state"], world.info(key)["version"]) == ("finished", 1)


def test_another_program_after_the_start_conflicts(world: World, key, tiny):
    world.training(key)
    problem(world.put_program(key, program=other_program()), 409, "conflict")
    assert world.info(key)["program_sha256"] == tiny.sha256


def test_another_program_before_the_start_replaces_the_first(world: World, key):
    world.draft(key)
    world.put_program(key)
    other = other_program()
    assert world.put_program(key, program=other).json()["program_sha256"] == hashlib.sha256(other).hexdigest()


def other_program() -> bytes:
    """Return the tiny program under another name: another file, as good as the first."""
    from tiny_program import tiny_program

    from flsys_ray.programs.manifest import pack, read_manifest

    data = tiny_program().data
    manifest = read_manifest(data)
    end = data.index(b"PK\x03\x04")
    while hashlib.sha256(data[:end]).hexdigest() != manifest.flatbuffer_sha256:
        end = data.index(b"PK\x03\x04", end + 1)
    return pack(data[:end], manifest.model_copy(update={"name": "other"}))


def test_a_new_plan_acts_from_the_next_round_and_versions_remember_theirs(world: World, key):
    world.training(key)
    other = PAIR | {"pacing": {"cohort": 1, "deadline_s": 30}, "local": {"epochs": 9}}
    token = world.device(key, "one")
    assert world.work(token)["local"]["epochs"] == 1
    reply = world.http.put("/v1/models/tiny", json={"plan": other}, headers=bearer(key))
    assert (reply.status_code, reply.json()["plan"]["local"]["epochs"]) == (200, 9)
    late_comer = world.device(key, "two")
    assert world.work(late_comer)["local"]["epochs"] == 1
    world.commit(key)  # two updates, as the open round's plan asks
    assert world.work(token)["local"]["epochs"] == 9
    world.commit(key, "one")  # one is enough now
    digests = [world.manifest(key, number)["plan_sha256"] for number in range(3)]
    expected = [hashlib.sha256(parse_plan(plan).model_dump_json().encode()).hexdigest() for plan in (PAIR, other)]
    assert digests == [expected[0], expected[0], expected[1]]


def test_a_new_plan_may_move_the_end(world: World, key):
    """The last round closes under a plan that says stop, when the developer has asked for more already."""
    world.training(key, plan=PAIR | {"stopping": {"versions": 1}})
    world.draft(key, plan=PAIR | {"stopping": {"versions": 2}})
    world.commit(key)
    assert world.info(key)["state"] == "training"
    world.commit(key)
    assert (world.info(key)["state"], world.info(key)["version"]) == ("finished", 2)


def test_a_new_plan_whose_end_is_reached_finishes_with_the_open_round(world: World, key):
    world.training(key)
    world.commit(key)
    world.draft(key, plan=PAIR | {"stopping": {"versions": 1}})
    world.commit(key)
    assert (world.info(key)["state"], world.info(key)["version"]) == ("finished", 2)


# Several models ------------------------------------------------------------------------------------------------------


def test_a_check_in_tells_of_each_model_apart(world: World, key):
    world.training(key)
    world.draft(key, "draft")
    reply = world.check_in(world.device(key, "one"), "tiny", "draft", "nobodys")
    assert [work["model"] for work in reply["assignments"]] == ["tiny"]
    assert reply["rejections"] == [
        {"model": "draft", "reason": "not-training"},
        {"model": "nobodys", "reason": "unknown-model"},
    ]
    assert set(reply["eligibility"]) == {"tiny", "draft"}
    assert reply["retry_after_s"] > 0


def test_a_check_in_for_unknown_models_only_is_answered(world: World, key):
    reply = world.check_in(world.device(key, "one"), "nobodys")
    assert (reply["assignments"], reply["eligibility"]) == ([], {})
    assert reply["retry_after_s"] == 60


def test_a_model_that_is_down_stops_no_other(world: World, key):
    world.training(key)
    world.training(key, "down")
    hosts = world.cloud.hosts

    class Down:
        async def check_in_many(self, device_ids):
            raise TryLater("its actor is being restarted", 7.0)

    class HalfDown:
        def model(self, name):
            return Down() if name == "acme/down" else hosts.model(name)

    class ByName:
        def order(self, check_in):
            return tuple(sorted(candidate.model for candidate in check_in.candidates))

    world.cloud.checkins.hosts = HalfDown()
    world.cloud.checkins.terms = Terms(scheduler=ByName())
    reply = world.check_in(world.device(key, "one"), "down", "tiny")
    assert [work["model"] for work in reply["assignments"]] == ["tiny"]
    assert reply["rejections"] == [{"model": "down", "reason": "unavailable"}]
    assert reply["retry_after_s"] == 7.0


def test_a_model_that_was_half_created_hides_nothing_else(world: World, key):
    """The developer's call died between taking the name and writing the log: no other model may suffer."""
    world.training(key)
    world.store.put_new("catalog/acme/half.json", b"")
    listed = world.http.get("/v1/models", headers=bearer(key))
    assert [model["model"] for model in listed.json()["models"]] == ["tiny"]
    reply = world.check_in(world.device(key, "one"), "half", "tiny")
    assert [work["model"] for work in reply["assignments"]] == ["tiny"]
    assert reply["rejections"] == [{"model": "half", "reason": "unknown-model"}]
    created = world.http.put("/v1/models/half", json={"plan": PAIR}, headers=bearer(key))
    assert (created.status_code, created.json()["state"]) == (201, "draft")


def test_the_list_holds_the_apps_own_models_by_name(world: World, key):
    for name in ("zebra", "ant"):
        world.draft(key, name)
    world.draft(world.app("other"), "foreign")
    listed = world.http.get("/v1/models", headers=bearer(key)).json()["models"]
    assert [model["model"] for model in listed] == ["ant", "zebra"]


def test_alive_and_ready(world: World):
    assert world.http.get("/healthz").json() == {"status": "ok"}
    assert world.http.get("/readyz").json() == {"status": "ok"}
    assert world.http.post("/v1/apps", json={"name": "a"}, headers=bearer(OPERATOR_KEY)).status_code == 201
