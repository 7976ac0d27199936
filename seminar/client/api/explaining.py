"""POST /v1/explain: one target against one whole history, with everything that made its score."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from seminar.client.api import examples
from seminar.client.api.base import Id, Input, Output, Task, TimeMs, Version
from seminar.client.api.scoring import Answer, Target, Timings

MAX_NEWEST = 100_000
"""Most behaviours whose columns an explanation carries."""


class ExplainRequest(Input):
    user_id: Id
    target: Target
    task: Task | None = None
    """Default: psr if the target has a query, else ctr."""
    time_ms: TimeMs | None = None
    """The moment of the request; later behaviours are not seen. Default: now, and every stored behaviour is seen."""
    retriever: Literal["exact", "merged", "int8", "pq"] | None = None
    """How the history is searched; none: as the service does for a score."""
    top_k: Annotated[int, Field(ge=1, le=1000)] | None = None
    """How many behaviours the GSU keeps; none: as many as the model was trained with."""
    bundle: Version | None = None
    """Another published bundle, loaded beside the one in use; none: the one in use."""
    newest: Annotated[int, Field(ge=0, le=MAX_NEWEST)] = 2000
    """How many of the newest behaviours `history` has."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"user_id": "1738", "target": {"item_id": "1082185"}, "top_k": 20}]}
    )


class ExplainedTarget(Output):
    item_id: str | None
    """null: an item given by its content."""
    text: str | None
    category: str | None
    query_id: str | None
    query: str | None


class ExplainedBehaviour(Output):
    position: int
    """Place in the history that was scored; 0 is the oldest behaviour."""
    item_id: str
    text: str | None
    category: str | None
    query_id: str | None
    query: str | None
    time_ms: int
    relevance: float
    """GSU score."""
    channels: dict[str, float]
    """Each channel's part of the relevance; the parts add up to its exact value."""
    attention_H: list[float]
    """ESU attention weight of each head; the weights of one head add up to 1 over all that was kept."""


class HistoryColumns(Output):
    """The newest behaviours as columns of equal length, oldest first."""

    position: list[int]
    item_id: list[str]
    text: list[str | None]
    category: list[str | None]
    query_id: list[str | None]
    query: list[str | None]
    time_ms: list[int]
    request: list[int]
    """Behaviours of one request share a number."""
    relevance: list[float]
    """Exact GSU relevance, whichever retriever searched."""


class ExplainTimings(Timings):
    exact: float
    """Exact relevance of every behaviour, against which `recall` is measured."""


class ExplainResponse(Answer):
    target: ExplainedTarget
    score: float
    """Probability by the task, as POST /v1/score gives it for the same bundle, retriever and top_k."""
    top_k: int
    heads: int
    gate: dict[str, float]
    """Weight of each channel in the merged target; 0 where the channel is missing."""
    kept: list[ExplainedBehaviour]
    """What the GSU kept, most relevant first."""
    recall: float | None
    """Share of the exact top K that this retriever kept; null without a history."""
    next_best: float | None
    """Exact relevance of the best behaviour that was not kept; null if all were."""
    history: HistoryColumns
    timings_ms: ExplainTimings

    model_config = ConfigDict(json_schema_extra={"examples": [examples.EXPLAIN]})
