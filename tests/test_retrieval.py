"""What every retriever keeps to, exact relevance against its definition, and recall."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seminar.codes.codebook import CatalogueCodes, encode_block
from seminar.codes.codebook_fit import fit
from seminar.errors import ConfigError
from seminar.retrieval.base import Keys, Probe, Retriever
from seminar.retrieval.exact import ExactRetriever, MergedIndex, MergedRetriever
from seminar.retrieval.key_space import KeySpace
from seminar.retrieval.pq import PQRetriever
from seminar.retrieval.recall import recall_at
from seminar.retrieval.rescored import RescoredRetriever
from tests.retrieval_world import CHANNELS, COARSE, DIM, STAMP, Catalogue, check_top_k, clustered, oracle, shared_catalogue


@pytest.fixture(scope="module")
def world() -> Catalogue:
    return shared_catalogue()


MODES = pytest.mark.parametrize("mode", ["constant", "target", "behaviour"])


@MODES
def test_exact_relevance_is_its_definition(world: Catalogue, mode: str) -> None:
    probe, keys = world.probe(5, 1, mode), world.keys(60, 2, mode)
    expected = oracle(world.space, probe, keys, world.item, world.query)
    np.testing.assert_allclose(world.exact.index(keys).relevance(probe), expected, atol=1e-6)
    if mode != "target":
        np.testing.assert_allclose(world.merged.index(keys).relevance(probe), expected, atol=1e-6)


def test_merged_keys_refuse_a_gate_of_the_target(world: Catalogue) -> None:
    with pytest.raises(ConfigError, match="gate of the target"):
        world.merged.index(world.keys(10, 1)).relevance(world.probe(2, 1, "target"))


@given(
    length=st.integers(0, 40),
    targets=st.integers(1, 6),
    k=st.integers(1, 50),
    seed=st.integers(0, 1000),
    mode=st.sampled_from(["constant", "target", "behaviour"]),
)
@settings(max_examples=60, deadline=None)
def test_top_k_never_returns_padding_and_keeps_the_best(length: int, targets: int, k: int, seed: int, mode: str) -> None:
    world = shared_catalogue()
    probe, keys = world.probe(targets, seed, mode), world.keys(length, seed + 1, mode)
    truth = oracle(world.space, probe, keys, world.item, world.query)
    retrievers: list[Retriever] = [world.exact]
    if mode != "target":
        retrievers.append(world.merged)
    # With 4 K at least L, over-fetching reaches everything and codes lose nothing.
    if 4 * k >= length:
        retrievers.append(world.rescored)
    for retriever in retrievers:
        check_top_k(retriever.index(keys).top_k(probe, k), truth, k)


def test_an_empty_history_gives_only_padding(world: Catalogue) -> None:
    for retriever in (world.exact, world.merged, world.pq, world.rescored):
        top = retriever.index(world.keys(0, 1)).top_k(world.probe(2, 1), 3)
        assert top.index_TK.tolist() == [[-1] * 3] * 2
        assert torch.isneginf(top.relevance_TK).all()


@MODES
def test_a_behaviour_without_any_channel_has_relevance_zero(world: Catalogue, mode: str) -> None:
    keys = world.keys(4, 1, mode)
    nothing = Keys(keys.item_L, keys.query_L, torch.zeros_like(keys.present_LM), torch.zeros_like(keys.weight_LM))
    for retriever in (world.exact, world.pq):
        assert not retriever.index(nothing).relevance(world.probe(2, 1, mode)).any()


def test_of_equally_relevant_repeats_the_newest_are_kept(world: Catalogue) -> None:
    keys, probe = world.keys(30, 6, "constant"), world.probe(1, 2)
    first = int(world.exact.index(keys).top_k(probe, 1).index_TK)
    rows = torch.arange(30)
    places = torch.tensor([3, 11, 27, first])
    rows[places] = first
    repeated = keys[rows]
    for retriever in (world.exact, world.merged, world.pq):
        relevance = retriever.index(repeated).relevance(probe)[0, places]
        torch.testing.assert_close(relevance, relevance[:1].expand_as(relevance))
    newest = sorted(set(places.tolist()))[-2:]
    for retriever in (world.exact, world.merged, world.rescored):
        assert retriever.index(repeated).top_k(probe, 2).index_TK[0].tolist() == newest


def test_recall_counts_repeats_as_found_and_leaves_empty_histories_out(world: Catalogue) -> None:
    same = world.keys(1, 3)[torch.zeros(50, dtype=torch.int64)]
    requests = [(world.probe(2, 1), same), (world.probe(2, 1), world.keys(0, 1))]
    assert recall_at(world.pq, world.exact, requests, [10]) == [1.0]
    assert math.isnan(recall_at(world.pq, world.exact, requests[1:], [10])[0])


def test_recall_of_a_reversed_order_is_zero(world: Catalogue) -> None:
    class Reversed(MergedRetriever):
        def index(self, keys: Keys) -> MergedIndex:
            return MergedIndex(-self.space.merged(keys))

    requests = [(world.probe(3, 1), world.keys(100, 2))]
    assert recall_at(Reversed(world.space), world.exact, requests, [10]) == [0.0]


def test_a_gate_that_underflows_gives_zero_not_nan(world: Catalogue) -> None:
    keys = world.keys(20, 1, "target")
    gate = torch.tensor([[1.0, 0.0, 0.0, 0.0]])
    relevance = world.exact.index(keys).relevance(Probe(world.probe(1, 1).query_Td, gate))
    assert relevance.isfinite().all()
    assert not relevance[0, keys.query_L < 0].any()


def test_a_catalogue_without_queries_works() -> None:
    item = clustered(60, 1)[:, None].repeat(3, 1)
    books, _ = fit([np.empty((0, DIM), np.float32), *item.swapaxes(0, 1)], COARSE, STAMP)
    code, _ = encode_block(books, (1, 2, 3), item, np.ones((60, 3), bool))
    codes = CatalogueCodes(code, np.empty((0, 4), np.uint8), np.ones((60, 3), bool), np.empty(0, bool), STAMP)
    space = KeySpace(torch.from_numpy(item), torch.empty(0, DIM), torch.eye(DIM).repeat(CHANNELS, 1, 1))
    present = torch.tensor([[False, True, True, True]]).expand(30, -1)
    keys = Keys(torch.arange(30), torch.full((30,), -1), present, present / 3)
    pq = PQRetriever(space, books, codes)
    for retriever in (ExactRetriever(space), MergedRetriever(space), RescoredRetriever(pq, space)):
        assert retriever.index(keys).top_k(Probe(torch.from_numpy(item[:2, 0])), 1).index_TK.flatten().tolist() == [0, 1]


def test_retrievers_say_what_a_behaviour_costs(world: Catalogue) -> None:
    costs = [retriever.bytes_per_behaviour for retriever in (world.exact, world.merged, world.pq, world.rescored)]
    assert costs == [4 * DIM * 4, DIM * 4, 8, 8], "16 centroids: 4 channels x 4 sub-spaces x half a byte"
