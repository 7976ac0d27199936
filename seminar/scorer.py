"""The served two-stage scorer: retrieve (GSU, whole history) then rank (ESU, what was kept).

Where both stages run in one process and the bundle allows it, `find` and `rank_found` answer by `seminar/compiled/`; the torch
ranker is the reference, explains, and scores what is not covered.

`Retrieved` carries the kept behaviours themselves, so the second stage never reads a history: the two stages may run in one
process or behind two services. Scores equal the offline ranker's on the same bundle; only the retriever may approximate.
"""

import logging
from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from seminar.batching import Batch, batch_of_one
from seminar.bundle import Bundle
from seminar.channels import ChannelSource, WithUnseenItems, WithUnseenQueries, encode_pairs
from seminar.compiled.scorer import CompiledScorer, Found
from seminar.compiled.weights import uncovered
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
from seminar.schema import NONE
from seminar.scoring import Explanation, Retrieved, Scored, ScoringHistory, Targets

logger = logging.getLogger(__name__)


class TwoStageScorer:
    """Scores targets against one user's whole history with one bundle. Thread-safe: it holds no per-request state.

    retriever: a method of `seminar/retrieval/regime.py`, or `auto`. overfetch: candidates a kept behaviour, the method's own if
    None. key_store: keeps packed keys of users that requests name; it must be of this bundle. compiled False: torch alone.
    """

    def __init__(
        self,
        bundle: Bundle,
        retriever: Method | Literal["auto"] = "auto",
        overfetch: float | None = None,
        key_store: KeyStore | None = None,
        *,
        compiled: bool = True,
    ) -> None:
        self.bundle = bundle
        self.history_search = HistorySearch(bundle, retriever, overfetch, key_store)
        self._text_encoder: TextEncoder | None = None
        reason = uncovered(bundle.config) if compiled else "it was not asked for"
        self._compiled = CompiledScorer(bundle, self.history_search.space) if reason is None else None
        if reason is not None:
            logger.info("bundle %s is scored by torch operations, some ms a request, not compiled: %s", bundle.version, reason)

    @torch.inference_mode()
    def ready(self, history: ScoringHistory) -> ScoringHistory:
        """The history with all that its requests share, to be kept between them; as it is where the bundle is not compiled."""
        if self._compiled is None or history.ready is not None:
            return history
        return replace(history, ready=self._compiled.ready(history.item_L, history.query_L, history.time_ms_L))

    def is_ready(self, history: ScoringHistory, targets: int, time_ms: int) -> bool:
        """Whether `find` answers so many targets at that moment from what is ready, and reads nothing."""
        if history.ready is None or time_ms < history.ready.newest_ms:
            return False
        return self._chosen(history, targets) is not None

    def find(self, history: ScoringHistory, targets: Targets) -> Found | None:
        """GSU by the compiled scorer, for `rank_found`; None for what it does not cover: then `retrieve` and `rank`."""
        if self._compiled is None or targets.unseen_items is not None:
            return None
        choice = self._chosen(history, len(targets.item_T))
        if choice is None:
            return None
        ready = self.ready(history).ready
        if ready is None or targets.time_ms < ready.newest_ms:
            return None
        asked = self._compiled.ask(targets.item_T, targets.query_T, targets.task, targets.time_ms, targets.unseen_Xd)
        return self._compiled.find(ready, asked, choice, self.bundle.config.top_k)

    def rank_found(self, found: Found) -> Scored:
        """ESU and heads over what `find` kept."""
        assert self._compiled is not None
        return Scored(self._compiled.rank(found), found.choice)

    @torch.inference_mode()
    def retrieved(self, history: ScoringHistory, some: Targets, found: Found, chosen: Int[ndarray, " C"]) -> Retrieved:
        """What `find` kept for some of its targets, as `rank` takes it. chosen: which of its targets they are."""
        batch = self._batch(history, some, len(history.item_L))
        return self._passed_on(history, batch, found.position_TK[chosen], found.relevance_TK[chosen], found.choice)

    @torch.inference_mode()
    def retrieve(self, history: ScoringHistory, targets: Targets) -> Retrieved:
        """GSU: the top-K of the whole history for each target."""
        batch = self._batch(history, targets, len(history.item_L))
        top, choice = self.history_search.top_k(history, self._probe(targets), self.bundle.config.top_k)
        return self._passed_on(history, batch, top.index_TK.numpy(), top.relevance_TK.numpy(), choice)

    def _chosen(self, history: ScoringHistory, targets: int) -> Choice | None:
        """How the compiled scorer searches for so many targets; None where it does not."""
        kept = history.ready is not None and history.user_id is not None
        choice = self.history_search.choice(history, targets, self.bundle.config.top_k, kept=kept)
        covered = self._compiled is not None and self._compiled.covers(len(history.item_L), choice)
        return choice if covered else None

    def _passed_on(
        self, history: ScoringHistory, batch: Batch, kept_TK: ndarray, relevance_TK: ndarray, choice: Choice
    ) -> Retrieved:
        ranker, length = self.bundle.ranker, len(history.item_L)
        position_U, rows = passed_on(kept_TK, length, self.bundle.config.recent)
        return Retrieved(
            item_U=history.item_L[position_U],
            query_U=history.query_L[position_U],
            time_ms_U=history.time_ms_L[position_U],
            position_U=position_U,
            kept_TK=rows,
            relevance_TK=relevance_TK,
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
        found = None if explain else self.find(history, targets)
        if found is not None:
            return self.rank_found(found)
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
        item_T = targets.heads_row(len(self.bundle.item_ids))
        columns = history.item_L, history.query_L, history.time_ms_L
        return batch_of_one(*columns, total_length, item_T, targets.query_T, targets.task, targets.time_ms)

    def _explain(self, encoded: Encoded, ranked: Ranked, retrieved: Retrieved) -> Explanation:
        channel = self.bundle.ranker.contributions(encoded, torch.from_numpy(retrieved.kept_TK)[None])[0]
        attention, gate = ranked.interest.attention_BTHK[0].numpy(), encoded.gated.weight_NM[encoded.target_BT[0]].numpy()
        return Explanation(retrieved.position_TK, retrieved.relevance_TK, attention, channel.numpy(), gate)


def passed_on(kept_TK: Int[ndarray, "T K"], length: int, recent: int) -> tuple[Int[ndarray, " U"], Int[ndarray, "T K"]]:
    """Positions of the history that the second stage needs (kept by any target, the newest, the oldest), and where among them
    each kept one stands."""
    needed_L = np.zeros(length, np.bool_)
    needed_L[kept_TK[kept_TK >= 0]] = True
    needed_L[max(0, length - recent) :] = needed_L[:1] = True
    # Padding, -1, reads the last entry.
    row_L1 = np.append(np.cumsum(needed_L) - 1, NONE)
    return np.flatnonzero(needed_L), row_L1[kept_TK]
