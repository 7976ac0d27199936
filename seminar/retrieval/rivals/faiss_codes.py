"""Histories behind faiss's product-quantiser indexes: trained once, then one history at a time, on one thread."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from numpy import ndarray
from torch import Tensor

from seminar.errors import ConfigError, explain
from seminar.faiss_extra import faiss_module
from seminar.kernels.rescore import best_of
from seminar.retrieval.base import Keys, Probe, TopK
from seminar.retrieval.key_space import KeySpace, target_scale
from seminar.retrieval.rivals.forms import Form, arranged, asked

RESERVOIR = 21
"""FastScan keeps the first of equals from this many results on (a reservoir); below it uses a heap, which does not."""


@contextmanager
def one_thread() -> Iterator[None]:
    """faiss on one thread, as every other method; OpenMP keeps the number for each calling thread, and it is put back."""
    faiss = faiss_module("a faiss retriever")
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)


class CodeRetriever:
    """Codes of merged, gated or separate keys (`rivals/forms.py`).

    trained: a faiss index without vectors. first_of_equals: whether its search keeps those that were added first.
    """

    def __init__(self, space: KeySpace, form: Form, name: str, trained: Any, *, first_of_equals: bool) -> None:
        self.space, self.form, self.name, self.trained = space, form, name, trained
        self.first_of_equals = first_of_equals
        self.bytes_per_behaviour = float(trained.pq.M * trained.pq.nbits / 8)

    @torch.no_grad()
    def index(self, keys: Keys) -> "CodeIndex":
        """Encode one history."""
        return CodeIndex(self, keys)


def train(index: Any, sample_ND: Float32[ndarray, "N D"]) -> Any:
    """Train a fresh index on one thread; ConfigError if there are fewer keys than centroids or they have another width."""
    centroids = 1 << index.pq.nbits
    if len(sample_ND) < centroids or sample_ND.shape[1] != index.d:
        expected = f"at least {centroids} of width {index.d}"
        raise ConfigError(explain("keys to train on", got=sample_ND.shape, expected=expected, fix="draw them by sample_keys"))
    with one_thread():
        index.train(np.ascontiguousarray(sample_ND))
    return index


@dataclass(frozen=True)
class Group:
    """Behaviours whose scores a target scales alike: all of them, or under its gate those with the same channels.

    position_N: where in the history each row of the faiss index stands, newest first. scaled: one of them, unless none is scaled.
    """

    index: Any
    position_N: Int64[ndarray, " N"]
    scaled: Keys | None


class CodeIndex:
    """Codes of one history."""

    def __init__(self, retriever: CodeRetriever, keys: Keys) -> None:
        self._retriever, self._length = retriever, len(keys)
        key_LD = arranged(retriever.space, keys, retriever.form).numpy()
        with one_thread():
            self._groups = [self._encode(key_LD, keys, rows) for rows in _alike(keys, retriever.form) if len(rows)]

    def __len__(self) -> int:
        return self._length

    def relevance(self, probe: Probe) -> Float[Tensor, "T L"]:
        """By codes, as faiss computes it (FastScan: with look-up tables in 8 bits)."""
        relevance_TL = np.empty((len(probe.query_Td), len(self)), np.float32)
        for position_TN, relevance_TN in self._search(probe, len(self)):
            np.put_along_axis(relevance_TL, position_TN, relevance_TN, 1)
        return torch.from_numpy(relevance_TL)

    def top_k(self, probe: Probe, k: int) -> TopK:
        """The K best by codes."""
        targets, found = len(probe.query_Td), self._search(probe, k)
        if len(found) != 1:
            none = np.empty((targets, 0), np.int64), np.empty((targets, 0), np.float32)
            found = [tuple(map(np.hstack, zip(none, *found, strict=True)))]
        position_TN, relevance_TN = found[0]
        position_TN, relevance_TN = _oldest_first(position_TN, relevance_TN)
        if position_TN.shape[1] == k:
            return TopK(torch.from_numpy(position_TN), torch.from_numpy(relevance_TN))
        index_TK, relevance_TK = np.empty((targets, k), np.int64), np.empty((targets, k), np.float32)
        best_of(position_TN, relevance_TN, index_TK, relevance_TK)
        return TopK(torch.from_numpy(index_TK), torch.from_numpy(relevance_TK))

    def _encode(self, key_LD: Float32[ndarray, "L D"], keys: Keys, rows: Int64[ndarray, " N"]) -> Group:
        index, newest_first = faiss_module("a faiss retriever").clone_index(self._retriever.trained), rows[::-1].copy()
        index.add(key_LD[newest_first])
        return Group(index, newest_first, keys[torch.from_numpy(rows[:1])] if self._retriever.form == "parts" else None)

    def _search(self, probe: Probe, k: int) -> list[tuple[Int64[ndarray, "T N"], Float32[ndarray, "T N"]]]:
        """Positions and relevance of at least the k best (or all) of every group."""
        retriever = self._retriever
        query_TD = asked(probe, retriever.form, retriever.space.num_channels)
        found: list[tuple[ndarray, ndarray]] = []
        with one_thread():
            for group in self._groups if len(query_TD) and k else []:
                score_TN, id_TN = _newest_best(group.index, query_TD, k, retriever.first_of_equals)
                if group.scaled is not None and probe.gate_TM is not None:
                    score_TN *= target_scale(probe.gate_TM.detach(), group.scaled).numpy()
                found.append((group.position_N[id_TN], score_TN))
        return found


def _alike(keys: Keys, form: Form) -> list[Int64[ndarray, " N"]]:
    if form != "parts":
        return [np.arange(len(keys))]
    pattern_L = keys.present_LM.numpy() @ (1 << np.arange(keys.present_LM.shape[1]))
    return [np.flatnonzero(pattern_L == pattern) for pattern in np.unique(pattern_L)]


def _newest_best(
    index: Any, query_TD: Float32[ndarray, "T D"], k: int, first_of_equals: bool
) -> tuple[Float32[ndarray, "T N"], Int64[ndarray, "T N"]]:
    """Scores and ids of at least the k best, the first added of equals."""
    fetched = min(max(k, RESERVOIR) if first_of_equals else k + 1, index.ntotal)
    score_TN, id_TN = index.search(query_TD, fetched)
    # Only of the least score returned may others be left out: that must lie below the k-th.
    while not first_of_equals and fetched < index.ntotal and (score_TN[:, k - 1] == score_TN[:, -1]).any():
        fetched = min(2 * fetched, index.ntotal)
        score_TN, id_TN = index.search(query_TD, fetched)
    # FastScan leaves out what scores the least possible, and says that score.
    for t in np.flatnonzero(id_TN.min(1) < 0) if id_TN.min() < 0 else ():
        missing = id_TN[t] < 0
        id_TN[t, missing] = np.setdiff1d(np.arange(index.ntotal), id_TN[t])[: missing.sum()]
    return score_TN, id_TN


def _oldest_first(
    position_TN: Int64[ndarray, "T N"], relevance_TN: Float32[ndarray, "T N"]
) -> tuple[Int64[ndarray, "T N"], Float32[ndarray, "T N"]]:
    """Both in increasing order of position. One sort of packed words: argsort and two gathers cost as much as faiss's search."""
    packed_TN = (position_TN << 32) | relevance_TN.view(np.uint32)
    packed_TN.sort(1)
    return packed_TN >> 32, packed_TN.astype(np.uint32).view(np.float32)
