"""POST /v1/score: targets in, probabilities out, and why."""

from typing import Annotated

from pydantic import ConfigDict, Field

from seminar.client.api.base import Id, Input, Output, Queried, Task, TimeMs


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


class Timings(Output):
    """Milliseconds: reading and translating the history, GSU, ESU, all of it."""

    history: float
    retrieve: float
    rank: float
    total: float


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
