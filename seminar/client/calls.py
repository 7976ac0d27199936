"""The service's calls, as both clients share them: which route, which body, which answer."""

import uuid
from dataclasses import dataclass
from typing import Generic, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, ValidationError

from seminar.client import api
from seminar.client.errors import ServiceError

A = TypeVar("A", bound=BaseModel)


@dataclass(frozen=True)
class Call(Generic[A]):
    """One request: everything that does not depend on how it travels. All of them may be sent twice without harm."""

    method: str
    path: str
    answer: type[A]
    body: BaseModel | None = None
    params: dict[str, str | int] | None = None


def score(request: api.ScoreRequest) -> Call[api.ScoreResponse]:
    return Call("POST", "/v1/score", api.ScoreResponse, request)


def score_batch(request: api.BatchRequest) -> Call[api.BatchResponse]:
    return Call("POST", "/v1/score:batch", api.BatchResponse, request)


def recommend(request: api.RecommendRequest) -> Call[api.RecommendResponse]:
    return Call("POST", "/v1/recommend", api.RecommendResponse, request)


def explain(request: api.ExplainRequest) -> Call[api.ExplainResponse]:
    return Call("POST", "/v1/explain", api.ExplainResponse, request)


def append(request: api.EventsRequest) -> Call[api.EventsResponse]:
    """Events without an event_id get one, so that an attempt which was stored but not answered is not stored again."""
    events = [e if e.event_id else e.model_copy(update={"event_id": uuid.uuid4().hex}) for e in request.events]
    return Call("POST", "/v1/events", api.EventsResponse, request.model_copy(update={"events": events}))


def history(user_id: str, limit: int) -> Call[api.HistoryResponse]:
    return Call("GET", f"/v1/users/{quote(user_id, safe='')}/history", api.HistoryResponse, params={"limit": limit})


def users(prefix: str, limit: int) -> Call[api.UsersResponse]:
    return Call("GET", "/v1/users", api.UsersResponse, params={"prefix": prefix, "limit": limit})


def items(text: str, limit: int) -> Call[api.ItemsResponse]:
    return Call("GET", "/v1/items", api.ItemsResponse, params={"text": text, "limit": limit})


def queries(text: str, limit: int) -> Call[api.QueriesResponse]:
    return Call("GET", "/v1/queries", api.QueriesResponse, params={"text": text, "limit": limit})


def bundles() -> Call[api.BundlesResponse]:
    return Call("GET", "/v1/bundles", api.BundlesResponse)


def bundle() -> Call[api.BundleResponse]:
    return Call("GET", "/v1/bundle", api.BundleResponse)


def ready() -> Call[api.Health]:
    return Call("GET", "/v1/health/ready", api.Health)


def refused(status: int, content: bytes, request_id: str | None) -> ServiceError:
    """The error that an answer tells; also of a proxy before the service, which has other words."""
    try:
        told = api.ErrorResponse.model_validate_json(content)
    except ValidationError:
        got = content.decode(errors="replace")[:200] or "an empty answer"
        return ServiceError(
            status, [api.Problem(what="answer", got=got, expected="an error of the service", fix="see its proxy")]
        )
    return ServiceError(status, told.errors, request_id)
