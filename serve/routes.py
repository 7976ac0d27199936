"""The HTTP interface: routes over an Engine. Knows no Ray, so it is tested in one process."""

from collections.abc import Callable
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Query
from fastapi.security import HTTPBearer

from seminar.client import api
from serve.batch import BatchRequest
from serve.direct import direct_to
from serve.explorer import Site, explorer_routes
from serve.guard import TokenGuard
from serve.inference import inference_routes
from serve.refusals import ERRORS, add_handlers
from serve.service import Service
from serve.watched import Watched


def create_app(service: Callable[[], Service]) -> FastAPI:
    """The FastAPI application over whichever service this process holds."""
    app = FastAPI(
        title="SEMINAR",
        version="1",
        summary="Search and recommendation over lifelong histories: candidates, and two-stage scoring of targets.",
        responses={500: ERRORS[500]},
    )
    refused: dict[int | str, dict[str, Any]] = {status: ERRORS[status] for status in (401, 422, 503)}
    # Routes are tried in this order: first what is asked for most.
    for routes in (_routes(service), _browsing(service)):
        app.include_router(routes, dependencies=[Depends(_BEARER)], responses=refused)
    app.include_router(_health(service))
    app.include_router(inference_routes(service))
    app.include_router(explorer_routes(Site.read()))
    add_handlers(app)
    app.add_middleware(TokenGuard, token=lambda: service().engine.token)
    app.add_middleware(Watched, observer=lambda: service().engine.observer)
    return app


_BEARER = HTTPBearer(auto_error=False, description="The token of serve.token_file, where the service has one.")
"""For the documentation; `TokenGuard` refuses."""


def _routes(service: Callable[[], Service]) -> APIRouter:
    router = APIRouter(prefix="/v1", route_class=direct_to(service), responses={415: ERRORS[415]})
    # An annotation with a name of this function's own: FastAPI resolves it because it is no string.
    Held = Annotated[Service, Depends(service)]

    @router.post("/score", responses={409: ERRORS[409], 413: ERRORS[413]})
    async def score(request: api.ScoreRequest, held: Held) -> api.ScoreResponse:
        """Probability of each target for this user, by the task of the request."""
        return await held.engine.score(request)

    @router.post("/score:batch", responses={409: ERRORS[409], 413: ERRORS[413]})
    async def score_batch(request: BatchRequest, held: Held) -> api.BatchResponse:
        """Up to 100 score requests in one, of one bundle; a bad one does not spoil the others."""
        return await held.engine.score_batch(request)

    @router.post("/recommend", responses={409: ERRORS[409], 413: ERRORS[413]})
    async def recommend(request: api.RecommendRequest, held: Held) -> api.RecommendResponse:
        """Items out of the whole catalogue for this user, found, ranked by the task of the request, and why."""
        return await held.engine.recommend(request)

    @router.post("/explain", responses={409: ERRORS[409], 413: ERRORS[413]})
    async def explain(request: api.ExplainRequest, held: Held) -> api.ExplainResponse:
        """Why one target scores as it does: gate, kept behaviours, attention of each head, recall, relevance of the history."""
        return await held.engine.explain(request)

    @router.post("/events", responses={413: ERRORS[413], 507: ERRORS[507]})
    async def append(request: api.EventsRequest, held: Held) -> api.EventsResponse:
        """Append behaviours. They are durable when this answers, and every later request sees them."""
        return await held.engine.append(request)

    return router


def _browsing(service: Callable[[], Service]) -> APIRouter:
    """What a person looks for before there is a request."""
    router = APIRouter(prefix="/v1")
    Held = Annotated[Service, Depends(service)]
    Words = Annotated[str, Query(max_length=500)]
    Prefix = Annotated[str, Query(max_length=512)]
    Limit = Annotated[int, Query(ge=1, le=1000)]

    @router.get("/users/{user_id:path}/history", responses={404: ERRORS[404]})
    async def history(user_id: str, held: Held, limit: Annotated[int, Query(ge=1, le=10_000)] = 100) -> api.HistoryResponse:
        """A user's newest behaviours, newest last."""
        return await held.engine.history(user_id, limit)

    @router.get("/bundle")
    async def bundle(held: Held) -> api.BundleResponse:
        """Versions of everything that makes a score, on every replica."""
        return await held.engine.describe(await held.replicas())

    @router.get("/users")
    async def users(held: Held, prefix: Prefix = "", order: api.UserOrder = "id", limit: Limit = 50) -> api.UsersResponse:
        """Users whose id begins with `prefix`."""
        return await held.engine.users(prefix, order, limit)

    @router.get("/items")
    async def items(held: Held, text: Words = "", limit: Limit = 20) -> api.ItemsResponse:
        """Items of the catalogue whose text has every word of `text`, and the one of that id; without words the most taken."""
        return await held.engine.items(text, limit)

    @router.get("/queries")
    async def queries(held: Held, text: Words = "", limit: Limit = 20) -> api.QueriesResponse:
        """Queries of the catalogue whose text has every word of `text`."""
        return await held.engine.queries(text, limit)

    @router.get("/bundles")
    async def bundles(held: Held) -> api.BundlesResponse:
        """Published bundles; POST /v1/explain takes any of them."""
        return await held.engine.bundles()

    return router


def _health(service: Callable[[], Service]) -> APIRouter:
    """Answered to everybody."""
    router = APIRouter(prefix="/v1", responses={503: ERRORS[503]})
    Held = Annotated[Service, Depends(service)]

    @router.get("/health/live")
    async def live() -> api.Health:
        """The process answers."""
        return api.Health(status="alive")

    @router.get("/health/ready")
    async def ready(held: Held) -> api.Health:
        """A bundle is loaded; 503 before that."""
        return api.Health(status="ready", bundle_version=held.engine.live.bundle.version)

    return router
