"""Everything that the cloud does for phones, developers and operators, in their words and without HTTP.

`Cloud` keeps no state of its own beside caches of objects that never change: any number of replicas may stand on one
store, and any of them may die at any time.
"""

import asyncio
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import TypeVar

from flsys_ray.cloud import places
from flsys_ray.cloud.access import Access
from flsys_ray.cloud.apps import AppRecords
from flsys_ray.cloud.changes import check_program, program_of
from flsys_ray.cloud.checkins import CheckIns, Terms
from flsys_ray.cloud.creation import create_model
from flsys_ray.cloud.credentials import Credentials, Device, Ticket
from flsys_ray.cloud.enrolment import Enrolment
from flsys_ray.cloud.evaluating import version_metrics
from flsys_ray.cloud.evaluations import check_evaluation, combined
from flsys_ray.cloud.hosts import Action, Hosts
from flsys_ray.cloud.meter import CHECK_IN_S, NO_METER, Meter, Stages, record_check_in
from flsys_ray.cloud.offers import CheckInAnswer, Offer
from flsys_ray.cloud.quotas import AppQuotas
from flsys_ray.cloud.staging import Staging
from flsys_ray.cloud.standing import Standings
from flsys_ray.cloud.updates import Updates
from flsys_ray.cloud.versions import load_plan, load_program, sha256
from flsys_ray.compression.float32 import FLOAT32
from flsys_ray.core.ids import is_evaluation, model_id, model_name
from flsys_ray.core.plan import TrainingPlan
from flsys_ray.core.types import Rejected
from flsys_ray.errors import Conflict, Late, Missing, NotFound, TryLater
from flsys_ray.programs.manifest import Manifest, read_manifest
from flsys_ray.storage.base import ObjectStore, check_key, put_same
from flsys_ray.wire.developer_schemas import (
    AppCreated,
    ModelInfo,
    ModelsReply,
    OverviewReply,
    Quotas,
    RoundsReply,
    VersionEvaluation,
    VersionInfo,
    VersionsReply,
)
from flsys_ray.wire.schemas import (
    AssignmentMessage,
    AugmentationMessage,
    CheckInReply,
    CheckInRequest,
    ControlLink,
    EvaluationReply,
    EvaluationRequest,
    HalfLink,
    ProgramLink,
    Rejection,
    SharedSetLink,
    StepLink,
    UploadLink,
    WeightsLink,
)
from flsys_ray.wire.shared_sets import InputForm, decode_shared_set
from flsys_ray.wire.tensors import max_update_bytes

T = TypeVar("T")
MAX_VERSION = 10**9 - 1
AFTER_WORK_S = 1.0
UNKNOWN_MODEL_S = 60.0


class Cloud:
    """The use cases.

    `hosts` answers for models; `clock` gives UTC seconds; `terms` share devices between models; `meter` takes what is
    counted.
    """

    def __init__(
        self,
        store: ObjectStore,
        hosts: Hosts,
        clock: Callable[[], float],
        terms: Terms | None = None,
        *,
        meter: Meter = NO_METER,
    ) -> None:
        self.store = store
        self.hosts = hosts
        self.clock = clock
        self.meter = meter
        self.credentials = Credentials(store, clock)
        self.enrolment = Enrolment(store, self.credentials, clock)
        self.access = Access(store, self.credentials, clock)
        self.standings = Standings(store, clock)
        self.quotas = AppQuotas(AppRecords(store), self.standings, self._ids_of, clock)
        self.checkins = CheckIns(hosts, self.standings, clock, terms or Terms())
        self.updates = Updates(store, hosts, clock, self.manifest, self.plan, meter)
        self.staging = Staging(store, clock, self.updates)
        self._listed = lru_cache(maxsize=10_000)(self._look_up)
        self._manifest = lru_cache(maxsize=256)(self._read_manifest)
        self._plan = lru_cache(maxsize=256)(lambda model, digest: load_plan(store, model, digest))

    # Phones ------------------------------------------------------------------------------------------------------

    async def check_in(self, device: Device, request: CheckInRequest) -> CheckInReply:
        """Give a device what work there is, and say when to come back. A model that is down stops no other.

        Raises `QuotaExceeded`.
        """
        stages = Stages(self.meter, CHECK_IN_S)
        await self.quotas.ready(device.app_id)
        self.quotas.admit_check_in(device.app_id)
        ids = [model_id(device.app_id, candidacy.model) for candidacy in request.models]
        found = await self.checkins.ask(device, ids)
        answers = {model_name(model): answer for model, answer in found.items()}
        assignments, rejections, waits = [], [], []
        for name, answer in answers.items():
            if answer is None:
                rejections.append(Rejection(model=name, reason="unknown-model"))
            elif isinstance(answer, TryLater):
                rejections.append(Rejection(model=name, reason="unavailable"))
                waits.append(answer.retry_after_s)
            elif isinstance(answer.outcome, Offer):
                assignments.append(self._message(answer.outcome))
            else:
                rejections.append(Rejection(model=name, reason=answer.outcome.reason))
                waits.append(answer.outcome.retry_after_s)
        wait_s = min(waits, default=AFTER_WORK_S if assignments else UNKNOWN_MODEL_S)
        reply = CheckInReply(
            assignments=assignments,
            rejections=rejections,
            eligibility={n: answer.eligibility for n, answer in answers.items() if isinstance(answer, CheckInAnswer)},
            retry_after_s=wait_s if assignments else self.checkins.come_back_in_s(device, wait_s),
        )
        record_check_in(self.meter, device.app_id, reply)
        stages.done()
        return reply

    async def give_back(self, ticket: Ticket) -> None:
        """Take an assignment back. Raises `Conflict` if its update is counted; a round that is over needs nothing."""
        outcome = await self.hosts.model(ticket.assignment.model).give_back(ticket.assignment)
        if isinstance(outcome, Rejected) and outcome.reason == "already-contributed":
            raise Conflict(f"assignment {ticket.assignment.assignment_id}: its update is counted already")

    async def evaluate(self, ticket: Ticket, metrics: EvaluationRequest) -> EvaluationReply:
        """Take a federated evaluation. Raises `InvalidInput`, `Late`."""
        check_evaluation(metrics, self.manifest(ticket.assignment.model, ticket.program_sha256).classes)
        outcome = await self.hosts.model(ticket.assignment.model).evaluate(ticket.assignment, metrics)
        if isinstance(outcome, Rejected):
            raise Late(f"assignment {ticket.assignment.assignment_id}: {outcome.reason}")
        return EvaluationReply(duplicate=outcome.duplicate)

    # Developers --------------------------------------------------------------------------------------------------

    def create_app(self, name: str, quotas: Quotas | None = None) -> AppCreated:
        """Register an app, or find it registered; quotas replace those that it had."""
        kept = self.quotas.register(name, quotas)
        return self.access.created(kept)

    async def put_model(self, app_id: str, model: str, plan: TrainingPlan) -> tuple[ModelInfo, bool]:
        """Create a model, or give it a new plan. Returns it, and whether it is new.

        Raises `Conflict`, `QuotaExceeded`.
        """
        found = model_id(app_id, model)
        if not self._is_there(found):
            await asyncio.to_thread(self.quotas.admit_model, app_id)
            put_same(self.store, check_key(places.listed(found)), b"")
        created = create_model(self.store, found, app_id, plan, self.clock())
        handle = self.hosts.model(found)
        if not created:
            await handle.put_plan(plan)
        self.standings.forget(found)
        return await handle.info(), created

    async def put_program(self, app_id: str, model: str, program: bytes) -> ModelInfo:
        """Give a model its device program. Raises `ProgramInvalid`, `Conflict`, `QuotaExceeded`."""
        found = self.find(app_id, model)
        await asyncio.to_thread(_check_program, program)
        digest = sha256(program)
        self.standings.forget(found)
        head = self.standings.read(found).head
        check_program(found, head, digest)
        if head.program_sha256 != digest:
            await asyncio.to_thread(self.quotas.admit_bytes, app_id, len(program))
        put_same(self.store, places.program(found, digest), program)
        handle = self.hosts.model(found)
        await handle.put_program(digest)
        self.standings.forget(found)
        return await handle.info()

    async def put_shared(self, app_id: str, model: str, body: bytes) -> ModelInfo:
        """Give a model the set of which phones mix in a share. Raises `DataInvalid`, `Conflict`, `QuotaExceeded`."""
        found = self.find(app_id, model)
        self.standings.forget(found)
        head = (await asyncio.to_thread(self.standings.read, found)).head
        program_sha256 = program_of(found, head)
        fits = self.manifest(found, program_sha256)
        await asyncio.to_thread(decode_shared_set, body, InputForm(fits.input_shape, fits.input_dtype, fits.classes))
        digest = sha256(body)
        if head.shared_sha256 != digest:
            await asyncio.to_thread(self.quotas.admit_bytes, app_id, len(body))
        await asyncio.to_thread(put_same, self.store, places.shared(found, digest), body)
        handle = self.hosts.model(found)
        await handle.put_shared(digest, program_sha256)
        self.standings.forget(found)
        return await handle.info()

    async def act(self, app_id: str, model: str, action: Action) -> ModelInfo:
        """Start, pause, resume, stop or archive a model."""
        found = self.find(app_id, model)
        handle = self.hosts.model(found)
        await handle.act(action)
        self.standings.forget(found)
        return await handle.info()

    async def info(self, app_id: str, model: str) -> ModelInfo:
        """Return a model as it is now."""
        return await self.hosts.model(self.find(app_id, model)).info()

    async def promote(self, app_id: str, model: str, version: int | None) -> ModelInfo:
        """Use a version for inference; None: always the newest. Raises `NotFound`, `Conflict`."""
        handle = self.hosts.model(self.find(app_id, model))
        await handle.promote(version)
        return await handle.info()

    async def rollback(self, app_id: str, model: str, version: int) -> ModelInfo:
        """Have a model go on from an older version. Raises `NotFound`, `Conflict`."""
        found = self.find(app_id, model)
        handle = self.hosts.model(found)
        await handle.rollback(version)
        self.standings.forget(found)
        return await handle.info()

    async def models(self, app_id: str, *, archived: bool = False) -> ModelsReply:
        """Return the app's models, by name; archived ones only if they are asked for."""
        found = await self._infos(self._ids_of(app_id))
        return ModelsReply(models=[info for info in found if archived or info.state != "archived"])

    async def rounds(self, app_id: str, model: str, since: int = 0) -> RoundsReply:
        """Return a model's rounds that are over, from number `since` on."""
        return RoundsReply(model=model, rounds=await self.hosts.model(self.find(app_id, model)).rounds(since))

    async def overview(self) -> OverviewReply:
        """Return every app's models, by app and name: for the operator."""
        return OverviewReply(models=await self._infos(self._ids(places.CATALOG)))

    def versions(self, app_id: str, model: str) -> VersionsReply:
        """Return the numbers of a model's versions."""
        keys = self.store.list(places.versions(self.find(app_id, model)))
        return VersionsReply(model=model, versions=[int(key.rpartition("/")[2].removesuffix(".json")) for key in keys])

    # Objects that never change -----------------------------------------------------------------------------------

    async def version(self, app_id: str, model: str, number: int | None) -> VersionInfo:
        """Return a version's manifest; None asks for the one that serves. Raises `NotFound`."""
        found = self.find(app_id, model)
        if number is None:
            number = (await self.hosts.model(found).info()).serving
        if number is None:
            raise NotFound(f"model {model!r} has not started: it has no version yet")
        if number > MAX_VERSION:
            raise NotFound(f"model {model!r} has no version of that number")
        try:
            return VersionInfo.model_validate_json(self.store.get(places.version(found, number)).body)
        except Missing:
            raise NotFound(f"model {model!r} has no version {number}") from None

    async def version_evaluation(self, app_id: str, model: str, number: int | None) -> VersionEvaluation:
        """Return what phones found about a version; None: the one that serves. Raises `NotFound`."""
        info = await self.version(app_id, model, number)
        found = self.find(app_id, model)
        assigned = await asyncio.to_thread(version_metrics, self.store, found, info.version)
        rounds = await self.hosts.model(found).rounds(info.version)  # each version ends a round: none of it is before
        cohort = combined(*(closed.evaluation for closed in rounds if closed.version == info.version))
        return VersionEvaluation(
            model=model,
            version=info.version,
            classes=list(self.manifest(found, info.program_sha256).classes),
            metrics=combined(cohort, assigned),
            cohort=cohort,
            assigned=assigned,
        )

    def manifest(self, model: str, program_sha256: str) -> Manifest:
        """Return the manifest of a stored program of the model of this id."""
        return self._manifest(model, program_sha256)

    def plan(self, model: str, plan_sha256: str) -> TrainingPlan:
        """Return a stored plan of the model of this id."""
        return self._plan(model, plan_sha256)

    def find(self, app_id: str, model: str) -> str:
        """Return the id of an app's model. Raises `NotFound`: what other apps have is never looked at."""
        found = model_id(app_id, model)
        if not self._is_there(found):
            raise NotFound(f"model {model!r} does not exist")
        return found

    # Inside ------------------------------------------------------------------------------------------------------

    def _ids(self, prefix: str) -> list[str]:
        return [places.model_of(key) for key in self.store.list(prefix)]

    def _ids_of(self, app_id: str) -> list[str]:
        return self._ids(places.catalog(app_id))

    async def _infos(self, ids: list[str]) -> list[ModelInfo]:
        found = await asyncio.gather(*(_if_there(self.hosts.model(model).info()) for model in ids))
        return [info for info in found if info is not None]

    def _message(self, offer: Offer) -> AssignmentMessage:
        work, control = offer.assignment, offer.control_sha256
        base = f"/v1/models/{model_name(work.model)}"
        return AssignmentMessage(
            assignment_id=work.assignment_id,
            token=self.credentials.assignment_token(Ticket(work, offer.program_sha256, offer.plan_sha256)),
            kind="evaluate" if is_evaluation(work.assignment_id) else "train",
            model=model_name(work.model),
            round=work.round,
            version=work.version,
            program=ProgramLink(url=f"{base}/program/{offer.program_sha256}", sha256=offer.program_sha256),
            weights=_weights(offer, base),
            control=ControlLink(url=f"{base}/control/{control}", sha256=control) if control is not None else None,
            augmentation=_augmentation(offer),
            label_counts=offer.label_counts,
            local=offer.local,
            upload=_upload(offer, staged=self.staging.open),
            deadline_s=max(0.0, work.deadline - self.clock()),
            serving=offer.serving,
        )

    def _is_there(self, model: str) -> bool:
        try:
            return self._listed(model)
        except Missing:
            return False

    def _look_up(self, model: str) -> bool:
        self.store.get(check_key(places.listed(model)), 0, 0)
        return True

    def _read_manifest(self, model: str, program_sha256: str) -> Manifest:
        return read_manifest(load_program(self.store, model, program_sha256))


def _weights(offer: Offer, base: str) -> WeightsLink:
    """Return where the base version is, or its public form, and in which ways that can be had."""
    public = offer.public
    if public is None:
        return WeightsLink(url=f"{base}/versions/{offer.assignment.version}", sha256=offer.weights_sha256)
    steps = [
        StepLink(before=one.before, url=f"{base}/public/step/{one.sha256}", sha256=one.sha256, encoding=one.encoding)
        for one in public.steps
    ]
    half = HalfLink(url=f"{base}/public/half/{public.half_sha256}", sha256=public.half_sha256)
    return WeightsLink(url=f"{base}/public/full/{public.sha256}", sha256=public.sha256, half=half, steps=steps)


def _augmentation(offer: Offer) -> AugmentationMessage | None:
    """Return what a device does to its examples, None if nothing."""
    plan, digest = offer.augmentation, offer.shared_sha256
    if plan is None or not (plan.transforms or digest):
        return None
    url = f"/v1/models/{model_name(offer.assignment.model)}/augmentation/{digest}"
    return AugmentationMessage(
        transforms=[transform.model_dump(mode="json") for transform in plan.transforms],
        shared=SharedSetLink(url=url, sha256=digest, share=plan.share, seed=offer.seed) if digest else None,
    )


def _upload(offer: Offer, *, staged: bool) -> UploadLink:
    """Return where an update goes, and in which encodings: the plan's own, or float32."""
    wanted, control = offer.compression, offer.control_sha256 is not None
    base = f"/v1/assignments/{offer.assignment.assignment_id}"
    return UploadLink(
        url=f"{base}/update",
        staged=f"{base}/staged" if staged else None,
        encodings=list(dict.fromkeys((wanted.name, FLOAT32.name))),
        compression=None if wanted == FLOAT32 else wanted.model_dump(mode="json"),
        max_bytes=max_update_bytes(offer.parameters, control=control, encoding=wanted),
    )


async def _if_there(call: Awaitable[T]) -> T | None:
    """Return what a call of a model says, or None for one whose name is taken while its log is not written yet."""
    try:
        return await call
    except NotFound:
        return None


def _check_program(program: bytes) -> None:
    from flsys_ray.programs.flatbuffer import check

    check(program)
