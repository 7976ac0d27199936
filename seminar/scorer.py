"""The served two-stage scorer: retrieve (GSU, whole history) then rank (ESU, what was kept).

`Retrieved` carries the kept behaviours themselves, so the second stage never reads a history: the two stages may run in one
process or behind two services. Scores equal the offline ranker's on the same bundle; only the retriever may approximate.
"""

from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from seminar.batching import Batch, hour_of_week, hours_since
from seminar.bundle import Bundle
from seminar.channels import ChannelSource, WithUnseenItems, WithUnseenQueries, encode_pairs
from seminar.content import Content, UnseenItems
from seminar.embedding import TextEncoder, open_text_encoder
from seminar.embedding.text import TEXT_ENCODERS
from seminar.encoded import Encoded
from seminar.history_search import HistoryKeys, HistorySearch
from seminar.ranker import Ranked
from seminar.retrieval.base import Probe
from seminar.retrieval.exact import ExactRetriever
from seminar.retrieval.key_store import KeyStore
from seminar.retrieval.regime import Choice, Method
from seminar.schema import MS_PER_WEEK, NONE


@dataclass(frozen=True)
class ScoringHistory:
    """One user's behaviours as catalogue rows, oldest first (query -1: none). user_id: whose packed keys may be kept."""

    item_L: Int[ndarray, " L"]
    query_L: Int[ndarray, " L"]
    time_ms_L: Int[ndarray, " L"]
    user_id: str | None = None


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


class TwoStageScorer:
    """Scores targets against one user's whole history with one bundle. Thread-safe: it holds no per-request state.

    retriever: a method of `seminar/retrieval/regime.py`, or `auto`. overfetch: candidates a kept behaviour, the method's own if
    None. key_store: keeps packed keys of users that requests name; it must be of this bundle.
    """

    def __init__(
        self,
        bundle: Bundle,
        retriever: Method | Literal["auto"] = "auto",
        overfetch: float | None = None,
        key_store: KeyStore | None = None,
    ) -> None:
        self.bundle = bundle
        self.history_search = HistorySearch(bundle, retriever, overfetch, key_store)
        self._text_encoder: TextEncoder | None = None

    @torch.inference_mode()
    def retrieve(self, history: ScoringHistory, targets: Targets) -> Retrieved:
        """GSU: the top-K of the whole history for each target."""
        ranker, config = self.bundle.ranker, self.bundle.config
        batch = self._batch(history, targets, len(history.item_L))
        top, choice = self.history_search.top_k(history, self._probe(targets), config.top_k)
        kept, relevance = top.index_TK.numpy(), top.relevance_TK.numpy()
        length = len(history.item_L)
        position_U, rows = passed_on(kept, length, config.recent)
        return Retrieved(
            item_U=history.item_L[position_U],
            query_U=history.query_L[position_U],
            time_ms_U=history.time_ms_L[position_U],
            position_U=position_U,
            kept_TK=rows,
            relevance_TK=relevance,
            cross_TF=ranker.cross(batch)[0].numpy(),
            pooled_Sd=ranker.pooled_newest(batch).numpy(),
            total_length=length,
            choice=choice,
        )

    @torch.inference_mode()
    def rank(self, targets: Targets, retrieved: Retrieved, *, explain: bool = False) -> Scored:
        """ESU and head over what was kept."""
        ranker = self.bundle.ranker
        kept = ScoringHistory(retrieved.item_U, retrieved.query_U, retrieved.time_ms_U)
        batch = self._batch(kept, targets, retrieved.total_length)
        as_named = replace(batch, item_BT=torch.from_numpy(targets.item_T)[None])
        encoded = ranker.encode(as_named, self._source(targets))
        kept_BTK = torch.from_numpy(retrieved.kept_TK)[None]
        cross_BTF, pooled_BSd = (torch.from_numpy(part)[None] for part in (retrieved.cross_TF, retrieved.pooled_Sd))
        ranked = ranker.rank(batch, encoded, kept_BTK, cross_BTF, pooled_BSd)
        probability = torch.sigmoid(ranked.logit_BTS[0, :, targets.task]).numpy()
        return Scored(probability, retrieved.choice, self._explain(encoded, ranked, retrieved) if explain else None)

    def score(self, history: ScoringHistory, targets: Targets, *, explain: bool = False) -> Scored:
        """Both stages."""
        return self.rank(targets, self.retrieve(history, targets), explain=explain)

    @torch.inference_mode()
    def relevance(self, history: ScoringHistory, targets: Targets) -> Float[Tensor, "T L"]:
        """Exact GSU relevance of every behaviour: what any search of the history approximates. Reads 1 KiB a behaviour."""
        keys = HistoryKeys(self.bundle, history)[:]
        return ExactRetriever(self.history_search.space).index(keys).relevance(self._probe(targets))

    def searching(self, method: Method | None, top_k: int | None) -> "TwoStageScorer":
        """This scorer, but keeping top_k and searching by another method; None: as it does. It shares everything else.

        ConfigError for a method that cannot serve the bundle's gate.
        """
        if method is None and top_k is None:
            return self
        other = copy(self)
        config = self.bundle.config.model_copy(update={} if top_k is None else {"top_k": top_k})
        other.bundle = replace(self.bundle, config=config)
        other.history_search = self.history_search.by(method)
        return other

    def unseen_queries(self, texts: Sequence[str]) -> Float[ndarray, "X d"]:
        """Unit query-channel vectors of texts outside the catalogue, by the text encoder the bundle was trained with."""
        vectors = torch.from_numpy(self._texts().encode(list(texts))).float() @ self.bundle.project_query
        return torch.nn.functional.normalize(vectors, dim=-1).numpy()

    def unseen_items(self, items: Sequence[Content]) -> UnseenItems:
        """Items outside the catalogue by their content; ArtifactError for a bundle of an earlier release."""
        bundle = self.bundle
        texts = any(item.text for item in items) and bundle.text_encoder in TEXT_ENCODERS
        unit_X3d, present_X3 = bundle.item_contents.encode(items, bundle.config.channels, self._texts() if texts else None)
        stand_in_X = np.array([bundle.unseen_row(item.category) for item in items], np.int64)
        return UnseenItems(unit_X3d.numpy(), present_X3.numpy(), stand_in_X)

    def _texts(self) -> TextEncoder:
        if self._text_encoder is None:
            self._text_encoder = open_text_encoder(self.bundle.text_encoder)
        return self._text_encoder

    def _probe(self, targets: Targets) -> Probe:
        gsu, rows = self.bundle.ranker.gsu, (torch.from_numpy(targets.item_T), torch.from_numpy(targets.query_T))
        encoded_T = gsu.gated(encode_pairs(self._source(targets), *rows))
        return gsu.probe(gsu.merged(encoded_T), encoded_T.gate_logit_NM)

    def _source(self, targets: Targets) -> ChannelSource:
        source = self.bundle.units
        if targets.unseen_items is not None:
            columns = targets.unseen_items.unit_X3d, targets.unseen_items.present_X3
            source = WithUnseenItems(source, *map(torch.from_numpy, columns))
        if targets.unseen_Xd is None:
            return source
        used = "query" in self.bundle.config.channels
        return WithUnseenQueries(source, torch.from_numpy(targets.unseen_Xd), used)

    def _batch(self, history: ScoringHistory, targets: Targets, total_length: int) -> Batch:
        """Unseen items as the heads know them."""
        known = replace(targets, item_T=targets.heads_row(len(self.bundle.item_ids)))
        return _batch(history, known, total_length, history.time_ms_L)

    def _explain(self, encoded: Encoded, ranked: Ranked, retrieved: Retrieved) -> Explanation:
        channel = self.bundle.ranker.contributions(encoded, torch.from_numpy(retrieved.kept_TK)[None])[0]
        kept = retrieved.kept_TK
        position = np.where(kept >= 0, retrieved.position_U[np.maximum(kept, 0)] if len(retrieved.position_U) else kept, NONE)
        attention, gate = ranked.interest.attention_BTHK[0].numpy(), encoded.gated.weight_NM[encoded.target_BT[0]].numpy()
        return Explanation(position, retrieved.relevance_TK, attention, channel.numpy(), gate)


def passed_on(kept_TK: Int[ndarray, "T K"], length: int, recent: int) -> tuple[Int[ndarray, " U"], Int[ndarray, "T K"]]:
    """Positions of the history that the second stage needs (kept by any target, the newest, the oldest), and where among them
    each kept one stands."""
    needed_L = np.zeros(length, np.bool_)
    needed_L[kept_TK[kept_TK >= 0]] = True
    needed_L[max(0, length - recent) :] = needed_L[:1] = True
    # Padding, -1, reads the last entry.
    row_L1 = np.append(np.cumsum(needed_L) - 1, NONE)
    return np.flatnonzero(needed_L), row_L1[kept_TK]


def _batch(history: ScoringHistory, targets: Targets, total_length: int, time_ms_L: ndarray) -> Batch:
    """One request as a Batch of one; the same arithmetic as `batching.collate`."""
    hours = hours_since(time_ms_L, np.array(targets.time_ms))
    length = len(history.item_L)
    width = max(length, 1)

    def padded(values: ndarray, fill: int) -> Tensor:
        return torch.from_numpy(values.astype(np.int64) if length else np.full(width, fill, np.int64))[None]

    return Batch(
        item_BL=padded(history.item_L, 0),
        query_BL=padded(history.query_L, NONE),
        hours_BL=torch.from_numpy(hours if length else np.zeros(width, np.float32))[None],
        length_B=torch.tensor([length]),
        total_length_B=torch.tensor([total_length]),
        item_BT=torch.from_numpy(targets.item_T.astype(np.int64))[None],
        query_BT=torch.from_numpy(targets.query_T.astype(np.int64))[None],
        label_BT=torch.zeros(1, len(targets.item_T)),
        task_BT=torch.full((1, len(targets.item_T)), targets.task),
        target_count_B=torch.tensor([len(targets.item_T)]),
        hour_of_week_B=torch.from_numpy(hour_of_week(np.array([targets.time_ms]))),
        week_B=torch.tensor([targets.time_ms // MS_PER_WEEK]),
    )
