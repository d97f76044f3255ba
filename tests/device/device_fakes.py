"""A cloud in memory that keeps the device API of DESIGN section 5, and a program that needs no LiteRT."""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import httpx2
import numpy as np
from safetensors.numpy import load

from flsys_ray.compression.base import Encoding
from flsys_ray.compression.float32 import FLOAT32
from flsys_ray.core.plan import Eligibility, LocalTraining
from flsys_ray.device.clock import Clock
from flsys_ray.device.conditions import ConditionsSource, FixedConditions
from flsys_ray.device.configuration import PhoneConfig, Shared
from flsys_ray.device.participation import Habits
from flsys_ray.device.phone import Phone
from flsys_ray.device.trainer import Programs
from flsys_ray.programs.manifest import LeafEntry, Manifest
from flsys_ray.programs.runner import Evaluated, Trained
from flsys_ray.wire.access import NonceReply
from flsys_ray.wire.schemas import (
    AssignmentMessage,
    AugmentationMessage,
    CheckInReply,
    CheckInRequest,
    ControlLink,
    EnrolReply,
    EnrolRequest,
    EvaluationReply,
    EvaluationRequest,
    GiveBackRequest,
    ProgramLink,
    Rejection,
    UpdateReply,
    UploadLink,
    WeightsLink,
)
from flsys_ray.wire.tensors import decode_range, encode_vector

URL = "http://cloud.test"
APP_KEY = "app-key-of-the-test"
SHAPE, CLASSES, BATCH = (100, 3), ("sitting", "walking", "running"), 8
PARAMETERS = 300 * 3 + 3
START = 1_700_000_000.0


def sha(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class SoftmaxProgram:
    """Softmax regression in numpy, with the interface of `Program`. `on_step` is called before each step."""

    def __init__(self, path: Path, on_step: Callable[[], None] = lambda: None) -> None:
        self.name = json.loads(path.read_bytes())["name"]
        self.on_step = on_step
        leaves = (LeafEntry(name="all", shape=(PARAMETERS,), offset=0, trainable=True),)
        self.manifest = Manifest(
            name=self.name, flatbuffer_sha256="0" * 64, parameters=PARAMETERS, slots=0, batch_size=BATCH,
            input_shape=SHAPE, input_dtype="float32", classes=CLASSES, local_optimizer="sgd", layout=leaves,
        )  # fmt: skip

    def train(
        self,
        parameters,
        x,
        y,
        *,
        epochs,
        learning_rate,
        rng,
        proximal_mu=0.0,
        max_steps=None,
        should_stop=lambda: False,
        correction=None,
        augment=None,
    ):
        current, losses, steps = parameters.copy(), [], 0
        correction = np.zeros_like(parameters) if correction is None else correction
        for epoch in range(epochs):
            seen = x if augment is None else augment(x, epoch)
            for rows in np.array_split(rng.permutation(len(y)), max(1, len(y) // BATCH)):
                if steps == max_steps:
                    break
                if should_stop():
                    return Trained(current, 0.0, steps, completed=False)
                self.on_step()
                inputs = seen[rows].reshape(len(rows), -1)
                scores = self.infer(current, seen[rows])
                losses.append(float(-np.log(scores[np.arange(len(rows)), y[rows]] + 1e-9).mean()))
                error = (scores - np.eye(3, dtype=np.float32)[y[rows]]) / len(rows)
                gradient = np.concatenate([(inputs.T @ error).ravel(), error.sum(0)]) + correction
                current = (current - learning_rate * gradient).astype(np.float32)
                steps += 1
        return Trained(current, float(np.mean(losses)), steps, completed=True)

    def evaluate(self, parameters, x, y):
        scores = self.infer(parameters, x)
        loss = -np.log(scores[np.arange(len(y)), y] + 1e-9).sum()
        return Evaluated(float(loss), int((scores.argmax(1) == y).sum()), len(y))

    def infer(self, parameters, x):
        logits = x.reshape(len(x), -1) @ parameters[:900].reshape(300, 3) + parameters[900:]
        scores = np.exp(logits - logits.max(1, keepdims=True))
        return (scores / scores.sum(1, keepdims=True)).astype(np.float32)


@dataclass
class FakeModel:
    name: str
    cohort: int = 1
    rounds: int = 3
    deadline_s: float = 600.0
    eligibility: Eligibility = field(default_factory=lambda: Eligibility(min_examples=5))
    local: LocalTraining = field(default_factory=lambda: LocalTraining(epochs=2, learning_rate=0.01))
    program: bytes = b""
    versions: list[bytes] = field(default_factory=list)
    controls: list[bytes] = field(default_factory=list)  # one a version, for a model that has them
    compression: Encoding = FLOAT32
    augmentation: AugmentationMessage | None = None
    sets: list[bytes] = field(default_factory=list)  # shared ones, that `augmentation` may name
    public: "dict[int, WeightsLink]" = field(default_factory=dict)  # in place of the weights of some versions
    files: dict[str, bytes] = field(default_factory=dict)  # that these name, by hash
    round: int = 0
    assignments: dict[str, SimpleNamespace] = field(default_factory=dict)

    def __post_init__(self):
        self.program = self.program or json.dumps({"name": self.name, "filler": "x" * 3000}).encode()
        if not self.versions:
            self.versions.append(encode_vector("parameters", np.zeros(PARAMETERS, np.float32)))

    @property
    def version(self) -> int:
        return len(self.versions) - 1

    def counted_controls(self) -> list[np.ndarray]:
        """Return the changes of controls that were counted."""
        return [load(entry.bodies[0])["control"] for entry in self.assignments.values() if entry.state == "counted"]

    def outcomes(self) -> list[str]:
        return [entry.state for entry in self.assignments.values()]


class FakeCloud:
    """Answers requests. `recorded` holds all of them; `faults` may answer or raise instead, in order, `None` passes."""

    def __init__(self, clock: Clock, *models: FakeModel) -> None:
        self.clock = clock
        self.models = {model.name: model for model in models or (FakeModel("har-wild"),)}
        self.devices: dict[str, str] = {}
        self.tokens: dict[str, str] = {}
        self.recorded: list[httpx2.Request] = []
        self.faults: list[Callable[[httpx2.Request], httpx2.Response | None] | None] = []
        self.after: Callable[[httpx2.Request], None] = lambda request: None
        self.token_life_s = 86_400.0
        self.retry_after_s = 30.0
        self.transport = httpx2.MockTransport(self.handle)

    def handle(self, request: httpx2.Request) -> httpx2.Response:
        request.read()
        self.recorded.append(request)
        fault = self.faults.pop(0) if self.faults else None
        response = fault(request) if fault else None
        if response is None:
            response = self._route(request)
        self.after(request)
        return response

    def calls(self, pattern: str) -> list[httpx2.Request]:
        return [r for r in self.recorded if re.fullmatch(pattern, f"{r.method} {r.url.path}")]

    def _route(self, request: httpx2.Request) -> httpx2.Response:
        bearer = request.headers.get("Authorization", "").removeprefix("Bearer ")
        route = f"{request.method} {request.url.path}"
        if route == "POST /v1/devices/nonce":
            return answer(NonceReply(nonce=f"nonce-{len(self.tokens)}", expires_in_s=300.0), 201)
        if route == "POST /v1/devices":
            return self._enrol(bearer, request)
        device = self.tokens.get(bearer)
        if device is None:
            return problem(401, "unauthenticated", "unknown token")
        if route == "POST /v1/devices/token":
            return self._token_for(device)
        if route == "POST /v1/checkins":
            return self._check_in(device, request)
        if match := re.fullmatch(r"GET /v1/models/([^/]+)/program/([0-9a-f]{64})", route):
            return self._file(request, self.models[match[1]].program, {})
        if match := re.fullmatch(r"GET /v1/models/([^/]+)/versions/(\d+|latest)", route):
            return self._version(request, match[1], match[2])
        if match := re.fullmatch(r"GET /v1/models/([^/]+)/control/([0-9a-f]{64})", route):
            found = [control for control in self.models[match[1]].controls if sha(control) == match[2]]
            return self._file(request, found[0], {}) if found else problem(404, "not-found", "no such control")
        if match := re.fullmatch(r"GET /v1/models/([^/]+)/augmentation/([0-9a-f]{64})", route):
            found = [shared for shared in self.models[match[1]].sets if sha(shared) == match[2]]
            return self._file(request, found[0], {}) if found else problem(404, "not-found", "no such set")
        if match := re.fullmatch(r"GET /v1/models/([^/]+)/public/(full|half|step)/([0-9a-f]{64})", route):
            body = self.models[match[1]].files.get(match[3])
            return problem(404, "not-found", "no such file") if body is None else self._file(request, body, {})
        if match := re.fullmatch(r"(PUT|DELETE) /v1/assignments/([^/]+)(/update|/evaluation|)", route):
            return self._assignment(device, match[2], match[1] + match[3], request)
        return problem(404, "not-found", f"no such route: {route}")

    def _enrol(self, bearer: str, request: httpx2.Request) -> httpx2.Response:
        if bearer != APP_KEY:
            return problem(401, "unauthenticated", "unknown app key")
        installation = EnrolRequest.model_validate_json(request.content).installation_id
        return self._token_for(self.devices.setdefault(installation, f"device-{len(self.devices)}"))

    def _token_for(self, device: str) -> httpx2.Response:
        token = f"device-token-{len(self.tokens)}"
        self.tokens[token] = device
        return answer(EnrolReply(device_id=device, token=token, expires_at=self.clock.now() + self.token_life_s), 201)

    def _check_in(self, device: str, request: httpx2.Request) -> httpx2.Response:
        known = CheckInRequest.model_validate_json(request.content)
        assignments, rejections, eligibility = [], [], {}
        for candidate in known.models:
            model = self.models.get(candidate.model)
            if model is None:
                rejections.append(Rejection(model=candidate.model, reason="unknown-model"))
                continue
            eligibility[model.name] = model.eligibility
            offer = self._offer(model, device)
            if offer is None:
                rejections.append(Rejection(model=model.name, reason="already-contributed"))
            else:
                assignments.append(offer)
        reply = CheckInReply(
            assignments=assignments, rejections=rejections, eligibility=eligibility, retry_after_s=self.retry_after_s
        )
        return answer(reply)

    def _offer(self, model: FakeModel, device: str) -> AssignmentMessage | None:
        key = f"{model.name}-{model.round:04d}-{device}"
        now = self.clock.now()
        if model.round >= model.rounds:
            return None
        entry = model.assignments.setdefault(
            key,
            SimpleNamespace(state="pending", device=device, deadline=now + model.deadline_s, bodies=[], metrics=None),
        )
        if entry.state != "pending" or now >= entry.deadline:
            return None
        weights, base = model.versions[-1], f"/v1/models/{model.name}"
        control = sha(model.controls[-1]) if model.controls else None
        return AssignmentMessage(
            assignment_id=key,
            token=f"assignment-token-{key}",
            model=model.name,
            round=model.round,
            version=model.version,
            program=ProgramLink(url=f"{base}/program/{sha(model.program)}", sha256=sha(model.program)),
            weights=model.public.get(
                model.version, WeightsLink(url=f"{base}/versions/{model.version}", sha256=sha(weights))
            ),
            control=ControlLink(url=f"{base}/control/{control}", sha256=control) if control else None,
            augmentation=model.augmentation,
            local=model.local,
            upload=UploadLink(
                url=f"/v1/assignments/{key}/update",
                encodings=[model.compression.name, "float32"],
                compression=model.compression.model_dump(mode="json"),
                max_bytes=100_000,
            ),
            deadline_s=entry.deadline - now,
        )

    def _version(self, request: httpx2.Request, name: str, number: str) -> httpx2.Response:
        model = self.models.get(name)
        if model is None:
            return problem(404, "not-found", "no such model")
        index = model.version if number == "latest" else int(number)
        headers = {"Flsys-Version": str(index), "Flsys-Program": sha(model.program)}
        return self._file(request, model.versions[index], headers)

    def _file(self, request: httpx2.Request, body: bytes, headers: dict[str, str]) -> httpx2.Response:
        tag = f'"{sha(body)}"'
        headers = {"ETag": tag, "Flsys-Sha256": sha(body), **headers}
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range", ""))
        if match is None or request.headers.get("If-Range", tag) != tag:
            return httpx2.Response(200, content=body, headers=headers)
        start, end = int(match[1]), int(match[2] or len(body) - 1)
        if start >= len(body):
            return problem(416, "range-unsatisfiable", "past the end")
        headers["Content-Range"] = f"bytes {start}-{end}/{len(body)}"
        return httpx2.Response(206, content=body[start : end + 1], headers=headers)

    def _assignment(self, device: str, key: str, call: str, request: httpx2.Request) -> httpx2.Response:
        model = next((m for m in self.models.values() if key in m.assignments), None)
        if model is None or request.headers.get("Flsys-Assignment") != f"assignment-token-{key}":
            return problem(403, "forbidden", "not your assignment")
        entry = model.assignments[key]
        if entry.device != device:
            return problem(403, "forbidden", "another device's assignment")
        if call == "DELETE":
            GiveBackRequest.model_validate_json(request.content)
            if entry.state == "counted":
                return problem(409, "conflict", "counted already")
            entry.state = "given-back" if entry.state == "pending" else entry.state
            return httpx2.Response(204)
        if call == "PUT/evaluation":
            metrics = EvaluationRequest.model_validate_json(request.content)
            duplicate, entry.metrics = entry.metrics is not None, entry.metrics or metrics
            return answer(EvaluationReply(duplicate=duplicate))
        return self._take_in(model, entry, request.content)

    def _take_in(self, model: FakeModel, entry: SimpleNamespace, body: bytes) -> httpx2.Response:
        entry.bodies.append(body)
        if entry.state == "counted":
            return answer(UpdateReply(duplicate=True))
        if entry.state != "pending" or self.clock.now() >= entry.deadline:
            return problem(410, "late", "the round is over")
        entry.state = "counted"
        counted = [e for e in model.assignments.values() if e.state == "counted"]
        if len(counted) % model.cohort == 0:
            base = load(model.versions[-1])["parameters"]
            deltas = [decode_range(e.bodies[0], 0, base.size) for e in counted[-model.cohort :]]
            model.versions.append(encode_vector("parameters", base + np.mean(deltas, axis=0)))
            if model.controls:
                changes = [load(e.bodies[0])["control"] for e in counted[-model.cohort :]]
                control = load(model.controls[-1])["control"] + np.mean(changes, axis=0)
                model.controls.append(encode_vector("control", control))
            model.round += 1
        return answer(UpdateReply(duplicate=False))


def answer(message, status: int = 200) -> httpx2.Response:
    return httpx2.Response(status, content=message.model_dump_json(), headers={"Content-Type": "application/json"})


def problem(status: int, code: str, detail: str, headers: dict[str, str] | None = None) -> httpx2.Response:
    body = {"type": f"https://flsys.test/problems/{code}", "title": code, "status": status, "detail": detail}
    return httpx2.Response(
        status, content=json.dumps(body), headers={"Content-Type": "application/problem+json", **(headers or {})}
    )


def windows(count: int, seed: int = 0) -> list[tuple[np.ndarray, int, float]]:
    """Return (x, y, start_s) of `count` windows, 2.5 s apart, in minutes of one class each."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(count):
        y = (i // 24) % 3
        found.append((rng.normal(y, 0.3, SHAPE).astype(np.float32), y, START + 2.5 * i))
    return found


def config(**changes) -> PhoneConfig:
    given = {"url": URL, "app_key": APP_KEY, "models": ("har-wild",), "seed": 7, "habits": Habits(recheck_s=60.0)}
    return PhoneConfig(**{**given, **changes})


def open_phone(
    folder: Path,
    cloud: FakeCloud,
    *,
    conditions: ConditionsSource | None = None,
    load_program=SoftmaxProgram,
    **changes,
) -> Phone:
    shared = Shared(transport=cloud.transport, programs=Programs(load_program))
    return Phone(
        folder, config(**changes), conditions=conditions or FixedConditions(), clock=cloud.clock, shared=shared
    )


def fill(phone: Phone, model: str = "har-wild", count: int = 120, *, consent: bool = True, seed: int = 0) -> None:
    for x, y, start_s in windows(count, seed):
        phone.add_example(model, x, y, at_s=start_s)
    if consent:
        phone.consent(model, granted=True)


def live(phone: Phone, cloud: FakeCloud, seconds: float = 600.0, most: int = 200) -> list[str]:
    """Let virtual time pass while the phone takes part; return the kinds of its steps."""
    end, kinds = cloud.clock.now() + seconds, []
    while cloud.clock.now() < end and len(kinds) < most:
        outcome = phone.step()
        kinds.append(outcome.kind)
        cloud.clock.wait(min(max(0.0, outcome.wake_at - cloud.clock.now()), end - cloud.clock.now()))
    return kinds
