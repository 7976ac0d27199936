"""A history made ready for the compiled scorer: all that its requests share, whatever their targets and their moment.

Float keys, packed keys, counts by item and category, pools of the newest, and the recent branch folded to its keys. Valid for one
history in the rows of one bundle, and for moments that are no earlier than its newest behaviour.

A key depends on item and query alone, and people come back to what they know: keys are held and searched once a distinct pair
(of a household's 600 behaviours some 380, of 100,000 a quarter).
"""

from dataclasses import dataclass, fields

import numpy as np
import torch
from jaxtyping import Float32, Float64, Int64
from numpy import ndarray
from torch import Tensor

from seminar.batching import MS_PER_HOUR
from seminar.compiled.weights import Recent, Tables, Weights
from seminar.config import ModelConfig
from seminar.features import DECAY_HOURS as CROSS_HOURS
from seminar.kernels import counts, served
from seminar.kernels.distinct import distinct
from seminar.kernels.floats import SIDE
from seminar.kernels.merge import merge_pairs
from seminar.retrieval.int8 import PackedKeys
from seminar.taste import DECAY_HOURS as TASTE_HOURS

FLOATS = 131_072
"""Most distinct pairs whose float keys are kept, 256 bytes each at d = 64; of more, candidates are merged again, which costs 2 ms
where 8,000 are to be found among 100,000."""


@dataclass(frozen=True)
class Pairs:
    """The P distinct (item, query) of a history in the order of their newest behaviours: so of equal keys the search keeps those
    whose behaviours are kept. of_L: each behaviour's; pair p's, oldest first, are position[start[p] : start[p + 1]]."""

    item_P: Int64[ndarray, " P"]
    query_P: Int64[ndarray, " P"]
    of_L: Int64[ndarray, " L"]
    start: Int64[ndarray, " P1"]
    position: Int64[ndarray, " L"]

    @classmethod
    def of(cls, item_L: Int64[ndarray, " L"], query_L: Int64[ndarray, " L"]) -> "Pairs":
        """From columns of catalogue rows; query -1: none."""
        queries = int(query_L.max(initial=-1)) + 2
        from_last_L, position = np.empty_like(item_L), np.empty_like(item_L)
        code_P = distinct((item_L * queries + query_L + 1)[::-1].copy(), from_last_L)[::-1]
        of_L = len(code_P) - 1 - from_last_L[::-1]
        start = np.empty(len(code_P) + 1, np.int64)
        served.group_pairs(of_L, start, position)
        return cls(code_P // queries, code_P % queries - 1, of_L, start, position)

    def __len__(self) -> int:
        return len(self.item_P)


@dataclass(frozen=True)
class Counts:
    """Behaviours by id, ascending; total: plain and decayed to the newest behaviour; latest: time of each id's newest."""

    ids: Int64[ndarray, " G"]
    total: Float64[ndarray, "G F"]
    latest: Int64[ndarray, " G"]


@dataclass(frozen=True)
class RecentKeys:
    """The newest keys: logits of C = rows x heads are target @ asked + start, the interest weights @ answered."""

    asked: Tensor
    start: Tensor
    answered: Tensor
    num_rows: int


@dataclass(frozen=True)
class Pools:
    """Projected sums of the newest merged keys, decayed to the newest behaviour, and the sums of their weights."""

    sum_Sd: Float64[ndarray, "S d"]
    weight_S: Float64[ndarray, " S"]

    def at(self, hours: float) -> Float32[ndarray, "S d"]:
        """Their means so many hours later; `Taste.weights` says what becomes of histories that lie long ago."""
        decay_S = np.exp(-hours / np.array(TASTE_HOURS[: len(self.weight_S)]))
        mean_Sd = self.sum_Sd * (decay_S / np.maximum(self.weight_S * decay_S, 1e-9))[:, None]
        return mean_Sd.astype(np.float32)


@dataclass(frozen=True)
class ReadyHistory:
    """key_Pd: merged keys of the pairs, of no more than FLOATS. packed: the same in 8 bits. Times in Unix ms."""

    item_L: Int64[ndarray, " L"]
    time_ms_L: Int64[ndarray, " L"]
    pairs: Pairs
    key_Pd: Float32[ndarray, "P d"] | None
    packed: PackedKeys
    newest_ms: int
    oldest_ms: int
    recent: RecentKeys
    pools: Pools
    items: Counts
    categories: Counts

    def __len__(self) -> int:
        return len(self.item_L)

    @property
    def nbytes(self) -> int:
        """Memory it holds beside the columns that it was made from."""
        held = [self.key_Pd, self.packed.packed]
        held += [getattr(part, f.name) for part in (self.pairs, self.items, self.categories) for f in fields(part)]
        recent = [self.recent.asked, self.recent.start, self.recent.answered]
        return sum(array.nbytes for array in (*held, *recent) if array is not None)


def ready_history(
    weights: Weights,
    config: ModelConfig,
    item_L: Int64[ndarray, " L"],
    query_L: Int64[ndarray, " L"],
    time_ms_L: Int64[ndarray, " L"],
) -> ReadyHistory:
    """Make a history ready: .2 us a behaviour of a long one, .7 of one with 600."""
    item_L, query_L, time_ms_L = (np.ascontiguousarray(column, np.int64) for column in (item_L, query_L, time_ms_L))
    length, newest_ms = len(item_L), int(time_ms_L.max()) if len(time_ms_L) else 0
    pairs = Pairs.of(item_L, query_L)
    key_Pd = merged(weights.tables, pairs.item_P, pairs.query_P)
    newest = slice(max(0, length - max(config.recent, config.taste)), None)
    newest_Nd = key_Pd[pairs.of_L[newest]]
    category_L = weights.items.category[item_L]
    return ReadyHistory(
        item_L=item_L,
        time_ms_L=time_ms_L,
        pairs=pairs,
        key_Pd=key_Pd if len(pairs) <= FLOATS else None,
        packed=PackedKeys.of(key_Pd),
        newest_ms=newest_ms,
        oldest_ms=int(time_ms_L.min()) if length else 0,
        recent=_recent(weights.recent, newest_Nd[max(0, len(newest_Nd) - config.recent) :]),
        pools=_pools(weights.taste, newest_Nd, time_ms_L[newest], newest_ms, config.taste),
        items=_counts(item_L, time_ms_L, newest_ms),
        categories=_counts(category_L, time_ms_L, newest_ms),
    )


def merged(
    tables: Tables,
    item_N: Int64[ndarray, " N"],
    query_N: Int64[ndarray, " N"],
    unseen_Xd: Float32[ndarray, "X d"] | None = None,
    unseen_key_Xd: Float32[ndarray, "X d"] | None = None,
) -> Float32[ndarray, "N d"]:
    """Merged keys of pairs. Query rows behind the catalogue's are rows of unseen_Xd, unit vectors, and of their keys."""
    none = tables.query_key[:0]
    new_key = none if unseen_key_Xd is None else unseen_key_Xd
    new_logit = tables.query_logit[:0] if unseen_Xd is None else tables.logit + unseen_Xd @ tables.direction_d
    merged_Nd = np.empty((len(item_N), tables.item_key.shape[2]), np.float32)
    merge_pairs(
        item_N,
        query_N,
        tables.item_key,
        tables.item_logit,
        tables.item_word,
        tables.query_key,
        tables.query_logit,
        tables.query_present,
        new_key,
        new_logit,
        merged_Nd,
    )
    return merged_Nd


def _recent(fold: Recent, key_Nd: Float32[ndarray, "N d"]) -> RecentKeys:
    """Columns as `kernels/served.soften_recent` takes them: [groups of 4 heads, rows up to a multiple of 4, 4 heads]."""
    heads, dim = fold.start.shape
    rows = -(-len(key_Nd) // SIDE) * SIDE
    key_Rd = np.zeros((rows, dim), np.float32)
    key_Rd[: len(key_Nd)] = key_Nd

    def columns(of_heads: ndarray) -> ndarray:
        grouped = of_heads.reshape(heads // SIDE, SIDE, rows, of_heads.shape[2])
        return np.ascontiguousarray(grouped.transpose(0, 2, 1, 3)).reshape(heads * rows, of_heads.shape[2])

    asked = columns(np.matmul(key_Rd, fold.asked.transpose(0, 2, 1)))
    start = columns((fold.start @ key_Rd.T)[..., None])
    answered = columns(np.matmul(key_Rd, fold.answered))
    return RecentKeys(
        torch.from_numpy(asked.T.copy()), torch.from_numpy(start[:, 0].copy()), torch.from_numpy(answered), len(key_Nd)
    )


def _pools(
    project_Sde: Float32[ndarray, "S d e"],
    key_Nd: Float32[ndarray, "N d"],
    time_ms_N: Int64[ndarray, " N"],
    newest_ms: int,
    counted: int,
) -> Pools:
    pools = len(project_Sde)
    key_Nd, time_ms_N = (column[max(0, len(key_Nd) - counted) :] for column in (key_Nd, time_ms_N))
    hours_N = (newest_ms - time_ms_N) / MS_PER_HOUR
    weight_SN = np.exp(-hours_N / np.array(TASTE_HOURS[:pools])[:, None])
    sum_Sd = np.einsum("sd,sde->se", weight_SN @ key_Nd, project_Sde)
    return Pools(sum_Sd, weight_SN.sum(1))


def _counts(id_L: Int64[ndarray, " L"], time_ms_L: Int64[ndarray, " L"], newest_ms: int) -> Counts:
    group_L = np.empty(len(id_L), np.int64)
    ids = distinct(id_L, group_L)
    total, latest = np.zeros((len(ids), 1 + len(CROSS_HOURS))), np.full(len(ids), np.iinfo(np.int64).min)
    counts.sum_groups(group_L, time_ms_L, newest_ms, np.array(CROSS_HOURS), total, latest)
    order = np.argsort(ids)
    return Counts(ids[order], total[order], latest[order])
