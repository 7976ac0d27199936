"""What the client sends: a request of the service as data, and the answer out of a reply. Pure functions; nothing is sent."""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Generic, TypeVar
from urllib.parse import quote

from pydantic import BaseModel, ValidationError

from seminar.client import api
from seminar.client.errors import ServiceError

T = TypeVar("T", bound=BaseModel)
SESSION_HEADER = "x-session-id"
"""User id: a user's requests go to the replica that knows the user."""
REQUEST_HEADER = "x-request-id"


@dataclass(frozen=True)
class Call(Generic[T]):
    """One request. again: it may be sent more than once; every attempt carries the same body and request id."""

    method: str
    path: str
    answer: type[T]
    body: bytes | None = None
    params: Mapping[str, str | int] = field(default_factory=dict)
    session: str | None = None
    again: bool = True
    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)

    def headers(self) -> dict[str, str]:
        found = {REQUEST_HEADER: self.request_id, "accept": "application/json"}
        if self.body is not None:
            found["content-type"] = "application/json"
        if self.session is not None:
            # A header holds no other letters; the router only asks whether two are equal.
            found[SESSION_HEADER] = quote(self.session, safe="!#$&'()*+,/:;=?@[]~ ").strip()
        return found


@dataclass(frozen=True)
class Reply:
    """What came back, whoever answered. headers: names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


def score(request: api.ScoreRequest) -> Call[api.ScoreResponse]:
    return _post("/v1/score", request, api.ScoreResponse, request.user_id)


def score_batch(request: api.BatchRequest) -> Call[api.BatchResponse]:
    """To the replica of the first user."""
    return _post("/v1/score:batch", request, api.BatchResponse, request.requests[0].user_id)


def recommend(request: api.RecommendRequest) -> Call[api.RecommendResponse]:
    return _post("/v1/recommend", request, api.RecommendResponse, request.user_id)


def explain(request: api.ExplainRequest) -> Call[api.ExplainResponse]:
    return _post("/v1/explain", request, api.ExplainResponse, request.user_id)


def append(request: api.EventsRequest) -> Call[api.EventsResponse]:
    """Every event has an event_id, a new one where the caller gave none, so that the store drops what arrives twice."""
    named = [e if e.event_id else e.model_copy(update={"event_id": str(uuid.uuid4())}) for e in request.events]
    return _post("/v1/events", request.model_copy(update={"events": named}), api.EventsResponse, request.user_id)


def history(user_id: str, limit: int) -> Call[api.HistoryResponse]:
    # Dots too: a user named ".." would be taken for a step up.
    path = f"/v1/users/{quote(user_id, safe='').replace('.', '%2E')}/history"
    return Call("GET", path, api.HistoryResponse, params={"limit": limit}, session=user_id)


def users(prefix: str, order: api.UserOrder, limit: int) -> Call[api.UsersResponse]:
    return Call("GET", "/v1/users", api.UsersResponse, params={"prefix": prefix, "order": order, "limit": limit})


def items(text: str, limit: int) -> Call[api.ItemsResponse]:
    return Call("GET", "/v1/items", api.ItemsResponse, params={"text": text, "limit": limit})


def queries(text: str, limit: int) -> Call[api.QueriesResponse]:
    return Call("GET", "/v1/queries", api.QueriesResponse, params={"text": text, "limit": limit})


def bundle() -> Call[api.BundleResponse]:
    return Call("GET", "/v1/bundle", api.BundleResponse)


def bundles() -> Call[api.BundlesResponse]:
    return Call("GET", "/v1/bundles", api.BundlesResponse)


def ready() -> Call[api.Health]:
    """Asked once of each address: whoever asks wants to know how it is now."""
    return Call("GET", "/v1/health/ready", api.Health, again=False)


def answer_of(call: Call[T], reply: Reply) -> T:
    """The answer; ServiceError where it is a refusal, or nothing of ours."""
    request_id = reply.headers.get(REQUEST_HEADER, call.request_id)
    if reply.status != HTTPStatus.OK:
        raise ServiceError(reply.status, problems_of(call, reply), request_id)
    try:
        return call.answer.model_validate_json(reply.body)
    except ValidationError as error:
        first = error.errors()[0]
        got = f"{first['msg']} at {'.'.join(map(str, first['loc'])) or 'the top'}"
        fix = "check that the address is that of this service and the client as new as it"
        problem = api.Problem(what=f"answer of {call.path}", got=got, expected=call.answer.__name__, fix=fix)
        raise ServiceError(reply.status, [problem], request_id) from None


def told_by_us(reply: Reply) -> api.ErrorResponse | None:
    """The service's own words; None for the error page of something between it and us."""
    try:
        return api.ErrorResponse.model_validate_json(reply.body)
    except ValidationError:
        return None


def problems_of(call: Call[T], reply: Reply) -> list[api.Problem]:
    """What is wrong, in the service's words or, of somebody else's page, in ours."""
    told = told_by_us(reply)
    if told is not None and told.errors:
        return told.errors
    got = f"status {reply.status} that the service did not write: {reply.body[:80].decode(errors='replace')!r}"
    fix = "look at what stands between client and service"
    return [api.Problem(what=f"{call.method} {call.path}", got=got, expected="an answer of the service", fix=fix)]


def _post(path: str, request: BaseModel, answer: type[T], session: str) -> Call[T]:
    return Call("POST", path, answer, request.model_dump_json(exclude_unset=True).encode(), session=session)
