"""The HTTP interface: routes, and every error as the same JSON. Knows an Engine, not Ray, so it is tested in one process."""

from collections.abc import Callable, Sequence
from typing import Annotated, Protocol

from fastapi import APIRouter, Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse

from seminar.errors import SeminarError, UnknownUser
from seminar.history.store import HistoryFull
from serve import api
from serve.engine import Engine
from serve.problems import Refused, problems_of

ERRORS = {
    404: {"model": api.ErrorResponse, "description": "No such user."},
    413: {"model": api.ErrorResponse, "description": "More targets or events than the service takes at once."},
    422: {"model": api.ErrorResponse, "description": "A malformed request, or an item or query id that the bundle lacks."},
    503: {"model": api.ErrorResponse, "description": "Overloaded, or no bundle yet."},
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
        summary="Two-stage scoring of search and recommendation targets against lifelong histories.",
        responses={status: ERRORS[status] for status in (422, 503)},
    )
    app.include_router(_routes(service))
    app.add_exception_handler(RequestValidationError, _on_malformed)
    app.add_exception_handler(SeminarError, _on_refused)
    return app


def _routes(service: Callable[[], Service]) -> APIRouter:
    router = APIRouter(prefix="/v1")
    # An annotation with a name of this function's own: FastAPI resolves it because it is no string.
    Held = Annotated[Service, Depends(service)]

    @router.post("/score", responses={413: ERRORS[413]})
    async def score(request: api.ScoreRequest, held: Held) -> api.ScoreResponse:
        """Probability of each target for this user, by the task of the request."""
        return await held.engine.score(request)

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
    return _answer(422, problems_of(error.errors()))


async def _on_refused(_: Request, error: Exception) -> Response:
    if isinstance(error, Refused):
        return _answer(error.status, error.problems)
    status = 404 if isinstance(error, UnknownUser) else 507 if isinstance(error, HistoryFull) else 422
    return _answer(status, [_problem(str(error))])


def _problem(sentence: str) -> api.Problem:
    """A sentence of `errors.explain`, taken apart."""
    what, _, rest = sentence.partition(": got ")
    got, _, rest = rest.partition(", expected ")
    expected, _, fix = rest.partition("; ")
    return api.Problem(what=what, got=got, expected=expected, fix=fix)


def _answer(status: int, problems: Sequence[api.Problem]) -> JSONResponse:
    headers = {"Retry-After": "1"} if status == 503 else None
    return JSONResponse(api.ErrorResponse(errors=list(problems)).model_dump(), status, headers)
