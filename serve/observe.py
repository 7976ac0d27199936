"""What the service tells of itself: the points at which the engine and the routes report, and a record of the request under way.

`Observer` is what they report to. `Silent` ignores everything (one process, tests); `serve/watch.py` counts.
A request's `Record` goes with it in a context variable, so that its log line says what the engine found out.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal, Protocol

from jaxtyping import Float
from numpy import ndarray

from seminar.artifacts import Manifest
from seminar.client import api
from seminar.scorer import TwoStageScorer
from seminar.scoring import ScoringHistory, Searched, Targets

Stage = Literal["history", "propose", "retrieve", "rank"]


@dataclass(frozen=True, slots=True)
class Answered:
    """Targets of one user that were scored. scores_T: probabilities. history_length: behaviours that the GSU searched."""

    route: str
    user_id: str
    bundle_version: str
    task: str
    retriever: str
    history_length: int
    scores_T: Float[ndarray, " T"]
    stage_ms: Mapping[Stage, float]


@dataclass(slots=True)
class Record:
    """One request, filled in while it goes on. stage_ms: summed over the users that it asks about."""

    request_id: str
    method: str = ""
    route: str = ""
    status: int = 500
    total_ms: float = 0.0
    user_id: str | None = None
    bundle_version: str | None = None
    targets: int = 0
    stage_ms: dict[Stage, float] = field(default_factory=dict)
    error: BaseException | None = None


CURRENT: ContextVar[Record | None] = ContextVar("record", default=None)


def remember(answered: Answered) -> None:
    """Add what was found out to the record of the request under way, if there is one."""
    record = CURRENT.get()
    if record is not None:
        record.user_id, record.bundle_version = answered.user_id, answered.bundle_version
        record.targets += len(answered.scores_T)
        for stage, took_ms in answered.stage_ms.items():
            record.stage_ms[stage] = record.stage_ms.get(stage, 0.0) + took_ms


def answered(route: str, answer: api.ScoreResponse | api.RecommendResponse, scores_T: Float[ndarray, " T"]) -> Answered:
    """What an answer says, for whoever counts."""
    timings = answer.timings_ms
    stage_ms: dict[Stage, float] = {"history": timings.history, "retrieve": timings.retrieve, "rank": timings.rank}
    if isinstance(timings, api.RecommendTimings):
        stage_ms["propose"] = timings.propose
    return Answered(
        route=route,
        user_id=answer.user_id,
        bundle_version=answer.bundle_version,
        task=answer.task,
        retriever=answer.retriever,
        history_length=answer.history_used,
        scores_T=scores_T,
        stage_ms=stage_ms,
    )


class Observer(Protocol):
    """Whom the service reports to. Every method returns within microseconds and never raises."""

    def began(self) -> None:
        """A request came in."""
        ...

    def ended(self, record: Record) -> None:
        """It was answered, or failed."""
        ...

    def answered(self, answered: Answered) -> None: ...

    def retrieved(self, scorer: TwoStageScorer, history: ScoringHistory, targets: Targets, found: Searched) -> None:
        """The GSU searched a history, in this process."""
        ...

    def appended(self, accepted: int, duplicates: int, took_ms: float) -> None: ...

    def offered(self, bundle: str, created_s: float, refusal: str | None) -> None:
        """A bundle was taken (created_s: Unix time at which it was made), or refused and why."""
        ...

    def store_failed(self, operation: str) -> None:
        """The history store raised something that is not the client's fault."""
        ...

    def rejected(self, by: str) -> None:
        """Another deployment had no room or no healthy replica."""
        ...


class Silent:
    """Ignores everything."""

    def began(self) -> None: ...

    def ended(self, record: Record) -> None: ...

    def answered(self, answered: Answered) -> None: ...

    def retrieved(self, scorer: TwoStageScorer, history: ScoringHistory, targets: Targets, found: Searched) -> None: ...

    def appended(self, accepted: int, duplicates: int, took_ms: float) -> None: ...

    def offered(self, bundle: str, created_s: float, refusal: str | None) -> None: ...

    def store_failed(self, operation: str) -> None: ...

    def rejected(self, by: str) -> None: ...


@contextmanager
def offering(observer: Observer, reference: str) -> Iterator[Callable[[Manifest], None]]:
    """While a bundle is loaded: call what this gives when it is in use; an error is told as a refusal, and raised."""
    try:
        yield lambda manifest: observer.offered(manifest.version, datetime.fromisoformat(manifest.created).timestamp(), None)
    except Exception as error:
        observer.offered(reference, 0.0, f"{type(error).__name__}: {error}")
        raise
