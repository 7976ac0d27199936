"""What goes into the served scorer and comes out of it: a history, targets, what a search found, scores and why."""

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from seminar.compiled.ready import ReadyHistory
from seminar.content import UnseenItems
from seminar.retrieval.regime import Choice
from seminar.schema import NONE


@dataclass(frozen=True)
class ScoringHistory:
    """One user's behaviours as catalogue rows, oldest first (query -1: none). user_id: whose packed keys may be kept.

    ready: what `TwoStageScorer.ready` of this bundle made of them, where the history is kept between requests.
    """

    item_L: Int[ndarray, " L"]
    query_L: Int[ndarray, " L"]
    time_ms_L: Int[ndarray, " L"]
    user_id: str | None = None
    ready: ReadyHistory | None = None


@dataclass(frozen=True)
class Targets:
    """T candidates of one request. query_T: catalogue row, -1 none, or num_queries + i for row i of `unseen_Xd`.

    item_T: catalogue row, or num_items + i for row i of `unseen_items`.
    """

    item_T: Int[ndarray, " T"]
    query_T: Int[ndarray, " T"]
    task: int
    time_ms: int
    unseen_Xd: Float[ndarray, "X d"] | None = None
    unseen_items: UnseenItems | None = None

    def heads_row(self, num_items: int) -> Int[ndarray, " T"]:
        """Each item's row in the heads' tables."""
        if self.unseen_items is None:
            return self.item_T
        stand_in_X, row_T = self.unseen_items.stand_in_X, self.item_T - num_items
        return np.where(row_T < 0, self.item_T, stand_in_X[np.maximum(row_T, 0)])


@dataclass(frozen=True)
class Retrieved:
    """GSU output, all the second stage needs: U behaviours (kept by any target, the newest, the oldest) and where they stood.

    position_U: positions in the history, increasing. kept_TK: rows of U kept for each target, increasing, -1 padding at the end.
    cross_TF: user-x-item features over the whole history. pooled_Sd: its general taste. choice: how the K were found.
    """

    item_U: Int[ndarray, " U"]
    query_U: Int[ndarray, " U"]
    time_ms_U: Int[ndarray, " U"]
    position_U: Int[ndarray, " U"]
    kept_TK: Int[ndarray, "T K"]
    relevance_TK: Float[ndarray, "T K"]
    cross_TF: Float[ndarray, "T F"]
    pooled_Sd: Float[ndarray, "S d"]
    total_length: int
    choice: Choice

    @property
    def position_TK(self) -> Int[ndarray, "T K"]:
        """Positions in the history, -1 padding."""
        # The last entry is read by padding.
        return np.append(self.position_U, NONE)[self.kept_TK]


@runtime_checkable
class Searched(Protocol):
    """What a search of a history found, compiled or not; as in `Retrieved`."""

    @property
    def position_TK(self) -> Int[ndarray, "T K"]: ...

    @property
    def relevance_TK(self) -> Float[ndarray, "T K"]: ...

    @property
    def total_length(self) -> int: ...

    @property
    def choice(self) -> Choice: ...


@dataclass(frozen=True)
class Explanation:
    """Why: kept positions, GSU relevance, each head's attention, each channel's part of the relevance, and the target's gate."""

    position_TK: Int[ndarray, "T K"]
    relevance_TK: Float[ndarray, "T K"]
    attention_THK: Float[ndarray, "T H K"]
    channel_TKM: Float[ndarray, "T K M"]
    gate_TM: Float[ndarray, "T M"]


@dataclass(frozen=True)
class Scored:
    """probability_T in (0, 1) for the request's task, how the history was searched, and optionally why."""

    probability_T: Float[ndarray, " T"]
    choice: Choice
    explanation: Explanation | None = field(default=None)
