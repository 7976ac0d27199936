from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seminar.codes.codebook import CatalogueCodes, Stamp, encode_block
from seminar.codes.codebook_fit import fit
from seminar.config import CodebookConfig
from seminar.errors import ArtifactError, VersionMismatch
from seminar.retrieval.base import Keys, Probe, TopK
from seminar.retrieval.exact import ExactRetriever, recall_curve
from seminar.retrieval.pq import PQRetriever, symmetric_relevance

DIM, CHANNELS = 16, 4
COARSE = CodebookConfig(num_subquantizers=4, num_centroids=16, iterations=8)
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
        self.exact = ExactRetriever(torch.from_numpy(self.item), torch.from_numpy(self.query))
        self.pq = PQRetriever(self.books, self.codes, self.exact, overfetch=4)

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
        vector = torch.from_numpy(np.stack([clustered(targets, seed * 10 + m, self.query.shape[1]) for m in range(CHANNELS)], 1))
        return Probe(vector, torch.randn(targets, CHANNELS, generator=generator).exp() if mode == "target" else None)

    def decoded(self) -> tuple[np.ndarray, np.ndarray]:
        item = np.stack([self.books.decode(m + 1, self.codes.item_code_I3S[:, m]) for m in range(3)], 1)
        return np.where(self.item_present[..., None], item, np.nan), self.books.decode(0, self.codes.query_code_QS)


@pytest.fixture(scope="module")
def world() -> Catalogue:
    return _shared()


def oracle(probe: Probe, keys: Keys, item_unit: np.ndarray, query_unit: np.ndarray) -> np.ndarray:
    """The definition in Probe's docstring, one behaviour and channel at a time, in float64."""
    relevance = np.zeros((len(probe.vector_TMd), len(keys.item_L)))
    for t, vector in enumerate(probe.vector_TMd.double().numpy()):
        for n, present in enumerate(keys.present_LM.numpy()):
            weight = keys.weight_LM[n].double().numpy()
            if probe.gate_TM is not None and present.any():
                gate = probe.gate_TM[t].double().numpy()
                weight = gate * present / gate[present].sum()
            for j in np.flatnonzero(present):
                unit = query_unit[keys.query_L[n]] if j == 0 else item_unit[keys.item_L[n], j - 1]
                relevance[t, n] += weight[j] * (vector[j] @ unit.astype(np.float64))
    return relevance


MODES = pytest.mark.parametrize("mode", ["constant", "target", "behaviour"])


@MODES
def test_exact_relevance_is_its_definition(world: Catalogue, mode: str) -> None:
    probe, keys = world.probe(5, 1, mode), world.keys(60, 2, mode)
    expected = oracle(probe, keys, world.item, world.query)
    np.testing.assert_allclose(world.exact.relevance(probe, keys), expected, atol=1e-6)


@MODES
def test_codes_give_the_relevance_of_decoded_keys(world: Catalogue, mode: str) -> None:
    probe, keys = world.probe(5, 3, mode), world.keys(60, 4, mode)
    expected = oracle(probe, keys, *world.decoded())
    np.testing.assert_allclose(world.pq.relevance(probe, keys), expected, atol=1e-5 * np.abs(expected).max())


@given(
    length=st.integers(0, 40),
    targets=st.integers(1, 6),
    k=st.integers(1, 50),
    seed=st.integers(0, 1000),
    mode=st.sampled_from(["constant", "target", "behaviour"]),
)
@settings(max_examples=60, deadline=None)
def test_top_k_never_returns_padding_and_keeps_the_best(length: int, targets: int, k: int, seed: int, mode: str) -> None:
    world = _shared()
    probe, keys = world.probe(targets, seed, mode), world.keys(length, seed + 1, mode)
    truth = oracle(probe, keys, world.item, world.query)
    # With 4 K at least L, over-fetching reaches everything and codes lose nothing.
    retrievers = [world.exact, *([world.pq] if 4 * k >= length else [])]
    for retriever in retrievers:
        _check_top_k(retriever.top_k(probe, keys, k), truth, k)
    by_codes = PQRetriever(world.books, world.codes)
    _check_top_k(by_codes.top_k(probe, keys, k), oracle(probe, keys, *world.decoded()), k)


@cache
def _shared() -> Catalogue:
    return Catalogue()


def _check_top_k(top: TopK, truth: np.ndarray, k: int) -> None:
    targets, length = truth.shape
    kept = min(k, length)
    index, relevance = top.index_TK.numpy(), top.relevance_TK.numpy()
    assert index.shape == relevance.shape == (targets, k)
    assert (index[:, kept:] == -1).all()
    assert np.isneginf(relevance[:, kept:]).all()
    assert ((index[:, :kept] >= 0) & (index[:, :kept] < length)).all()
    assert all(len(set(row)) == kept for row in index[:, :kept].tolist())
    assert (np.diff(relevance[:, :kept], axis=1) <= 0).all()
    np.testing.assert_allclose(relevance[:, :kept], np.take_along_axis(truth, index[:, :kept], 1), atol=2e-6)
    np.testing.assert_allclose(relevance[:, :kept], -np.sort(-truth, axis=1)[:, :kept], atol=2e-6)


def test_an_empty_history_gives_only_padding(world: Catalogue) -> None:
    for retriever in (world.exact, world.pq, PQRetriever(world.books, world.codes)):
        top = retriever.top_k(world.probe(2, 1), world.keys(0, 1), 3)
        assert top.index_TK.tolist() == [[-1] * 3] * 2
        assert torch.isneginf(top.relevance_TK).all()


@MODES
def test_a_behaviour_without_any_channel_has_relevance_zero(world: Catalogue, mode: str) -> None:
    keys = world.keys(4, 1, mode)
    nothing = Keys(keys.item_L, keys.query_L, torch.zeros_like(keys.present_LM), torch.zeros_like(keys.weight_LM))
    for retriever in (world.exact, world.pq):
        assert not retriever.relevance(world.probe(2, 1, mode), nothing).any()


def test_repeats_of_an_item_are_equally_relevant_and_all_kept(world: Catalogue) -> None:
    keys = world.keys(30, 6, "constant")
    item, query = keys.item_L.clone(), keys.query_L.clone()
    probe = world.probe(1, 2)
    first = int(world.exact.top_k(probe, keys, 1).index_TK)
    places = torch.tensor([3, 11, 27, first])
    present, weight = keys.present_LM.clone(), keys.weight_LM.clone()
    for column in (item, query, present, weight):
        column[places] = column[first].clone()
    repeated = Keys(item, query, present, weight)
    for retriever in (world.exact, world.pq, PQRetriever(world.books, world.codes)):
        relevance = retriever.relevance(probe, repeated)[0, places]
        torch.testing.assert_close(relevance, relevance[:1].expand_as(relevance))
    for retriever in (world.exact, world.pq):
        assert set(retriever.top_k(probe, repeated, len(places.unique())).index_TK[0].tolist()) == set(places.tolist())


def test_the_papers_symmetric_form_equals_the_collapsed_tables_for_a_decoded_target(world: Catalogue) -> None:
    draw = np.random.default_rng(0)
    books, keys = world.books, world.keys(80, 9)
    target_code = np.stack([books.encode(m, clustered(6, 60 + m)) for m in range(CHANNELS)], 1)
    target_weight = draw.dirichlet(np.ones(CHANNELS), 6)
    query_code = np.where((keys.query_L >= 0)[:, None], world.codes.query_code_QS[keys.query_L], 0)
    code = np.concatenate([query_code[:, None], world.codes.item_code_I3S[keys.item_L]], 1)
    symmetric = symmetric_relevance(books, target_code, target_weight, code, keys.weight_LM.double().numpy())
    decoded = np.stack([books.decode(m, target_code[:, m]) for m in range(CHANNELS)], 1)
    merged = np.einsum("tm,tmd->td", target_weight, decoded).astype(np.float32)
    probe = Probe(torch.from_numpy(merged)[:, None].expand(-1, CHANNELS, -1))
    np.testing.assert_allclose(world.pq.relevance(probe, keys), symmetric, atol=1e-5 * np.abs(symmetric).max())


@pytest.fixture(scope="module")
def full_size() -> Catalogue:
    """The default codebooks, 16 bytes a channel of 64."""
    return Catalogue(6000, 64, CodebookConfig(iterations=4))


@MODES
def test_over_fetching_and_rescoring_finds_what_exact_finds(full_size: Catalogue, mode: str) -> None:
    requests = [(full_size.probe(8, 20 + i, mode), full_size.keys(2000, 30 + i, mode)) for i in range(3)]
    for k, recall in zip([20, 100], recall_curve(full_size.pq, full_size.exact, requests, [20, 100]), strict=True):
        assert recall.k == k
        assert recall.rescored > 0.995
        assert 0.6 < recall.raw < 0.98


def test_recall_counts_repeats_as_found_and_leaves_empty_histories_out(world: Catalogue) -> None:
    keys = world.keys(1, 3)
    same = Keys(*(getattr(keys, name).repeat_interleave(50, 0) for name in ("item_L", "query_L", "present_LM", "weight_LM")))
    requests = [(world.probe(2, 1), same), (world.probe(2, 1), world.keys(0, 1))]
    (recall,) = recall_curve(PQRetriever(world.books, world.codes), world.exact, requests, [10])
    assert (recall.raw, recall.rescored) == (1.0, 1.0)


def test_recall_of_a_reversed_order_is_zero(world: Catalogue) -> None:
    class Reversed(ExactRetriever):
        def relevance(self, probe: Probe, keys: Keys) -> torch.Tensor:
            return -super().relevance(probe, keys)

    worst = Reversed(world.exact.item_unit, world.exact.query_unit[:-1])
    (recall,) = recall_curve(worst, world.exact, [(world.probe(3, 1), world.keys(100, 2))], [10])
    assert (recall.raw, recall.rescored) == (0.0, 0.0)


def test_a_gate_that_underflows_gives_zero_not_nan(world: Catalogue) -> None:
    keys = world.keys(20, 1, "target")
    gate = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    relevance = world.exact.relevance(Probe(world.probe(1, 1).vector_TMd, gate), keys)
    assert relevance.isfinite().all()
    assert not relevance[0, keys.query_L < 0].any()


def test_a_catalogue_without_queries_works() -> None:
    item = clustered(60, 1)[:, None].repeat(3, 1)
    books, _ = fit([np.empty((0, DIM), np.float32), *item.swapaxes(0, 1)], COARSE, STAMP)
    code, _ = encode_block(books, (1, 2, 3), item, np.ones((60, 3), bool))
    codes = CatalogueCodes(code, np.empty((0, 4), np.uint8), np.ones((60, 3), bool), np.empty(0, bool), STAMP)
    exact = ExactRetriever(torch.from_numpy(item), torch.empty(0, DIM))
    present = torch.tensor([[False, True, True, True]]).expand(30, -1)
    keys = Keys(torch.arange(30), torch.full((30,), -1), present, present / 3)
    probe = Probe(torch.from_numpy(item[:2, :1]).expand(-1, CHANNELS, -1))
    for retriever in (exact, PQRetriever(books, codes, exact)):
        assert retriever.top_k(probe, keys, 1).index_TK.flatten().tolist() == [0, 1]


@pytest.mark.parametrize("other", [Stamp("books-2", STAMP.psu_fingerprint), Stamp("books-1", "b" * 64)])
def test_codes_of_other_codebooks_or_another_psu_are_refused(world: Catalogue, other: Stamp) -> None:
    codes = CatalogueCodes(**{**vars(world.codes), "stamp": other})
    with pytest.raises(VersionMismatch) as error:
        PQRetriever(world.books, codes, world.exact)
    assert str(other) in str(error.value)
    assert str(STAMP) in str(error.value)


def test_codes_that_point_past_the_codebook_are_refused(world: Catalogue) -> None:
    damaged = world.codes.item_code_I3S.copy()
    damaged[17, 1, 2] = 16
    with pytest.raises(ArtifactError, match="codes up to 16"):
        PQRetriever(world.books, CatalogueCodes(**{**vars(world.codes), "item_code_I3S": damaged}), world.exact)


def test_retrievers_say_what_a_behaviour_costs(world: Catalogue) -> None:
    assert (world.exact.bytes_per_behaviour, world.pq.bytes_per_behaviour) == (4 * DIM * 4, 4 * 4)
