"""Where GSU, ESU and candidates are worked out: in this process, or behind the same protocols in other services (`app.py`)."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from seminar.compiled.scorer import Found
from seminar.scorer import Retrieved, Scored, ScoringHistory, Targets, TwoStageScorer
from serve.explain import rank, rank_found
from serve.held import Held
from serve.observe import Observer, Silent
from serve.options import Options
from serve.proposing import Proposed, Wish
from serve.rows import Live
from serve.spans import in_thread, timed


@dataclass(frozen=True)
class StageResult:
    """What the two stages gave (scored: as `explain.rank` says), and how long each took."""

    scored: Scored
    retrieve_ms: float
    rank_ms: float


BothStages = Callable[[Live, ScoringHistory, Targets], StageResult]


class Stages(Protocol):
    """Where GSU and ESU run: in this process, or behind two services."""

    @property
    def here(self) -> BothStages | None:
        """Both stages at once, in the thread that calls; None where they are services of their own."""
        ...

    async def score(self, live: Live, history: ScoringHistory, targets: Targets, explain_top: int) -> StageResult:
        """explain_top: how many of the best targets are explained."""
        ...

    async def hold(self, folder: Path, *, first: bool) -> None:
        """Have every process that will work with this bundle load it before the first request needs it; raises what one refuses.

        first: none was in use before. Then services of their own load it by their own configuration.
        """
        ...


class Proposals(Protocol):
    """Where candidates come from: this process, or a service of its own."""

    async def propose(self, live: Live, wish: Wish) -> Proposed: ...

    async def hold(self, folder: Path, *, first: bool) -> None:
        """As `Stages.hold`."""
        ...


class LocalStages:
    """Both stages in this process, one request at a time."""

    def __init__(self, observer: Observer | None = None) -> None:
        self._thread = ThreadPoolExecutor(1, "score")
        self._observer = observer or Silent()

    async def score(self, live: Live, history: ScoringHistory, targets: Targets, explain_top: int) -> StageResult:
        return await in_thread(self._thread, self._score, live.scorer, history, targets, explain_top)

    def here(self, live: Live, history: ScoringHistory, targets: Targets) -> StageResult:
        return self._score(live.scorer, history, targets, 0)

    async def hold(self, folder: Path, *, first: bool) -> None:
        """The engine itself holds it."""

    def _score(self, scorer: TwoStageScorer, history: ScoringHistory, targets: Targets, explain_top: int) -> StageResult:
        found, retrieve_ms = timed("retrieve", _search, scorer, history, targets)
        self._observer.retrieved(scorer, history, targets, found)
        if isinstance(found, Retrieved):
            scored, rank_ms = timed("rank", rank, scorer, targets, found, explain_top)
        else:
            scored, rank_ms = timed("rank", rank_found, scorer, history, targets, found, explain_top)
        return StageResult(scored, retrieve_ms, rank_ms)


def _search(scorer: TwoStageScorer, history: ScoringHistory, targets: Targets) -> Found | Retrieved:
    """The compiled search, or the plain one of what that does not cover."""
    found = scorer.find(history, targets)
    return scorer.retrieve(history, targets) if found is None else found


class LocalProposals:
    """Candidates from this process, one request at a time."""

    def __init__(self, options: Options) -> None:
        self._thread = ThreadPoolExecutor(1, "propose")
        self._held = Held(options.load_proposer)

    async def propose(self, live: Live, wish: Wish) -> Proposed:
        proposer = await self._held.get(str(live.bundle.path))
        return Proposed(*await in_thread(self._thread, timed, "propose", proposer.propose, wish))

    async def hold(self, folder: Path, *, first: bool) -> None:
        await self._held.get(str(folder))
