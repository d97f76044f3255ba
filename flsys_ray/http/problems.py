"""Errors as `application/problem+json` (RFC 9457): one table, from the error tree to the answer."""

import logging
import math

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from flsys_ray.errors import (
    FlsysError,
    InvalidInput,
    NotFound,
    PlanInvalid,
    StoreRefusal,
    TooLarge,
    TryLater,
    Unauthenticated,
)
from flsys_ray.wire.schemas import PROBLEM, Problem

TYPE_BASE = "https://flsys-ray.dev/problems/"
_log = logging.getLogger("flsys_ray.http")
_PLAIN = {404: NotFound, 413: TooLarge, 422: InvalidInput}


def install(app: FastAPI) -> None:
    """Have every error of an app answered as a problem."""
    app.add_exception_handler(FlsysError, _flsys_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _bug)


async def _flsys_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, FlsysError)
    if isinstance(error, StoreRefusal) or type(error) is FlsysError:
        return await _bug(request, error)
    headers, retry_after_s = {}, None
    if isinstance(error, TryLater):
        retry_after_s = error.retry_after_s
        headers["Retry-After"] = str(math.ceil(retry_after_s))
    if isinstance(error, Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"
    fields = list(error.fields) if isinstance(error, PlanInvalid) else None
    return _answer(request, type(error), error.message, fields=fields, retry_after_s=retry_after_s, headers=headers)


async def _validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    places = [".".join(str(part) for part in problem["loc"]) for problem in error.errors()]
    detail = "; ".join(
        f"{place}: {problem['msg'].removeprefix('Value error, ')}"
        for place, problem in zip(places, error.errors(), strict=True)
    )
    in_plan = bool(places) and all(place.startswith("body.plan") for place in places)
    return _answer(request, PlanInvalid if in_plan else InvalidInput, detail, fields=places)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    kind = _PLAIN.get(error.status_code)
    if kind is not None:
        return _answer(request, kind, str(error.detail))
    problem = Problem(type="about:blank", title=str(error.detail), status=error.status_code, detail=str(error.detail))
    return _problem(problem, dict(error.headers or {}))


async def _bug(request: Request, error: Exception) -> Response:
    _log.error("unexpected error in %s %s", request.method, request.url.path, exc_info=error)
    return _answer(request, FlsysError, "The request could not be served. The operator's log says why.")


def _answer(
    request: Request,
    kind: type[FlsysError],
    detail: str,
    *,
    fields: list[str] | None = None,
    retry_after_s: float | None = None,
    headers: dict[str, str] | None = None,
) -> Response:
    problem = Problem(
        type=TYPE_BASE + kind.code,
        title=kind.title,
        status=kind.status,
        detail=detail,
        instance=request.url.path,
        fields=fields,
        retry_after_s=retry_after_s,
    )
    return _problem(problem, headers or {})


def _problem(problem: Problem, headers: dict[str, str]) -> Response:
    body = problem.model_dump(exclude_none=True)
    return JSONResponse(body, status_code=problem.status, media_type=PROBLEM, headers=headers)
