"""Every error as the same JSON: which status, which problems, in at most MAX_PROBLEMS pieces."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from seminar.client import api
from seminar.errors import ArtifactError, SeminarError, UnknownUser
from seminar.history.store import HistoryFull, StoreUnavailable
from serve.problems import Refused, problems_of
from serve.watched import SCOPE_KEY

MAX_PROBLEMS = 10
"""Problems told in one answer; the rest are counted."""
MAX_PATH = 200
"""Characters of a client's path that an answer repeats."""

ERRORS: dict[int | str, dict[str, Any]] = {
    401: {"model": api.ErrorResponse, "description": "No bearer token, or another one."},
    404: {"model": api.ErrorResponse, "description": "No such user."},
    409: {
        "model": api.ErrorResponse,
        "description": "The bundle has no item index or no contents of items, or there is no Proposer.",
    },
    413: {"model": api.ErrorResponse, "description": "More targets, candidates, events or bytes than the service takes at once."},
    415: {"model": api.ErrorResponse, "description": "The content-type is not application/json."},
    422: {"model": api.ErrorResponse, "description": "A malformed request, or an item or query id that the bundle lacks."},
    503: {"model": api.ErrorResponse, "description": "Overloaded, no bundle yet or a damaged one, or the history store is away."},
    500: {"model": api.ErrorResponse, "description": "A bug in the service; its log says more."},
    507: {"model": api.ErrorResponse, "description": "The history store is full; nothing was stored."},
}
_STATUS = {UnknownUser: 404, HistoryFull: 507, ArtifactError: 503, StoreUnavailable: 503}


@dataclass(frozen=True)
class Refusal:
    """What a client is told instead of an answer."""

    status: int
    problems: list[api.Problem]
    omitted: int = 0

    def response(self) -> api.ErrorResponse:
        return api.ErrorResponse(errors=self.problems, omitted=self.omitted)


def refusal_of(error: SeminarError) -> Refusal:
    """How an error of ours is told."""
    if isinstance(error, Refused):
        return Refusal(error.status, error.problems[:MAX_PROBLEMS], max(0, len(error.problems) - MAX_PROBLEMS))
    status = next((status for kind, status in _STATUS.items() if isinstance(error, kind)), 422)
    return Refusal(status, [_problem(str(error))])


def refusal_of_body(errors: Sequence[Mapping[str, Any]]) -> Refusal:
    """How pydantic's errors are told."""
    return Refusal(422, problems_of(errors[:MAX_PROBLEMS]), max(0, len(errors) - MAX_PROBLEMS))


def error_answer(refusal: Refusal, headers: Mapping[str, str] | None = None) -> JSONResponse:
    retry = {"Retry-After": "1"} if refusal.status == 503 else {}
    return JSONResponse(refusal.response().model_dump(), refusal.status, {**retry, **(headers or {})})


def add_handlers(app: FastAPI) -> None:
    """Have the application answer every error in this form."""
    app.add_exception_handler(RequestValidationError, _on_malformed)
    app.add_exception_handler(SeminarError, _on_refused)
    app.add_exception_handler(HTTPException, _on_no_route)
    app.add_exception_handler(Exception, _on_bug)


async def _on_malformed(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return error_answer(refusal_of_body(error.errors()))


async def _on_refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, SeminarError)
    return error_answer(refusal_of(error))


async def _on_no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    got = f"{request.method} {request.url.path[:MAX_PATH]}: {error.detail}"
    problem = api.Problem(what="request", got=got, expected="a route and method of /openapi.json", fix="see /docs")
    return error_answer(Refusal(error.status_code, [problem]), error.headers)


async def _on_bug(request: Request, error: Exception) -> Response:
    # Starlette raises the error again behind this answer, so the log has its traceback; the client gets only its name.
    what, got = f"{request.method} {request.url.path[:MAX_PATH]}", type(error).__name__
    problem = api.Problem(what=what, got=got, expected="an answer", fix="report it with the service's log")
    return error_answer(Refusal(500, [problem]), {"X-Request-Id": request.scope.get(SCOPE_KEY, "")})


def _problem(sentence: str) -> api.Problem:
    """A sentence of `errors.explain`, taken apart."""
    what, _, rest = sentence.partition(": got ")
    got, _, rest = rest.partition(", expected ")
    expected, _, fix = rest.partition("; ")
    return api.Problem(what=what, got=got, expected=expected, fix=fix)
