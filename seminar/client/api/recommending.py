"""POST /v1/recommend: items out of the whole catalogue."""

from typing import Annotated, Any

from pydantic import ConfigDict, Field, field_validator
from pydantic_core import PydanticCustomError

from seminar.client.api import examples
from seminar.client.api.base import Id, Output, Queried, Source, Task, TimeMs
from seminar.client.api.scoring import Answer, Reason, Timings


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


class RecommendTimings(Timings):
    """rank includes the reasons."""

    propose: float
    """Candidates: user tower, search of the item index, history and query matches."""


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

    model_config = ConfigDict(json_schema_extra={"examples": [examples.RECOMMEND]})
