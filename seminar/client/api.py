"""The service's vocabulary: every request, answer and error. These models are the OpenAPI; nothing here knows Ray or the model.

Sizes that an operator sets (targets, candidates, events) are checked in `serve/engine.py`; everything else is refused here, with
what, got, expected and fix for each field.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, field_validator, model_validator
from pydantic_core import PydanticCustomError

MIN_TIME_MS = 100_000_000_000
"""1973-03-03; a time below it is almost surely in seconds."""
MAX_TIME_MS = 4_102_444_800_000
"""2100-01-01."""

Id = Annotated[str, StringConstraints(min_length=1, max_length=512, pattern=r"^[^\x00-\x1f]+$")]
QueryText = Annotated[str, StringConstraints(min_length=1, max_length=500, pattern=r"^[^\x00-\x1f]*[^\x00-\x20][^\x00-\x1f]*$")]
TimeMs = Annotated[int, Field(ge=MIN_TIME_MS, le=MAX_TIME_MS, description="Unix milliseconds, UTC")]
Task = Literal["ctr", "psr"]
Source = Literal["history", "query", "retrieved"]


class Input(BaseModel):
    """What a client sends: no unknown fields, no silent conversion of types."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class Output(BaseModel):
    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)


class Queried(Input):
    """Something with at most one query, named by id or given as text."""

    query_id: Id | None = None
    """A query of the catalogue."""
    query: QueryText | None = None
    """Query text; one that the catalogue does not hold is encoded on the fly."""

    @model_validator(mode="after")
    def _one_query(self) -> "Queried":
        if self.query_id is not None and self.query is not None:
            raise ValueError("query_id or query, not both")
        return self


class Target(Queried):
    item_id: Id


class ScoreRequest(Input):
    user_id: Id
    targets: Annotated[list[Target], Field(min_length=1)]
    task: Task | None = None
    """ctr: click-through rate. psr: personalised search ranking. Default: psr if any target has a query, else ctr."""
    time_ms: TimeMs | None = None
    """The moment of the request; later behaviours are not seen. Default: now, and every stored behaviour is seen."""
    explain: bool = False
    """Also say why the best targets score as they do."""
    explain_top: Annotated[int, Field(ge=1, le=100)] = 1
    """How many of the best targets are explained."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"user_id": "1738", "targets": [{"item_id": "1082185"}, {"item_id": "995242"}]}]}
    )


class RecommendRequest(Queried):
    user_id: Id
    n: Annotated[int, Field(ge=1, le=1000)] = 10
    """How many items are wanted; fewer come only where the catalogue is smaller."""
    candidates: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """How many are proposed and ranked, at least n. Default: 200 (or what the service takes at once), or n if that is more."""
    task: Task | None = None
    """What they are ranked by. Default: psr if there is a query, else ctr."""
    time_ms: TimeMs | None = None
    """The moment of the request; later behaviours are not seen. Default: now, and every stored behaviour is seen."""
    because: Annotated[int, Field(ge=0, le=10)] = 3
    """How many past behaviours are given as reasons of each item."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"user_id": "1738", "n": 5, "because": 2}]})

    @field_validator("candidates")
    @classmethod
    def _room_for_all(cls, candidates: int | None, others: Any) -> int | None:
        # others: pydantic's ValidationInfo, a protocol that cannot be checked at run time.
        n = others.data.get("n", 1)
        if candidates is not None and candidates < n:
            raise PydanticCustomError("greater_than_equal", "Input should be at least n, {n}", {"n": n})
        return candidates


class EventIn(Queried):
    item_id: Id
    """May be unknown to the bundle: the behaviour is kept and counts from the first bundle on that knows the item."""
    time_ms: TimeMs
    event_id: Id | None = None
    """Makes a retry safe: a second event of this user with the same event_id is dropped."""
    request_id: Id | None = None
    """Events of one call that share it form one request; without it, those of the same time do."""


class EventsRequest(Input):
    user_id: Id
    events: Annotated[list[EventIn], Field(min_length=1)]


class Timings(Output):
    """Milliseconds: reading and translating the history, GSU, ESU, all of it."""

    history: float
    retrieve: float
    rank: float
    total: float


class RecommendTimings(Timings):
    """rank includes the reasons."""

    propose: float
    """Candidates: user tower, search of the item index, history and query matches."""


class Reason(Output):
    """A behaviour of the user that an item's score rests on."""

    item_id: str
    text: str | None
    query: str | None
    time_ms: int
    attention: float
    """ESU attention weight, mean over heads; the weights of one target add up to 1."""


class KeptBehaviour(Reason):
    query_id: str | None
    relevance: float
    """GSU score."""
    channels: dict[str, float]
    """Each channel's part of the relevance; the parts add up to its exact value."""


class TargetExplanation(Output):
    target: int
    """Position in the request's targets."""
    item_id: str
    text: str | None
    query: str | None
    score: float
    gate: dict[str, float]
    """Weight of each channel in the merged target; 0 where the channel is missing."""
    behaviours: list[KeptBehaviour]
    """What the GSU kept for this target, most relevant first."""


class Answer(Output):
    """What every answer with scores tells of the user and of how it came about."""

    bundle_version: str
    user_id: str
    known_user: bool
    """False: the store never saw this user, who is scored with the learned null interest, as is one without behaviours."""
    task: Task
    time_ms: int
    history_length: int
    """Behaviours stored, up to time_ms if it was given."""
    history_used: int
    """Those whose item the bundle knows: the history that was scored."""
    retriever: str
    """How the history was searched: exact, merged, or int8 or pq with candidates re-scored exactly."""
    retriever_reason: str


class ScoreResponse(Answer):
    scores: list[float]
    """One probability a target, in the order of the request."""
    timings_ms: Timings
    explanation: list[TargetExplanation] | None = None
    """Best target first."""


class Recommendation(Output):
    item_id: str
    text: str | None
    score: float
    """Probability by the task, as POST /v1/score gives it."""
    sources: list[Source]
    """history: the user took it before. query: taken under this query, by anybody. retrieved: found by the dual tower."""
    retrieval_score: float | None
    """The dual tower's logit: a scaled cosine plus the log of the item's share of all behaviours; null if it did not find it."""
    because: list[Reason]
    """Past behaviours with the most attention for this item, most first."""


class RecommendResponse(Answer):
    items: list[Recommendation]
    """Best score first."""
    candidates: int
    """How many were ranked."""
    by_source: dict[Source, int]
    """How many of them each source holds; several may hold one."""
    timings_ms: RecommendTimings


class EventsResponse(Output):
    user_id: str
    accepted: int
    duplicates: int
    history_length: int
    unknown_items: int
    """Events whose item the bundle in use does not know; kept, and not scored until a bundle knows it."""
    bundle_version: str


class StoredBehaviour(Output):
    item_id: str
    text: str | None
    query_id: str | None
    query: str | None
    time_ms: int
    request: int
    in_bundle: bool


class HistoryResponse(Output):
    user_id: str
    length: int
    behaviours: list[StoredBehaviour]
    """The newest `limit`, newest last."""
    bundle_version: str


class Refusal(Output):
    """A bundle that was offered and not taken; the one before it serves on."""

    bundle: str
    error: str
    time_ms: int


class ReplicaState(Output):
    deployment: str
    replica: str
    pid: int
    bundle_version: str | None
    loading: str | None
    """The bundle it is loading beside that one."""
    refused: Refusal | None


class BundleResponse(Output):
    version: str
    checksum: str
    created: str
    psu_fingerprint: str
    inputs: dict[str, str]
    """Versions of the artefacts the bundle was made from."""
    retriever: str
    overfetch: float | None
    """Candidates a kept behaviour that are re-scored exactly; null: the method's own."""
    topology: str
    text_encoder: str
    items: int
    queries: int
    top_k: int
    recommends: bool
    """Whether POST /v1/recommend answers: the bundle has an item index and the service a Proposer."""
    users: int
    """Users in the history store of the node that answers."""
    loading: str | None
    """A bundle that was offered and is being loaded."""
    refused: Refusal | None
    """Why the last offered bundle is not the one in use; null if it is."""
    replicas: list[ReplicaState]
    """All running replicas of all deployments: a swap is done when each names the new version."""


class Health(Output):
    status: Literal["alive", "ready"]
    bundle_version: str | None = None


class Problem(Output):
    """One thing that is wrong with a request."""

    what: str
    got: str
    expected: str
    fix: str


class ErrorResponse(Output):
    errors: list[Problem]
    omitted: int = 0
    """Further problems, which are not listed."""
