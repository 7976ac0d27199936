"""A small catalogue with missing channels, its codes and random requests against it; and what every retriever must keep to."""

from functools import cache

import numpy as np
import torch

from seminar.codes.codebook import CatalogueCodes, Stamp, encode_block
from seminar.codes.codebook_fit import fit
from seminar.config import CodebookConfig
from seminar.retrieval.base import Keys, Probe, TopK
from seminar.retrieval.exact import ExactRetriever, MergedRetriever
from seminar.retrieval.key_space import KeySpace
from seminar.retrieval.pq import PQRetriever
from seminar.retrieval.rescored import RescoredRetriever

DIM, CHANNELS = 16, 4
COARSE = CodebookConfig(num_subquantizers=4, num_centroids=16, iterations=8, rotation="none")
STAMP = Stamp("books-1", "a" * 64)


def clustered(count: int, seed: int, dim: int = DIM) -> np.ndarray:
    draw = np.random.default_rng(seed)
    centre = np.random.default_rng(7).standard_normal((40, dim))
    vectors = centre[draw.integers(0, 40, count)] + 0.4 * draw.standard_normal((count, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


class Catalogue:
    """Items with missing channels, an eighth as many queries, their codes, and requests against them."""

    def __init__(self, num_items: int = 400, dim: int = DIM, config: CodebookConfig = COARSE) -> None:
        self.item = np.stack([clustered(num_items, m, dim) for m in (1, 2, 3)], 1)
        self.query = clustered(num_items // 8, 4, dim)
        draw = np.random.default_rng(5)
        self.item_present = draw.random((num_items, 3)) < 0.6
        self.query_present = np.ones(len(self.query), bool)
        samples = [self.query, *(self.item[self.item_present[:, m], m] for m in range(3))]
        self.books, _ = fit(samples, config, STAMP)
        item_code, _ = encode_block(self.books, (1, 2, 3), self.item, self.item_present)
        query_code = self.books.encode(0, self.query)
        self.codes = CatalogueCodes(item_code, query_code, self.item_present, self.query_present, STAMP)
        # A missing vector may be anything.
        self.item[~self.item_present] = np.nan
        transform = torch.eye(dim) + torch.randn(CHANNELS, dim, dim, generator=torch.Generator().manual_seed(2)) / dim
        self.space = KeySpace(torch.from_numpy(self.item), torch.from_numpy(self.query), transform)
        self.exact, self.merged = ExactRetriever(self.space), MergedRetriever(self.space)
        self.pq = PQRetriever(self.space, self.books, self.codes)
        self.rescored = RescoredRetriever(self.pq, self.space, 4.0)

    def keys(self, length: int, seed: int, mode: str = "behaviour") -> Keys:
        """A history; two thirds of behaviours have a query. Weights are the gate's softmax over present channels."""
        draw = np.random.default_rng(seed)
        item = draw.integers(0, len(self.item), length)
        query = np.where(draw.random(length) < 0.67, draw.integers(0, len(self.query), length), -1)
        present = np.concatenate([(query >= 0)[:, None], self.item_present[item]], 1)
        logit = np.array([0.3, -0.5, 0.8, 0.1]) if mode == "constant" else draw.standard_normal((length, CHANNELS))
        weight = np.where(present, np.exp(logit), 0)
        weight /= np.maximum(weight.sum(1, keepdims=True), 1e-30)
        as_tensor = torch.from_numpy
        return Keys(as_tensor(item), as_tensor(query), as_tensor(present), as_tensor(weight.astype(np.float32)))

    def probe(self, targets: int, seed: int, mode: str = "behaviour") -> Probe:
        """Targets near the catalogue's clusters, with gates of their own in mode `target`."""
        generator = torch.Generator().manual_seed(seed)
        query = torch.from_numpy(clustered(targets, seed * 10, self.query.shape[1]))
        return Probe(query, torch.randn(targets, CHANNELS, generator=generator).exp() if mode == "target" else None)

    def decoded(self) -> tuple[np.ndarray, np.ndarray]:
        item = np.stack([self.books.decode(m + 1, self.codes.item_code_I3S[:, m]) for m in range(3)], 1)
        return np.where(self.item_present[..., None], item, np.nan), self.books.decode(0, self.codes.query_code_QS)


@cache
def shared_catalogue() -> Catalogue:
    """The small one, built once."""
    return Catalogue()


def oracle(space: KeySpace, probe: Probe, keys: Keys, item_unit: np.ndarray, query_unit: np.ndarray) -> np.ndarray:
    """The definition in `seminar/retrieval/base.py`, one behaviour and channel at a time, in float64."""
    transform = space.transform.double().numpy()
    relevance = np.zeros((len(probe.query_Td), len(keys)))
    for t, query in enumerate(probe.query_Td.double().numpy()):
        for n, present in enumerate(keys.present_LM.numpy()):
            weight = keys.weight_LM[n].double().numpy()
            if probe.gate_TM is not None and present.any():
                gate = probe.gate_TM[t].double().numpy()
                weight = gate * present / gate[present].sum()
            for j in np.flatnonzero(present):
                unit = query_unit[keys.query_L[n]] if j == 0 else item_unit[keys.item_L[n], j - 1]
                relevance[t, n] += weight[j] * (unit.astype(np.float64) @ transform[j] @ query)
    return relevance


def check_top_k(top: TopK, truth: np.ndarray, k: int) -> None:
    """A TopK keeps the contract of `seminar/retrieval/base.py` and holds the k largest of `truth` [T, L]."""
    targets, length = truth.shape
    kept = min(k, length)
    index, relevance = top.index_TK.numpy(), top.relevance_TK.numpy()
    assert index.shape == relevance.shape == (targets, k)
    assert (index[:, kept:] == -1).all()
    assert np.isneginf(relevance[:, kept:]).all()
    assert ((index[:, :kept] >= 0) & (index[:, :kept] < length)).all()
    assert (np.diff(index[:, :kept], axis=1) > 0).all()
    np.testing.assert_allclose(relevance[:, :kept], np.take_along_axis(truth, index[:, :kept], 1), atol=2e-6)
    np.testing.assert_allclose(-np.sort(-relevance[:, :kept], axis=1), -np.sort(-truth, axis=1)[:, :kept], atol=2e-6)
