"""The graph cascade: an HNSW index a channel, the union of what they find, re-ranked exactly.

Each list knows one channel of a behaviour, so what is good in all channels and best in none is never found: on unrelated channels
the cascade loses recall however well its graphs are searched, on aligned ones it does not. Building costs seconds a long history.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from numpy import ndarray
from torch import Tensor

from seminar.faiss_extra import faiss_module
from seminar.kernels.rescore import best_of
from seminar.retrieval.base import Keys, Probe, TopK
from seminar.retrieval.exact import ExactRetriever
from seminar.retrieval.key_space import KeySpace
from seminar.retrieval.rescored import LookedUp
from seminar.retrieval.rivals.faiss_codes import one_thread
from seminar.schema import NONE, QUERY


@dataclass(frozen=True)
class ChannelProbe(Probe):
    """A probe that also keeps the target's channels apart, as the paper's M^2 lists need.

    channel_query_TMd: u folded from each channel of the target alone. Everything but the choice of candidates reads query_Td.
    """

    channel_query_TMd: Float[Tensor, "T M d"] = field(kw_only=True)


@dataclass(frozen=True)
class HNSWSettings:
    """links: neighbours a node, twice as many on the lowest level. list_length: what a list gives, as a multiple of K.

    ef_construction, ef_search: candidates kept while building and while searching (never fewer than a list gives).
    """

    links: int = 32
    ef_construction: int = 200
    ef_search: int = 128
    list_length: float = 1.0


class HNSWRetriever:
    """Lists of the nearest unit vectors of each channel -> union -> exact re-rank.

    A ChannelProbe gives the paper's M^2 lists: each channel of the target searches each channel of the behaviours. Any other
    probe gives M lists: u, folded from all of the target's channels, searches each. Gates of any mode count in the re-rank only,
    for within one list they change nothing (target) or are not part of its vectors (behaviour).
    """

    name = "hnsw cascade"

    def __init__(self, space: KeySpace, settings: HNSWSettings | None = None) -> None:
        self.space, self.settings = space, settings or HNSWSettings()
        # Resident, not scanned: a vector and the links of the lowest level, for each channel.
        self.bytes_per_behaviour = float(space.num_channels * (4 * space.dim + 8 * self.settings.links))

    @torch.no_grad()
    def index(self, keys: Keys) -> "HNSWIndex":
        """Build the graphs of one history."""
        return HNSWIndex(self, keys)


@dataclass(frozen=True)
class ChannelGraph:
    """Graph of one channel's distinct vectors. position_N: behaviours that have the channel; node_N: their vectors.

    Repeats are one node: a graph of many equal vectors falls apart.
    """

    graph: Any
    position_N: Int64[ndarray, " N"]
    node_N: Int64[ndarray, " N"]


class HNSWIndex:
    """Graphs of one history, and its keys to re-rank from."""

    def __init__(self, retriever: HNSWRetriever, keys: Keys) -> None:
        self._retriever, self._keys = retriever, keys
        with one_thread():
            self._channels = [self._build(channel) for channel in range(retriever.space.num_channels)]

    def __len__(self) -> int:
        return len(self._keys)

    @torch.no_grad()
    def relevance(self, probe: Probe) -> Float[Tensor, "T L"]:
        """Exact: graphs only choose whom it is computed for."""
        return ExactRetriever(self._retriever.space).index(self._keys).relevance(probe)

    @torch.no_grad()
    def top_k(self, probe: Probe, k: int) -> TopK:
        """The K most relevant of the union."""
        candidate_TL = self.union(probe, math.ceil(self._retriever.settings.list_length * k))
        # A union of fewer than K chooses nothing: all are re-ranked.
        candidate_TL |= candidate_TL.sum(1, keepdims=True) < min(k, len(self))
        position_TR = _positions(candidate_TL)
        exact_TR = LookedUp(self._retriever.space, self._keys).relevance_at(probe, torch.from_numpy(position_TR))
        index_TK, relevance_TK = np.empty((len(position_TR), k), np.int64), np.empty((len(position_TR), k), np.float32)
        best_of(position_TR, exact_TR.numpy(), index_TK, relevance_TK)
        return TopK(torch.from_numpy(index_TK), torch.from_numpy(relevance_TK))

    def union(self, probe: Probe, length: int) -> Bool[ndarray, "T L"]:
        """Whose vector is among the `length` nearest distinct ones of any list."""
        asked_TId = probe.channel_query_TMd if isinstance(probe, ChannelProbe) else probe.query_Td[:, None]
        asked_TIMd = torch.einsum("mde,tie->timd", self._retriever.space.transform, asked_TId)
        found_TL = np.zeros((len(asked_TId), len(self)), bool)
        ef_search = max(self._retriever.settings.ef_search, length)
        with one_thread():
            for channel, vector_TId in zip(self._channels, asked_TIMd.unbind(2), strict=True):
                if channel is not None and length and len(found_TL):
                    found_TU = _nearest_nodes(channel.graph, vector_TId, length, ef_search)
                    found_TL[:, channel.position_N] |= found_TU[:, channel.node_N]
        return found_TL

    def _build(self, channel: int) -> ChannelGraph | None:
        space, settings = self._retriever.space, self._retriever.settings
        position_N = np.flatnonzero(self._keys.present_LM[:, channel].numpy())
        if not len(position_N):
            return None
        table = space.query_unit if channel == QUERY else space.item_unit[:, channel - 1]
        row_L = self._keys.query_L if channel == QUERY else self._keys.item_L
        row_U, node_N = np.unique(row_L.numpy()[position_N], return_inverse=True)
        faiss = faiss_module("a faiss retriever")
        graph = faiss.IndexHNSWFlat(space.dim, settings.links, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction = settings.ef_construction
        graph.add(table[torch.from_numpy(row_U)].contiguous().numpy())
        return ChannelGraph(graph, position_N, node_N)


def _nearest_nodes(graph: Any, asked_TId: Float[Tensor, "T I d"], length: int, ef_search: int) -> Bool[ndarray, "T U"]:
    """Nodes among the nearest of any of a target's I vectors."""
    faiss = faiss_module("a faiss retriever")
    settings = faiss.SearchParametersHNSW(efSearch=ef_search)
    asked_Nd = np.ascontiguousarray(asked_TId.flatten(0, 1).numpy())
    _, node_Nl = graph.search(asked_Nd, min(length, graph.ntotal), params=settings)
    # The last column takes what was not found (-1).
    found_TU = np.zeros((len(asked_TId), graph.ntotal + 1), bool)
    np.put_along_axis(found_TU, node_Nl.reshape(len(asked_TId), -1), True, 1)
    return found_TU[:, :-1]


def _positions(candidate_TL: Bool[ndarray, "T L"]) -> Int64[ndarray, "T R"]:
    """Positions of the candidates of each row, increasing, -1 behind."""
    count_T = candidate_TL.sum(1)
    target_N, position_N = candidate_TL.nonzero()
    column_N = np.arange(len(target_N)) - np.repeat(count_T.cumsum() - count_T, count_T)
    position_TR = np.full((len(candidate_TL), int(count_T.max(initial=0))), NONE, np.int64)
    position_TR[target_N, column_N] = position_N
    return position_TR
