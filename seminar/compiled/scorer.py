"""Both stages of a request over a history that was made ready: what `TwoStageScorer` does by torch, in a fifth of the time.

The same algebra with other roundings: probabilities agree within 1e-5 (`tests/test_compiled.py`). What it does not cover
(`weights.uncovered`, `CompiledScorer.covers`) torch scores.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from numpy import ndarray
from torch import Tensor

from seminar.batching import MS_PER_HOUR, hour_of_week
from seminar.compiled.ready import FLOATS, ReadyHistory, merged, ready_history
from seminar.compiled.weights import Weights
from seminar.features import DECAY_HOURS, NUM_CROSS
from seminar.history_search import Catalogue
from seminar.kernels import counts, int8, served, simd
from seminar.kernels.distinct import distinct
from seminar.kernels.floats import SIDE
from seminar.kernels.merge import fit_rows
from seminar.retrieval.int8 import NO_PATTERN, scratch_for
from seminar.retrieval.key_space import KeySpace
from seminar.retrieval.regime import Choice
from seminar.retrieval.rescored import SLACK
from seminar.schema import MS_PER_WEEK, QUERY
from seminar.trend import NUM_TREND, SCALE, TAU_WEEKS

CROSS_TAUS = np.array(DECAY_HOURS)
TREND_TAUS = np.array(TAU_WEEKS)


@dataclass(frozen=True)
class Asked:
    """T targets of one request: catalogue rows, unit vectors of queries outside the catalogue, merged keys, the task's column and
    the moment."""

    item_T: Int64[ndarray, " T"]
    query_T: Int64[ndarray, " T"]
    unseen_Xd: Float32[ndarray, "X d"]
    target_Td: Float32[ndarray, "T d"]
    task: int
    time_ms: int


@dataclass(frozen=True)
class Found:
    """GSU output. position_TK: increasing, -1 at the end. row_TK: their rows of key_Nd. relevance_TK: -inf at -1."""

    ready: ReadyHistory
    asked: Asked
    key_Nd: Float32[ndarray, "N d"]
    position_TK: Int64[ndarray, "T K"]
    row_TK: Int64[ndarray, "T K"]
    relevance_TK: Float32[ndarray, "T K"]
    choice: Choice

    @property
    def total_length(self) -> int:
        """Behaviours that were searched."""
        return len(self.ready)


class CompiledScorer:
    """One bundle's ranker folded to tables. Thread-safe: it holds no per-request state."""

    def __init__(self, catalogue: Catalogue, space: KeySpace) -> None:
        self.weights, self.config, self._space = Weights.of(catalogue, space), catalogue.ranker.config, space
        self._used = "query" in self.config.channels
        self._tag = simd.TAGS[simd.path()]

    def ready(self, item_L: ndarray, query_L: ndarray, time_ms_L: ndarray) -> ReadyHistory:
        """A history made ready."""
        return ready_history(self.weights, self.config, item_L, query_L, time_ms_L)

    def covers(self, length: int, choice: Choice) -> bool:
        """Whether a search so chosen is one of ours."""
        return choice.method == "int8" or (choice.method == "merged" and length <= FLOATS)

    def ask(self, item_T: ndarray, query_T: ndarray, task: int, time_ms: int, unseen_Xd: ndarray | None) -> Asked:
        """Targets in channel space; query rows behind the catalogue's are rows of unseen_Xd."""
        item_T, query_T = (np.ascontiguousarray(column, np.int64) for column in (item_T, query_T))
        # Without the query channel they are no queries.
        used = unseen_Xd is not None and self._used
        unseen_Xd = np.ascontiguousarray(unseen_Xd, np.float32) if used else self.weights.tables.query_unit[:0]
        unseen_key = unseen_Xd @ self._space.transform[QUERY].numpy()
        target_Td = merged(self.weights.tables, item_T, query_T, unseen_Xd, unseen_key)
        return Asked(item_T, query_T, unseen_Xd, target_Td, task, time_ms)

    @torch.inference_mode()
    def find(self, ready: ReadyHistory, asked: Asked, choice: Choice, k: int) -> Found:
        """GSU: the k best of the whole history for each target."""
        search, (targets, dim) = self.weights.search, asked.target_Td.shape
        query_Td = np.empty((targets, dim), np.float32)
        torch.addmm(search.start, torch.from_numpy(asked.target_Td), search.asked, out=torch.from_numpy(query_Td))
        pairs, pair_TR = ready.pairs, self._candidates(ready, query_Td, choice, k)
        key_Nd, row_TR = ready.key_Pd, pair_TR
        if key_Nd is None:
            row_TR = np.empty_like(pair_TR)
            rows = distinct(pair_TR.reshape(-1), row_TR.reshape(-1))
            key_Nd = merged(self.weights.tables, pairs.item_P[rows], pairs.query_P[rows])
        shape = targets, k
        position_TK, kept_row_TK, relevance_TK = np.empty(shape, np.int64), np.empty(shape, np.int64), np.empty(shape, np.float32)
        found = pair_TR, row_TR, pairs.of_L, pairs.start, pairs.position
        served.keep_best(query_Td, key_Nd.ctypes.data, *found, position_TK, kept_row_TK, relevance_TK)
        return Found(ready, asked, key_Nd, position_TK, kept_row_TK, relevance_TK, choice)

    def _candidates(self, ready: ReadyHistory, query_Td: ndarray, choice: Choice, k: int) -> Int64[ndarray, "T R"]:
        """Pairs among whose behaviours the k best are: so many pairs as behaviours would be fetched, or all."""
        targets, pairs = len(query_Td), len(ready.pairs)
        fetched = min(max(math.ceil(choice.overfetch * k), k + SLACK), pairs)
        if choice.method == "merged" or fetched == pairs:
            return np.broadcast_to(np.arange(pairs), (targets, pairs)).copy()
        packed = ready.packed
        runs = packed.runs(targets)
        index_TR, relevance_TR = np.empty((targets, fetched), np.int64), np.empty((targets, fetched), np.float32)
        scratch = scratch_for(targets, runs.longest, fetched)
        levels, (pattern, factor) = packed.levels, NO_PATTERN
        keys = runs.address, runs.rows, query_Td, levels.centre_d, levels.step
        int8.top_k(self._tag, *keys, pattern, factor, *scratch, index_TR, relevance_TR)
        return index_TR

    def rank(self, found: Found) -> Float32[ndarray, " T"]:
        """ESU and heads over what was kept: the probability of each target under the request's task."""
        return torch.sigmoid(self.logits(found)[:, found.asked.task]).numpy()

    @torch.inference_mode()
    def logits(self, found: Found) -> Float[Tensor, "T S"]:
        """The same as logits, a column a task."""
        weights, asked, ready = self.weights, found.asked, found.ready
        head, (targets, dim) = weights.head, asked.target_Td.shape
        row_TF = torch.empty(targets, len(head.of_row))
        target = torch.from_numpy(asked.target_Td)
        interest, recent = row_TF[:, :dim], row_TF[:, dim : 2 * dim]
        count_TF = self._attend(found, target, interest)
        self._recent(ready, target, recent)
        column = served.feature_rows(
            asked.target_Td,
            interest.numpy(),
            recent.numpy(),
            count_TF,
            _log_counts(found.position_TK.shape[1]),
            asked.item_T,
            weights.items.static,
            row_TF.numpy(),
        )
        self._optional(ready, asked, row_TF.numpy()[:, column:])
        of_target, start = self._first_layer(ready, asked)
        hidden = torch.addmm(start, target, of_target).addmm_(row_TF, head.of_row)
        for weight, bias in head.rest:
            hidden = torch.addmm(bias, hidden.relu_(), weight)
        return hidden

    def _attend(self, found: Found, target: Tensor, interest: Tensor) -> ndarray:
        """The ESU's interest into `interest`; SimTier counts."""
        weights, ready, asked = self.weights, found.ready, found.asked
        count_TF = np.zeros((len(target), 3 * weights.tiers), np.int32)
        if not len(ready):
            interest[:] = torch.from_numpy(weights.null)
            return count_TF
        query = torch.addmm(weights.esu.start, target, weights.esu.asked)
        pooled = torch.empty_like(query)
        heads, content = weights.esu_mix.shape[1], weights.tables.content
        shape = len(target), heads, target.shape[1]
        served.attend_kept(
            query.numpy().reshape(shape),
            found.key_Nd.ctypes.data,
            found.position_TK,
            found.row_TK,
            ready.item_L,
            ready.time_ms_L,
            asked.time_ms,
            content.ctypes.data,
            content.strides[0],
            weights.tables.item_word if weights.compares else weights.tables.item_word[:0],
            asked.item_T,
            weights.esu_bias,
            weights.esu_mix,
            pooled.numpy().reshape(shape),
            count_TF,
        )
        torch.mm(pooled, weights.esu.answered, out=interest)
        return count_TF

    def _recent(self, ready: ReadyHistory, target: Tensor, recent: Tensor) -> None:
        keys = ready.recent
        if not keys.num_rows:
            recent[:] = 0
            return
        logit = torch.addmm(keys.start, target, keys.asked)
        groups = self.weights.esu_mix.shape[1] // SIDE
        served.soften_recent(logit.numpy().reshape(len(target), groups, -1, SIDE), keys.num_rows)
        torch.mm(logit, keys.answered, out=recent)

    def _optional(self, ready: ReadyHistory, asked: Asked, out: ndarray) -> None:
        """Cross, trend and query-fit features, those that the model has."""
        items, item_T, crossed, trended = self.weights.items, asked.item_T, 0, 0
        if self.config.cross_features:
            crossed = NUM_CROSS
            hours = (asked.time_ms - ready.newest_ms) / MS_PER_HOUR
            decay = np.append(1.0, np.exp(-hours / CROSS_TAUS))
            mine, related = ready.items, ready.categories
            counts.cross_rows(
                item_T,
                items.category[item_T],
                mine.ids,
                mine.total,
                mine.latest,
                related.ids,
                related.total,
                decay,
                asked.time_ms,
                out[:, :crossed],
            )
        if self.config.trend_features:
            trended, week = NUM_TREND, asked.time_ms // MS_PER_WEEK
            trends = out[:, crossed : crossed + trended]
            counts.trend_rows(item_T, week, items.week_start, items.week, items.week_sum, TREND_TAUS, SCALE, trends)
        if self.config.query_fit:
            tables = self.weights.tables
            queries = tables.query_unit, tables.query_present, asked.unseen_Xd
            fit_rows(item_T, asked.query_T, tables.content, tables.item_word, *queries, out[:, crossed + trended :])

    def _first_layer(self, ready: ReadyHistory, asked: Asked) -> tuple[Tensor, Tensor]:
        """What multiplies a target in the head's first layer, with the user's taste in it, and what all targets share."""
        head = self.weights.head
        hours_old = max((asked.time_ms - ready.oldest_ms) / MS_PER_HOUR, 0.0) if len(ready) else 0.0
        user = np.log1p(np.array([len(ready), hours_old], np.float32)) / 8
        user = np.append(user, head.hour[hour_of_week(np.array([asked.time_ms]))]).astype(np.float32)
        taste_Sd = ready.pools.at((asked.time_ms - ready.newest_ms) / MS_PER_HOUR)
        of_target, start = np.empty_like(head.of_target), np.empty_like(head.bias)
        served.taste_head(head.of_target, head.of_taste, taste_Sd, user, head.of_user, head.bias, of_target, start)
        return torch.from_numpy(of_target), torch.from_numpy(start)


@lru_cache(maxsize=8)
def _log_counts(most: int) -> Float32[ndarray, " N"]:
    """log(1 + n) for n = 0 .. most."""
    return np.log1p(np.arange(most + 1, dtype=np.float32))
