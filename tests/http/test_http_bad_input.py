"""Everything wrong that a phone or a developer can send, and the one answer that each of it gets."""

import json
import struct

import numpy as np
import pytest
from cloud_world import OPERATOR_KEY, PAIR, World, bearer, exchange, problem
from tiny_program import PARAMETERS

from flsys_ray.http.limits import JSON_BYTES, PROGRAM_BYTES
from flsys_ray.wire.tensors import encode_update, encode_vector, max_update_bytes

JSON = {"Content-Type": "application/json"}
METADATA = {"num_examples": "5", "loss": "1.0"}


@pytest.fixture
def phone(world: World, key: str):
    """A device with an assignment: (token, work)."""
    world.training(key)
    token = world.device(key, "one")
    return token, world.work(token)


def chunked(body: bytes, size: int = 1000):
    """Yield the body in pieces: it is sent without a Content-Length."""
    for start in range(0, len(body), size):
        yield body[start : start + size]


# Updates -------------------------------------------------------------------------------------------------------------


def with_value(value: float, at: int) -> bytes:
    delta = np.zeros(PARAMETERS, dtype=np.float32)
    delta[at] = value
    return encode_update(delta, 5, 1.0)


UNUSABLE = {
    "empty": (b"", "not a safetensors file"),
    "short": (b"\x08", "not a safetensors file"),
    "no header": (b"\0" * 100, "not a safetensors file"),
    "header longer than the file": (struct.pack("<Q", 2**40) + b"{}", "not a safetensors file"),
    "negative header": (b"\xff" * 8 + b"{}", "not a safetensors file"),
    "header not JSON": (struct.pack("<Q", 8) + b"{{{{{{{{", "not a safetensors file"),
    "header a list": (struct.pack("<Q", 8) + b"[1,2,3] ", "not a safetensors file"),
    "header deep": (struct.pack("<Q", 4000) + b"[" * 4000, "not a safetensors file"),
    "truncated": (with_value(0.1, 0)[:-1], "not a safetensors file"),
    "longer than it says": (with_value(0.1, 0) + b"x", "not a safetensors file"),
    "too long": (encode_vector("delta", np.zeros(PARAMETERS + 1, np.float32), METADATA), f"has [{PARAMETERS}]"),
    "too short": (encode_vector("delta", np.zeros(1, np.float32), METADATA), f"has [{PARAMETERS}]"),
    "another name": (encode_vector("gradient", np.zeros(PARAMETERS, np.float32), METADATA), "'gradient'"),
    "NaN": (with_value(np.nan, 0), "'hidden/kernel' holds nan at its element 0"),
    "infinity": (with_value(np.inf, 32 + 3), "'hidden/bias' holds inf at its element 3"),
    "minus infinity": (with_value(-np.inf, PARAMETERS - 1), "'scores/bias' holds -inf at its element 2"),
    "beyond the plan's limit": (with_value(1025.0, 40 + 7), "'scores/kernel' holds 1025.0 at its element 7"),
    "no metadata": (encode_vector("delta", np.zeros(PARAMETERS, np.float32)), "'num_examples'"),
    "no examples": (encode_update(np.zeros(PARAMETERS, np.float32), 0, 1.0), "'num_examples'"),
    "loss NaN": (encode_update(np.zeros(PARAMETERS, np.float32), 5, float("nan")), "'loss'"),
    "loss beyond float32": (encode_update(np.zeros(PARAMETERS, np.float32), 5, 1e300), "'loss'"),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_an_unusable_update_is_refused_by_name_and_leaves_nothing(world: World, key, phone, case):
    body, says = UNUSABLE[case]
    found = problem(world.upload(*phone, body), 422, "update-unusable")
    assert says in found["detail"]
    assert found["detail"].startswith("update for tiny v0: ")
    assert not [*world.store.list("models/acme/tiny/rounds/")]
    assert world.upload(*phone).json() == {"status": "counted", "duplicate": False}  # the slot is not lost


@pytest.mark.parametrize(("name", "dtype"), [("F64", "<f8"), ("F16", "<f2"), ("I32", "<i4")])
def test_another_dtype_is_refused(world: World, phone, name, dtype):
    data = np.zeros(PARAMETERS, dtype=dtype).tobytes()
    entry = {"dtype": name, "shape": [PARAMETERS], "data_offsets": [0, len(data)]}
    header = json.dumps({"__metadata__": METADATA, "delta": entry}).encode()
    body = struct.pack("<Q", len(header)) + header + data
    assert f"dtype {name}" in problem(world.upload(*phone, body), 422, "update-unusable")["detail"]


def test_a_second_tensor_is_refused(world: World, phone):
    data = np.zeros(PARAMETERS, dtype="<f4").tobytes()
    header = json.dumps(
        {
            "__metadata__": METADATA,
            "delta": {"dtype": "F32", "shape": [PARAMETERS], "data_offsets": [0, len(data)]},
            "more": {"dtype": "F32", "shape": [0], "data_offsets": [len(data), len(data)]},
        }
    ).encode()
    body = struct.pack("<Q", len(header)) + header + data
    assert "exactly one tensor" in problem(world.upload(*phone, body), 422, "update-unusable")["detail"]


@pytest.mark.parametrize("how", ["declared", "chunked", "declared too small"])
def test_an_oversized_update_is_refused_as_it_streams(world: World, phone, how):
    limit = max_update_bytes(PARAMETERS)
    body = bytes(limit + 1)
    sent = body if how == "declared" else chunked(body)
    headers = {"Content-Length": "10"} if how == "declared too small" else {}
    assert str(limit) in problem(world.upload(*phone, sent, **headers), 413, "too-large")["detail"]
    problem(world.upload(*phone, bytes(limit)), 422, "update-unusable")  # as large as it may be: read, and looked at


def test_no_more_is_read_than_the_limit_and_a_piece(world: World, phone):
    read = 0

    def endless():
        nonlocal read
        while True:
            read += 1000
            yield bytes(1000)

    token, work = phone
    status, _ = exchange(world, "PUT", work["upload"]["url"], bearer(token, work["token"]), endless())
    assert status == 413
    assert read <= max_update_bytes(PARAMETERS) + 1000


def test_no_more_json_is_read_than_the_limit_and_a_piece(world: World, key):
    read = 0

    def endless():
        nonlocal read
        while True:
            read += 65536
            yield b" " * 65536

    status, _ = exchange(world, "PUT", "/v1/models/tiny", bearer(key) | JSON, endless())
    assert status == 413
    assert read <= JSON_BYTES + 65536


def test_a_phone_that_vanishes_in_the_middle_of_its_upload_is_no_error_of_ours(world: World, key, phone, caplog):
    token, work = phone
    headers = bearer(token, work["token"])
    exchange(world, "PUT", work["upload"]["url"], headers, iter([world.body()[:100]]))  # and then it hangs up
    assert caplog.records == []
    assert world.info(key)["open_round"]["counters"]["counted"] == 0
    assert world.upload(token, work).json() == {"status": "counted", "duplicate": False}


def test_a_plan_may_hold_the_examples_of_one_device_down(world: World, key):
    world.training(key, plan=PAIR | {"limits": {"max_examples": 100}})
    token = world.device(key, "one")
    assert world.upload(token, world.work(token), world.body(0.1, num_examples=10**11)).status_code == 200
    world.commit(key, "two")
    assert sorted(line["num_examples"] for line in world.manifest(key, 1)["updates"]) == [5, 100]


@pytest.mark.parametrize("assignment_id", ["x", "00000000-zzzzzzzzzzzzzzzzzzzz", "0" * 29, "00000000-" + "0" * 21])
def test_an_assignment_id_that_can_be_none_is_refused(world: World, phone, assignment_id):
    token, work = phone
    reply = world.http.put(
        f"/v1/assignments/{assignment_id}/update", content=world.body(), headers=bearer(token, work["token"])
    )
    problem(reply, 422, "invalid-input")


# Evaluations ---------------------------------------------------------------------------------------------------------

EVALUATION = {"loss_sum": 3.0, "correct": 2, "count": 4}
WRONG_EVALUATIONS = [
    {"count": 0},
    {"correct": -1},
    {"loss_sum": -1.0},
    {"correct": 5},  # of 4
    {"correct": 10**400, "count": 10**400},
    {"loss_sum": 1e308},
    {"count": 10**30},
]


@pytest.mark.parametrize("wrong", WRONG_EVALUATIONS)
def test_an_evaluation_that_makes_no_sense_is_refused(world: World, key, phone, wrong):
    problem(world.evaluate(*phone, **wrong), 422, "invalid-input")


def test_no_evaluation_can_stop_a_model(world: World, key):
    """Sums over devices stay finite: the largest evaluations that are taken, from a whole cohort."""
    world.training(key)
    for name in ("one", "two"):
        token = world.device(key, name)
        work = world.work(token)
        largest = {"loss_sum": 1e30, "correct": 2**31 - 1, "count": 2**31 - 1}
        assert world.evaluate(token, work, **largest).status_code == 200
        assert world.upload(token, work).status_code == 200
    assert world.info(key)["version"] == 1
    assert world.rounds(key)[0]["evaluation"]["accuracy"] == 1.0


# JSON ----------------------------------------------------------------------------------------------------------------

MALFORMED = {
    "cut off": b'{"plan":',
    "not JSON": b"hello",
    "empty": b"",
    "not UTF-8": b'{"plan": "\xff"}',
    "nested without end": b'{"plan":' + b"[" * 100_000,
    "a number without end": b'{"plan":{"seed":' + b"1" * 5000 + b"}}",
    "NaN": b'{"plan":{"seed":NaN}}',
    "infinity": b'{"plan":{"local":{"learning_rate":1e999}}}',
    "half a character": b'{"\\ud800": 1}',
    "half a character in a name": b'{"plan":{"aggregation":"\\ud800"}}',
    "a list": b"[]",
    "null": b"null",
}
IN_THE_PLAN = ("NaN", "infinity", "half a character in a name")


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_json_is_refused(world: World, key, case):
    reply = world.http.put("/v1/models/tiny", content=MALFORMED[case], headers=bearer(key) | JSON)
    problem(reply, 422, "plan-invalid" if case in IN_THE_PLAN else "invalid-input")


def test_json_without_its_content_type_is_refused_with_the_reason(world: World, key):
    reply = world.http.put("/v1/models/tiny", content=b'{"plan": {}}', headers=bearer(key))
    assert "Content-Type: application/json" in problem(reply, 422, "invalid-input")["detail"]


def test_misspelt_fields_are_refused_by_name(world: World, key):
    reply = world.http.put("/v1/models/tiny", json={"plan": {"cohort": 3}}, headers=bearer(key))
    assert problem(reply, 422, "plan-invalid")["fields"] == ["cohort"]
    reply = world.http.post("/v1/devices", json={"installation_id": "12345678", "imei": "1"}, headers=bearer(key))
    assert problem(reply, 422, "invalid-input")["fields"] == ["imei"]


def test_an_answer_to_rubbish_is_small(world: World, key):
    rubbish = {f"field-{number}": 0 for number in range(50_000)}
    reply = world.http.put("/v1/models/tiny", json=rubbish, headers=bearer(key))
    problem(reply, 422, "invalid-input")
    assert len(reply.content) < 10_000
    reply = world.http.put("/v1/models/tiny", json={"x" * 900_000: 0}, headers=bearer(key))
    problem(reply, 422, "invalid-input")
    assert len(reply.content) < 10_000


@pytest.mark.parametrize("model", ["tiny", "update", "program", "a-program"])
@pytest.mark.parametrize("how", ["declared", "chunked", "declared too small"])
def test_an_oversized_json_body_is_refused_as_it_streams(world: World, key, how, model):
    body = b'{"plan": {}}' + b" " * JSON_BYTES
    sent = body if how == "declared" else chunked(body, 65536)
    headers = bearer(key) | JSON | ({"Content-Length": "10"} if how == "declared too small" else {})
    found = problem(world.http.put(f"/v1/models/{model}", content=sent, headers=headers), 413, "too-large")
    assert str(JSON_BYTES) in found["detail"]


def test_a_json_body_as_large_as_it_may_be_is_read(world: World, key):
    body = b'{"plan": {}}'
    body += b" " * (JSON_BYTES - len(body))
    assert world.http.put("/v1/models/tiny", content=body, headers=bearer(key) | JSON).status_code == 201


# Plans ---------------------------------------------------------------------------------------------------------------

CONTRADICTIONS = {
    "quorum above cohort": ({"pacing": {"cohort": 2, "quorum": 3}}, {"pacing"}),
    "sums that overflow": (
        {"limits": {"max_examples": 10**15}},
        {"pacing", "limits.max_examples", "limits.max_abs_delta"},
    ),
    "unknown rule": ({"aggregation": "nonsense"}, {"aggregation"}),
    "unknown optimizer": ({"server_optimizer": "nonsense"}, {"server_optimizer"}),
    "a hyper-parameter": ({"server_optimizer": {"name": "adam", "beta_1": 2}}, {"server_optimizer.beta_1"}),
    "two at once": ({"seed": -1, "local": {"epochs": 0}}, {"seed", "local.epochs"}),
    "no plan": ([], set()),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_a_plan_that_contradicts_itself_is_refused_naming_the_fields(world: World, key, case):
    plan, fields = CONTRADICTIONS[case]
    reply = world.http.put("/v1/models/tiny", json={"plan": plan}, headers=bearer(key))
    found = problem(reply, 422, "plan-invalid")
    assert set(found.get("fields", ())) == fields
    assert all(field in found["detail"] for field in fields)
    assert "input_value" not in found["detail"]
    problem(world.http.get("/v1/models/tiny", headers=bearer(key)), 404, "not-found")


# Names, programs, versions -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["A", "-a", "a_b", "a b", "ä", "a" * 64, "a%0A", "%2e%2e"])
def test_a_name_that_is_none_is_refused(world: World, key, name):
    reply = world.http.put(f"/v1/models/{name}", json={"plan": PAIR}, headers=bearer(key))
    assert reply.status_code in (404, 422)
    assert not [*world.store.list("catalog/")]
    reply = world.http.post("/v1/apps", json={"name": name.replace("%0A", "\n")}, headers=bearer(OPERATOR_KEY))
    problem(reply, 422, "invalid-input")


@pytest.mark.parametrize(
    "path", ["", "/rounds", "/versions", "/versions/0", "/versions/latest", "/versions/0/manifest"]
)
def test_an_unknown_model_is_not_found(world: World, key, path):
    problem(world.http.get(f"/v1/models/nobodys{path}", headers=bearer(key)), 404, "not-found")


def test_what_an_unknown_model_is_asked_to_do_is_not_found(world: World, key):
    for action in ("start", "pause", "resume", "stop"):
        problem(world.act(key, action, "nobodys"), 404, "not-found")
    problem(world.put_program(key, "nobodys"), 404, "not-found")
    problem(
        world.http.post("/v1/models/nobodys/infer", json={"instances": [[1]]}, headers=bearer(key)), 404, "not-found"
    )


@pytest.mark.parametrize("number", ["3", "99999999", "9" * 9])
def test_a_version_that_is_not_there_yet_is_not_found(world: World, key, number):
    world.training(key)
    problem(world.http.get(f"/v1/models/tiny/versions/{number}", headers=bearer(key)), 404, "not-found")
    problem(world.http.get(f"/v1/models/tiny/versions/{number}/manifest", headers=bearer(key)), 404, "not-found")


@pytest.mark.parametrize("number", ["-1", "01", "1.0", "x", "latest2", "9" * 30, "9" * 300, "9" * 5000])
def test_a_version_that_is_no_number_is_refused_in_the_callers_words(world: World, key, number):
    world.training(key)
    for path in (f"/v1/models/tiny/versions/{number}", f"/v1/models/tiny/versions/{number}/manifest"):
        reply = world.http.get(path, headers=bearer(key))
        assert reply.status_code in (404, 422)
        assert "store" not in reply.json()["detail"]


def test_a_program_that_is_none_is_refused(world: World, key, tiny):
    world.draft(key)
    for body in (b"", b"hello", tiny.data[:-1], tiny.data[:1000], b"PK\x05\x06" + bytes(18), bytes(1000) + tiny.data):
        problem(world.put_program(key, program=body), 422, "program-invalid")
    assert world.info(key)["program_sha256"] is None
    assert not [*world.store.list("models/acme/tiny/programs/")]


def test_an_oversized_program_is_refused_before_it_is_read(world: World, key):
    world.draft(key)
    headers = bearer(key) | {"Content-Length": str(PROGRAM_BYTES + 1)}
    reply = world.http.put("/v1/models/tiny/program", content=chunked(b"x"), headers=headers)
    assert str(PROGRAM_BYTES) in problem(reply, 413, "too-large")["detail"]


def test_a_program_that_is_not_stored_is_not_found(world: World, key):
    world.training(key)
    reply = world.http.get(f"/v1/models/tiny/program/{'0' * 64}", headers=bearer(world.device(key, "one")))
    problem(reply, 404, "not-found")
    problem(world.http.get("/v1/models/tiny/program/short", headers=bearer(key)), 422, "invalid-input")


def test_an_action_that_is_none_is_refused(world: World, key):
    world.training(key)
    problem(world.act(key, "explode"), 422, "invalid-input")
    problem(world.act(key, "update"), 422, "invalid-input")


def test_a_path_or_method_that_is_none_is_answered_as_a_problem(world: World, key):
    problem(world.http.get("/v2/models"), 404, "not-found")
    reply = world.http.delete("/v1/models/tiny", headers=bearer(key))
    assert (reply.status_code, reply.headers["content-type"]) == (405, "application/problem+json")
    assert "PUT" in reply.headers["allow"]


# Inference -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("instances", "says"),
    [
        ([[1, 2, 3]], "instances"),
        ([[[1, 2, 3, 4]]], "instances"),
        ([[1, 2, 3, 4], [1, 2, 3]], "instances"),
        ([[1e300, 0, 0, 0]], "finite"),
        ([], "instances"),
        ([[1, 2, 3, 4]] * 257, "instances"),
        ([["a", 2, 3, 4]], "instances"),
        ([[None, 2, 3, 4]], "instances"),
    ],
)
def test_examples_that_the_model_cannot_take_are_refused(world: World, key, instances, says):
    world.training(key)
    reply = world.http.post("/v1/models/tiny/infer", json={"instances": instances}, headers=bearer(key))
    assert says in problem(reply, 422, "invalid-input")["detail"]


@pytest.mark.parametrize("version", [7, 10**9, 10**30, 10**300])
def test_inference_with_a_version_that_is_not_there_is_refused(world: World, key, version):
    world.training(key)
    body = {"instances": [[1, 2, 3, 4]], "version": version}
    reply = world.http.post("/v1/models/tiny/infer", json=body, headers=bearer(key))
    problem(reply, 404, "not-found")


def test_inference_before_the_start_is_not_found(world: World, key):
    world.draft(key)
    reply = world.http.post("/v1/models/tiny/infer", json={"instances": [[1, 2, 3, 4]]}, headers=bearer(key))
    assert "has not started" in problem(reply, 404, "not-found")["detail"]


def test_a_version_whose_scores_are_not_finite_is_told_as_such(world: World, key):
    world.training(key, plan=PAIR | {"server_optimizer": {"name": "sgd", "learning_rate": 3e38}})
    world.commit(key, value=1e-3)  # every parameter becomes 3e35: finite, and too large for a product
    reply = world.http.post("/v1/models/tiny/infer", json={"instances": [[1e9, 1, 1, 1]]}, headers=bearer(key))
    assert "not finite" in problem(reply, 422, "invalid-input")["detail"]
