"""A bundle's ranker as the compiled scorer reads it: projections folded to the target's side, tables by catalogue row.

Every fold is exact algebra in float64: what is multiplied with the target is multiplied together first. Heads are padded to a
multiple of 4 with zeros, as the kernels hold four of them.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int32, Int64
from numpy import ndarray
from torch import Tensor

from seminar.attention import TargetAttention
from seminar.config import ModelConfig
from seminar.esu import NUM_CONTENT
from seminar.features import NUM_CROSS, NUM_ITEM, NUM_USER, item_features
from seminar.heads import NUM_FIT, Heads
from seminar.history_search import Catalogue
from seminar.kernels.floats import SIDE, WIDTH
from seminar.retrieval.key_space import KeySpace
from seminar.schema import NUM_CHANNELS, QUERY
from seminar.trend import NUM_TREND, weeks_of_items

Array = Float32[ndarray, "..."]


@dataclass(frozen=True)
class Tables:
    """What a pair's merged key is made of, and what its item and query are compared by; see `kernels/merge.py`.

    content, query_unit: unit vectors of items, [I, 3, d], and of queries. direction_d, logit: the query
    channel's gate, for queries outside the catalogue.
    """

    item_key: Float32[ndarray, "I 3 d"]
    item_logit: Float32[ndarray, "I 3"]
    item_word: Int32[ndarray, " I"]
    query_key: Float32[ndarray, "Q d"]
    query_logit: Float32[ndarray, " Q"]
    query_present: Bool[ndarray, " Q"]
    content: Float32[ndarray, "I 3 d"]
    query_unit: Float32[ndarray, "Q d"]
    direction_d: Float32[ndarray, " d"]
    logit: float


@dataclass(frozen=True)
class Attention:
    """asked, start: a target's folded queries [d, H d] and their constant; answered [H d, d]: pooled keys to interest."""

    asked: Tensor
    start: Tensor
    answered: Tensor


@dataclass(frozen=True)
class Recent:
    """As `Attention`, folded to the side of the few newest keys: each becomes a query of the target and an answer, a head.

    asked [H, d, d], start [H, d], answered [H, d, d].
    """

    asked: Array
    start: Array
    answered: Array


@dataclass(frozen=True)
class HeadWeights:
    """The scoring MLP, its first layer by what it reads. of_taste: rows of the inner products, which are sums, are added to it.

    of_row: interest, recent, both times the target, SimTier, item, cross, trend and query-fit features.
    rest: later layers, transposed.
    """

    of_target: Float32[ndarray, "d N"]
    of_taste: Float32[ndarray, "S d N"]
    of_user: Float32[ndarray, "U N"]
    bias: Float32[ndarray, " N"]
    of_row: Tensor
    rest: tuple[tuple[Tensor, Tensor], ...]
    hour: Float32[ndarray, "168 h"]


@dataclass(frozen=True)
class ItemFeatures:
    """static: popularity features. Item i's weeks with a count are entries week_start[i] .. week_start[i + 1]."""

    static: Float32[ndarray, "I F"]
    category: Int64[ndarray, " I"]
    week_start: Int64[ndarray, " I1"]
    week: Int64[ndarray, " E"]
    week_sum: Float32[ndarray, "E F2"]


@dataclass(frozen=True)
class Weights:
    """All of it. esu_mix [3, H] and esu_bias [E, H] as `kernels/esu.py` takes them; tiers: SimTier bins, compares: cosines."""

    tables: Tables
    search: Attention
    esu: Attention
    esu_mix: Array
    esu_bias: Array
    tiers: int
    compares: bool
    null: Array
    taste: Array
    recent: Recent
    head: HeadWeights
    items: ItemFeatures

    @classmethod
    @torch.no_grad()
    def of(cls, catalogue: Catalogue, space: KeySpace) -> "Weights":
        """Fold a bundle's ranker, or another over unit tables; takes a second and some 70 bytes an item beside `space`."""
        ranker, esu = catalogue.ranker, catalogue.ranker.esu
        num_heads = ranker.config.num_heads
        mix = torch.tensor([[1.0, 0.0, 0.0]]).expand(num_heads, 3)
        if esu.mix is not None:
            mix = torch.cat([esu.mix[:, :1], esu.mix[:, 1:] / esu.log_temperature.exp()], 1)
        bias = torch.zeros(1, num_heads) if esu.age_bias is None else esu.age_bias
        project = ranker.taste.project
        return cls(
            tables=_tables(catalogue, space),
            search=_search(ranker.gsu.attention),
            esu=_esu(esu.attention),
            esu_mix=_of_heads(mix.T),
            esu_bias=_of_heads(bias),
            tiers=esu.num_tiers,
            compares=esu.mix is not None or bool(esu.num_tiers),
            null=_array(esu.null),
            taste=np.empty((0, space.dim, space.dim), np.float32) if project is None else _array(project),
            recent=_recent(ranker.heads.recent),
            head=_head(ranker.heads, space.dim, esu.num_features, ranker.taste.pools),
            items=_items(ranker.heads),
        )


def uncovered(config: ModelConfig) -> str | None:
    """Why a model cannot be compiled, so that torch scores it; None if it can."""
    if config.gate == "target":
        return "model.gate 'target' keeps channels apart"
    return None if config.dim % WIDTH == 0 else f"model.dim {config.dim} is no multiple of {WIDTH}"


def _tables(catalogue: Catalogue, space: KeySpace) -> Tables:
    units, gate = catalogue.units, catalogue.ranker.gsu.gate
    direction = torch.zeros(NUM_CHANNELS, space.dim) if gate.mode == "constant" else gate.direction
    first = QUERY + 1
    item_logit = gate.logit[first:] + torch.einsum("icd,cd->ic", units.item_unit, direction[first:])
    word = units.item_present.numpy().astype(np.int32) @ (1 << 8 * np.arange(NUM_CONTENT, dtype=np.int32))
    return Tables(
        item_key=space.item_key_I3d.numpy(),
        # A missing vector may hold anything; its logit is not read.
        item_logit=_array(item_logit),
        item_word=word.astype(np.int32),
        query_key=space.query_key_Qd.numpy(),
        query_logit=_array(gate.logit[QUERY] + units.query_unit @ direction[QUERY]),
        query_present=units.query_present.numpy(),
        content=units.item_unit.contiguous().numpy(),
        query_unit=units.query_unit.contiguous().numpy(),
        direction_d=_array(direction[QUERY]),
        logit=float(gate.logit[QUERY]),
    )


def _search(attention: TargetAttention) -> Attention:
    of_target, of_key = (w.double().transpose(0, 1).flatten(1) for w in (attention.wq, attention.wk))
    scale = math.sqrt(attention.dim)
    start = attention.bq.double().flatten() @ of_key.T / scale
    return Attention((of_target @ of_key.T / scale).float().contiguous(), start.float(), torch.empty(0))


def _folded(attention: TargetAttention) -> tuple[Tensor, Tensor, Tensor]:
    """[H, d, d] from target to the query of a head, [H, d] its constant, [H, d, d] from a pooled key to the interest."""
    wq, wk, wv = (w.double() for w in (attention.wq, attention.wk, attention.wv))
    scale = math.sqrt(attention.dim)
    asked = torch.einsum("hde,hfe->hdf", wq, wk) / scale
    start = torch.einsum("he,hfe->hf", attention.bq.double(), wk) / scale
    answered = torch.einsum("hde,hef->hdf", wv, attention.wo.double().unflatten(0, (attention.num_heads, -1)))
    return asked, start, answered


def _esu(attention: TargetAttention) -> Attention:
    asked, start, answered = (_more_heads(part) for part in _folded(attention))
    return Attention(asked.transpose(0, 1).flatten(1).contiguous(), start.flatten(), answered.flatten(0, 1).contiguous())


def _recent(attention: TargetAttention) -> Recent:
    return Recent(*(_more_heads(part).numpy() for part in _folded(attention)))


def _more_heads(of_heads: Tensor) -> Tensor:
    """Zeros behind the heads, up to a multiple of 4."""
    short = -len(of_heads) % SIDE
    return torch.cat([of_heads, of_heads.new_zeros(short, *of_heads.shape[1:])]).float().contiguous()


def _of_heads(columns: Tensor) -> Array:
    return _more_heads(columns.T).T.contiguous().numpy()


def _head(heads: Heads, dim: int, tiers: int, pools: int) -> HeadWeights:
    linear = [layer for layer in heads.head if isinstance(layer, torch.nn.Linear)] + [heads.out]
    crossed, trended, fitted = NUM_CROSS * heads.crossed, NUM_TREND * heads.trended, NUM_FIT * heads.fitted
    widths = [*[dim] * 5, tiers, pools * dim, pools, crossed, NUM_ITEM, trended, fitted, NUM_USER + heads.hour.shape[1]]
    parts = linear[0].weight.T.split(widths)
    interest, recent, target, of_interest, of_recent, tier, taste, sums, cross, item, trend, fit, user = parts
    of_taste = taste.unflatten(0, (pools, dim)) + sums[:, None] if pools else taste.new_zeros(0, dim, taste.shape[1])
    return HeadWeights(
        of_target=_array(target),
        of_taste=_array(of_taste),
        of_user=_array(user),
        bias=_array(linear[0].bias),
        of_row=torch.cat([interest, recent, of_interest, of_recent, tier, item, cross, trend, fit]).contiguous(),
        rest=tuple((layer.weight.T.contiguous(), layer.bias.detach().clone()) for layer in linear[1:]),
        hour=_array(heads.hour),
    )


def _items(heads: Heads) -> ItemFeatures:
    static = item_features(heads.train_count[None], heads.category_mean[None], float(heads.train_total))[0]
    start, week = weeks_of_items(heads.week_key.numpy(), len(heads.train_count))
    category = heads.category_index.numpy().astype(np.int64)
    return ItemFeatures(_array(static), category, start, week, _array(heads.week_sum))


def _array(tensor: Tensor) -> Array:
    return np.ascontiguousarray(tensor.detach().numpy(), np.float32)
