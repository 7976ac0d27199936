"""POST /v1/score: targets in, probabilities out, and why."""

from typing import Annotated

from pydantic import ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from seminar.client.api import examples
from seminar.client.api.base import ErrorResponse, Id, Input, Output, Queried, Task, TimeMs

Number = Annotated[float, Field(allow_inf_nan=False, ge=-1e30, le=1e30)]


class ItemContent(Input):
    """An item that the catalogue need not hold, by its content, of which it has at least one: scored as one that nobody took."""

    text: Annotated[str, Field(min_length=1, max_length=10_000)] | None = None
    category: Id | None = None
    """One that the catalogue does not know counts as none."""
    attributes: list[Id] = Field(default_factory=list, max_length=100)
    """`name=value`, as in the items table; those that the catalogue does not know are absent."""
    image_vector: Annotated[list[Number], Field(min_length=1, max_length=16_384)] | None = None
    """What the bundle's image encoder makes of a photograph."""

    @model_validator(mode="after")
    def _something(self) -> "ItemContent":
        if not (self.text or self.category or self.attributes or self.image_vector):
            raise PydanticCustomError("no_content", "an item with a text, category, attribute or image_vector")
        return self


class Target(Queried):
    """One item, by id or by content, and at most one query."""

    item_id: Id | None = None
    """An item of the catalogue."""
    item: ItemContent | None = None
    """An item by its content."""

    @model_validator(mode="after")
    def _one_item(self) -> "Target":
        if (self.item_id is None) == (self.item is None):
            raise PydanticCustomError("one_item", "an item_id or an item, one of the two")
        return self


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
        json_schema_extra={
            "examples": [
                {"user_id": "1738", "targets": [{"item_id": "1082185"}, {"item_id": "995242"}]},
                {
                    "user_id": "1738",
                    "targets": [
                        {"item_id": "1082185", "query": "fruit"},
                        {"item": {"text": "organic bananas 2 lb", "category": "TROPICAL FRUIT"}, "query": "fruit"},
                    ],
                },
            ]
        }
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
    item_id: str | None
    """null: an item given by its content."""
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

    model_config = ConfigDict(json_schema_extra={"examples": [examples.SCORE]})


class BatchRequest(Input):
    requests: Annotated[list[ScoreRequest], Field(min_length=1, max_length=100)]

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"requests": [{"user_id": "1738", "targets": [{"item_id": "1082185"}]}] * 2}]}
    )


class BatchResult(Output):
    """Of one request of a batch, in its place: an answer, or why there is none."""

    status: int
    """What POST /v1/score would have answered it with."""
    response: ScoreResponse | None = None
    error: ErrorResponse | None = None


class BatchResponse(Output):
    bundle_version: str
    """Of every answer."""
    results: list[BatchResult]
    """In the order of the requests."""

    model_config = ConfigDict(json_schema_extra={"examples": [examples.BATCH]})
