"""The HTTP interface: routes, and every error as the same JSON. Knows an Engine, not Ray, so it is tested in one process."""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Protocol

from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from seminar.client import api
from seminar.errors import ArtifactError, SeminarError, UnknownUser
from seminar.history.store import HistoryFull
from serve.engine import Engine
from serve.problems import Refused, problems_of

MAX_PROBLEMS = 10
"""Problems told in one answer; the rest are counted."""
MAX_BODY_BYTES = 1 << 24
"""16 MiB, the largest body that is read: 10,000 events of 1.6 kB each."""
MAX_PATH = 200
"""Characters of a client's path that an answer repeats."""

ERRORS = {
    404: {"model": api.ErrorResponse, "description": "No such user."},
    409: {"model": api.ErrorResponse, "description": "No item index in the bundle (`seminar build-index`), or no Proposer."},
    413: {"model": api.ErrorResponse, "description": "More targets, candidates, events or bytes than the service takes at once."},
    422: {"model": api.ErrorResponse, "description": "A malformed request, or an item or query id that the bundle lacks."},
    503: {"model": api.ErrorResponse, "description": "Overloaded, no bundle yet, or one that is damaged."},
    500: {"model": api.ErrorResponse, "description": "A bug in the service; its log says more."},
    507: {"model": api.ErrorResponse, "description": "The history store is full; nothing was stored."},
}


class Service(Protocol):
    """What the routes need of a replica."""

    engine: Engine

    async def replicas(self) -> Sequence[api.ReplicaState]:
        """State of all running replicas."""
        ...


def create_app(service: Callable[[], Service]) -> FastAPI:
    """The FastAPI application over whichever service this process holds."""
    app = FastAPI(
        title="SEMINAR",
        version="1",
        summary="Search and recommendation over lifelong histories: candidates, and two-stage scoring of targets.",
        responses={status: ERRORS[status] for status in (422, 500, 503)},
    )
    app.include_router(_routes(service))
    app.add_exception_handler(RequestValidationError, _on_malformed)
    app.add_exception_handler(SeminarError, _on_refused)
    app.add_exception_handler(HTTPException, _on_no_route)
    app.add_exception_handler(Exception, _on_bug)
    app.add_middleware(BodyLimit)
    return app


def _routes(service: Callable[[], Service]) -> APIRouter:
    router = APIRouter(prefix="/v1")
    # An annotation with a name of this function's own: FastAPI resolves it because it is no string.
    Held = Annotated[Service, Depends(service)]

    @router.post("/score", responses={413: ERRORS[413]})
    async def score(request: api.ScoreRequest, held: Held) -> api.ScoreResponse:
        """Probability of each target for this user, by the task of the request."""
        return await held.engine.score(request)

    @router.post("/recommend", responses={409: ERRORS[409], 413: ERRORS[413]})
    async def recommend(request: api.RecommendRequest, held: Held) -> api.RecommendResponse:
        """Items out of the whole catalogue for this user, found, ranked by the task of the request, and why."""
        return await held.engine.recommend(request)

    @router.post("/events", responses={413: ERRORS[413], 507: ERRORS[507]})
    async def append(request: api.EventsRequest, held: Held) -> api.EventsResponse:
        """Append behaviours. They are durable when this answers, and every later request sees them."""
        return await held.engine.append(request)

    @router.get("/users/{user_id:path}/history", responses={404: ERRORS[404]})
    async def history(user_id: str, held: Held, limit: Annotated[int, Query(ge=1, le=10_000)] = 100) -> api.HistoryResponse:
        """A user's newest behaviours, newest last."""
        return await held.engine.history(user_id, limit)

    @router.get("/bundle")
    async def bundle(held: Held) -> api.BundleResponse:
        """Versions of everything that makes a score, on every replica."""
        return held.engine.describe(await held.replicas())

    @router.get("/health/live")
    async def live() -> api.Health:
        """The process answers."""
        return api.Health(status="alive")

    @router.get("/health/ready")
    async def ready(held: Held) -> api.Health:
        """A bundle is loaded; 503 before that."""
        return api.Health(status="ready", bundle_version=held.engine.live.bundle.version)

    return router


async def _on_malformed(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    errors = error.errors()
    return _answer(422, problems_of(errors[:MAX_PROBLEMS]), omitted=max(0, len(errors) - MAX_PROBLEMS))


async def _on_refused(_: Request, error: Exception) -> Response:
    if isinstance(error, Refused):
        return _answer(error.status, error.problems[:MAX_PROBLEMS], omitted=max(0, len(error.problems) - MAX_PROBLEMS))
    status = next((status for kind, status in _STATUS.items() if isinstance(error, kind)), 422)
    return _answer(status, [_problem(str(error))])


_STATUS = {UnknownUser: 404, HistoryFull: 507, ArtifactError: 503}


async def _on_no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    got = f"{request.method} {request.url.path[:MAX_PATH]}: {error.detail}"
    problem = api.Problem(what="request", got=got, expected="a route and method of /openapi.json", fix="see /docs")
    return _answer(error.status_code, [problem], headers=error.headers)


async def _on_bug(request: Request, error: Exception) -> Response:
    # Starlette raises the error again behind this answer, so the log has its traceback; the client gets only its name.
    got, fix = type(error).__name__, "report it with the service's log"
    return _answer(
        500, [api.Problem(what=f"{request.method} {request.url.path[:MAX_PATH]}", got=got, expected="an answer", fix=fix)]
    )


class BodyLimit:
    """Refuses a body whose Content-Length is over MAX_BODY_BYTES before a byte of it is read."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        length = dict(scope.get("headers", ())).get(b"content-length", b"0")
        if length.isdigit() and int(length) > MAX_BODY_BYTES:
            got, expected = f"{int(length)} bytes", f"at most {MAX_BODY_BYTES}"
            problem = api.Problem(what="body", got=got, expected=expected, fix="split it over several requests")
            await _answer(413, [problem])(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def _problem(sentence: str) -> api.Problem:
    """A sentence of `errors.explain`, taken apart."""
    what, _, rest = sentence.partition(": got ")
    got, _, rest = rest.partition(", expected ")
    expected, _, fix = rest.partition("; ")
    return api.Problem(what=what, got=got, expected=expected, fix=fix)


def _answer(
    status: int, problems: Sequence[api.Problem], *, omitted: int = 0, headers: Mapping[str, str] | None = None
) -> JSONResponse:
    retry = {"Retry-After": "1"} if status == 503 else {}
    body = api.ErrorResponse(errors=list(problems), omitted=omitted).model_dump()
    return JSONResponse(body, status, {**retry, **(headers or {})})
