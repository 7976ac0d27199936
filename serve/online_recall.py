"""What the served GSU misses: a sample of searches, repeated exactly in a thread that yields to all others.

At most `WAITING` searches wait; what comes on top is dropped and counted, so a burst costs no memory and no time. Of a request
`TARGETS` targets are repeated: exact search reads 1 KiB a behaviour, at 100,000 behaviours a quarter of a second of one core.
"""

import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from seminar.retrieval.base import TopK
from seminar.retrieval.recall import found_share
from seminar.scorer import TwoStageScorer
from seminar.scoring import ScoringHistory, Searched, Targets
from serve.aside import give_way
from serve.sink import Sink

WAITING = 4
TARGETS = 8
EXACT = ("exact", "merged")
"""Methods that are exact by themselves, and so not sampled."""
LOWEST_PRIORITY = 19


@dataclass(frozen=True)
class Search:
    """A search of a history and what it found."""

    scorer: TwoStageScorer
    history: ScoringHistory
    targets: Targets
    found: Searched


class OnlineRecall:
    """Takes every `one_in`-th approximate search that is longer than what is kept; 0 takes none. report: by whom it is told."""

    def __init__(self, one_in: int, report: Callable[[Callable[[Sink], None]], None], logger: logging.Logger) -> None:
        self._one_in, self._report, self._logger = one_in, report, logger
        self._seen = 0
        self._waiting: queue.Queue[Search | None] = queue.Queue(WAITING)
        self._thread = threading.Thread(target=self._work, name="recall", daemon=True)
        if one_in:
            self._thread.start()

    def offer(self, search: Search) -> None:
        """Sample, or let pass."""
        if not self._one_in or not approximate(search.found):
            return
        self._seen += 1
        if self._seen % self._one_in:
            return
        try:
            self._waiting.put_nowait(search)
        except queue.Full:
            self._report(lambda sink: sink.count("seminar_recall_dropped", 1))

    def close(self) -> None:
        """Finish what waits and end the thread."""
        if self._one_in:
            self._waiting.put(None)
            self._thread.join()

    def _work(self) -> None:
        give_way(LOWEST_PRIORITY)
        while (search := self._waiting.get()) is not None:
            try:
                self._report(_counted(search.found.choice.method, *recall_of(search)))
            except Exception:
                # The next search may be fine.
                self._logger.exception("a search could not be repeated")


def approximate(found: Searched) -> bool:
    """Whether a search could have missed anything."""
    return found.choice.method not in EXACT and found.total_length > found.relevance_TK.shape[1]


def recall_of(search: Search) -> tuple[int, float]:
    """Behaviours that exact search keeps for some of the targets, and how many of them were found."""
    targets, found = search.targets, search.found
    some = slice(0, TARGETS)
    truth_TL = search.scorer.relevance(
        search.history, replace(targets, item_T=targets.item_T[some], query_T=targets.query_T[some])
    )
    index_TK = torch.from_numpy(found.position_TK[some])
    share_T = found_share(truth_TL, TopK(index_TK, torch.from_numpy(found.relevance_TK[some])))
    kept = index_TK.shape[1]
    return len(index_TK) * kept, float(share_T.sum()) * kept


def _counted(retriever: str, checked: int, found: float) -> Callable[[Sink], None]:
    def tell(sink: Sink) -> None:
        sink.count("seminar_recall_samples", 1, retriever=retriever)
        sink.count("seminar_recall_checked", checked, retriever=retriever)
        sink.count("seminar_recall_found", found, retriever=retriever)

    return tell
