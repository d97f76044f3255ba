"""What third-party developers and operators call."""

from typing import Annotated, Literal

from fastapi import APIRouter, Path, Query, Request, Response, status

from flsys_ray.cloud.evaluations import MAX_COUNT
from flsys_ray.http.callers import AppCall, OperatorCall, TheCloud
from flsys_ray.http.device_api import VersionNumber, _binary
from flsys_ray.http.limits import PROGRAM_BYTES, read_body
from flsys_ray.wire.developer_schemas import (
    AppCreated,
    CreateApp,
    InferReply,
    InferRequest,
    ModelInfo,
    ModelsReply,
    OverviewReply,
    PlanRequest,
    PromoteRequest,
    RollbackRequest,
    RoundsReply,
    VersionEvaluation,
    VersionInfo,
    VersionsReply,
)
from flsys_ray.wire.schemas import PROGRAM, SAFETENSORS, Name
from flsys_ray.wire.shared_sets import MAX_SHARED_BYTES

router = APIRouter(prefix="/v1", tags=["developers"])
Since = Annotated[int, Query(ge=0, le=MAX_COUNT, description="only rounds from this number on")]
Archived = Annotated[bool, Query(description="archived models too")]


@router.post("/apps", status_code=status.HTTP_201_CREATED, dependencies=[OperatorCall], tags=["operators"])
async def create_app(cloud: TheCloud, body: CreateApp) -> AppCreated:
    """Register a third-party app and get its key. Asking again gives the same key; `quotas` replace those it had."""
    return cloud.create_app(body.name, body.quotas)


@router.get("/models")
async def list_models(cloud: TheCloud, app_id: AppCall, *, archived: Archived = False) -> ModelsReply:
    """List the app's models."""
    return await cloud.models(app_id, archived=archived)


@router.put("/models/{model}", responses={201: {"model": ModelInfo}})
async def put_model(cloud: TheCloud, app_id: AppCall, model: Name, body: PlanRequest, response: Response) -> ModelInfo:
    """Create a model with its training plan, or give it a new plan from the next round on."""
    info, created = await cloud.put_model(app_id, model, body.plan)
    response.status_code = status.HTTP_201_CREATED if created else status.HTTP_200_OK
    return info


@router.put("/models/{model}/program", openapi_extra={"requestBody": {"required": True, **_binary(PROGRAM)}})
async def put_program(cloud: TheCloud, app_id: AppCall, request: Request, model: Name) -> ModelInfo:
    """Give a model its device program, as `flsys_ray.compile` made it."""
    cloud.find(app_id, model)
    return await cloud.put_program(app_id, model, await read_body(request, PROGRAM_BYTES))


@router.put("/models/{model}/augmentation", openapi_extra={"requestBody": {"required": True, **_binary(SAFETENSORS)}})
async def put_shared_set(cloud: TheCloud, app_id: AppCall, request: Request, model: Name) -> ModelInfo:
    """Give a model the shared set of which phones mix in the plan's `augmentation.share`, from the next round on.

    Tensors `x` [N, ...] as the program takes them and `y` int32 [N], as many examples of each class. Repeatable.
    """
    cloud.find(app_id, model)
    return await cloud.put_shared(app_id, model, await read_body(request, MAX_SHARED_BYTES))


@router.post("/models/{model}/infer")
async def infer(cloud: TheCloud, app_id: AppCall, request: Request, model: Name, body: InferRequest) -> InferReply:
    """Run a version on examples."""
    reply: InferReply = await request.app.state.inference.infer(app_id, model, body)
    return reply


@router.post("/models/{model}/promote")
async def promote(cloud: TheCloud, app_id: AppCall, model: Name, body: PromoteRequest) -> ModelInfo:
    """Pin the version that inference uses, in the cloud and on phones; null: the newest again."""
    return await cloud.promote(app_id, model, body.version)


@router.post("/models/{model}/rollback")
async def rollback(cloud: TheCloud, app_id: AppCall, model: Name, body: RollbackRequest) -> ModelInfo:
    """Give the open round up, and make the next version of an older one's parameters: training goes on from there."""
    return await cloud.rollback(app_id, model, body.version)


@router.post("/models/{model}/{action}")
async def act(
    cloud: TheCloud,
    app_id: AppCall,
    model: Name,
    action: Annotated[Literal["start", "pause", "resume", "stop", "archive"], Path()],
) -> ModelInfo:
    """Start (which opens version 0), pause, resume or stop a model, or archive one that does not train."""
    return await cloud.act(app_id, model, action)


@router.get("/models/{model}")
async def get_model(cloud: TheCloud, app_id: AppCall, model: Name) -> ModelInfo:
    """Look at a model: its state, newest version and open round."""
    return await cloud.info(app_id, model)


@router.get("/models/{model}/rounds")
async def get_rounds(cloud: TheCloud, app_id: AppCall, model: Name, since: Since = 0) -> RoundsReply:
    """List the rounds that are over."""
    return await cloud.rounds(app_id, model, since)


@router.get("/models/{model}/versions")
async def get_versions(cloud: TheCloud, app_id: AppCall, model: Name) -> VersionsReply:
    """List a model's versions."""
    return cloud.versions(app_id, model)


@router.get("/models/{model}/versions/{number}/manifest")
async def get_manifest(
    cloud: TheCloud, app_id: AppCall, model: Name, number: Annotated[int, Path(ge=0)]
) -> VersionInfo:
    """Look at what made a version: its round, plan, program and every update in it."""
    return await cloud.version(app_id, model, number)


@router.get("/models/{model}/versions/{number}/evaluation")
async def get_evaluation(cloud: TheCloud, app_id: AppCall, model: Name, number: VersionNumber) -> VersionEvaluation:
    """Look at what phones with an evaluation assignment found about a version."""
    return await cloud.version_evaluation(app_id, model, None if number == "latest" else int(number))


@router.get("/overview", dependencies=[OperatorCall], tags=["operators"])
async def overview(cloud: TheCloud) -> OverviewReply:
    """Look at the models of all apps."""
    return await cloud.overview()


@router.get("/overview/{app}/{model}/rounds", dependencies=[OperatorCall], tags=["operators"])
async def overview_rounds(cloud: TheCloud, app: Name, model: Name, since: Since = 0) -> RoundsReply:
    """List the rounds of any app's model that are over."""
    return await cloud.rounds(app, model, since)
