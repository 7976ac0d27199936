"""Codes of merged keys: relevance of what they decode to, sizes, recall, and what they refuse."""

import sys

import numpy as np
import pytest
import torch

from seminar.errors import ConfigError
from seminar.retrieval.base import Keys
from seminar.retrieval.merged_codes import MergedCodesRetriever, MergedPQRetriever, MergedRQRetriever
from seminar.retrieval.recall import recall_at
from seminar.retrieval.rescored import RescoredRetriever
from tests.retrieval_world import Catalogue, check_top_k, shared_catalogue

pytest.importorskip("faiss")
KINDS = pytest.mark.parametrize("kind", [MergedPQRetriever, MergedRQRetriever])


@pytest.fixture(scope="module")
def world() -> Catalogue:
    return shared_catalogue()


@KINDS
@pytest.mark.parametrize(("num_bytes", "bits"), [(4, 8), (4, 4), (8, 4)])
def test_merged_codes_give_the_relevance_of_decoded_keys(
    world: Catalogue, kind: type[MergedCodesRetriever], num_bytes: int, bits: int
) -> None:
    keys, probe = world.keys(700, 4), world.probe(5, 3)
    retriever = kind(world.space, world.space.merged(world.keys(1000, 1)), num_bytes, bits)
    code = retriever.encode(world.space.merged(keys))
    assert code.shape == (700, num_bytes * 8 // bits)
    decoded = retriever.decode(code).astype(np.float64)
    found = keys.present_LM.any(1).numpy()
    expected = (probe.query_Td.double().numpy() @ decoded.T) * found
    index = retriever.index(keys)
    relevance = index.relevance(probe)
    # Half a step a code, and the spread of 8 tables in 254 steps.
    np.testing.assert_allclose(relevance, expected, atol=0.02 * np.abs(expected).max())
    check_top_k(index.top_k(probe, 9), relevance.double().numpy(), 9)
    error = np.square(decoded - world.space.merged(keys).double().numpy())[found].sum(1).mean()
    assert error < np.square(decoded[found]).sum(1).mean()
    assert retriever.bytes_per_behaviour == num_bytes


@KINDS
def test_a_behaviour_without_any_channel_has_relevance_zero(world: Catalogue, kind: type[MergedCodesRetriever]) -> None:
    keys = world.keys(300, 4)
    none = torch.arange(300) % 3 == 0
    keys = Keys(keys.item_L, keys.query_L, keys.present_LM & ~none[:, None], keys.weight_LM * ~none[:, None])
    retriever = kind(world.space, world.space.merged(world.keys(1000, 1)), 4, bits=4)
    relevance = retriever.index(keys).relevance(world.probe(3, 1))
    assert not relevance[:, none].any()
    assert relevance[:, ~none & keys.present_LM.any(1)].all(0).float().mean() > 0.9


def test_more_bytes_recall_more_and_rescoring_recalls_most() -> None:
    world = Catalogue(2000, 64)
    sample, requests = world.space.merged(world.keys(4000, 1)), [(world.probe(8, 20), world.keys(2000, 30))]
    made = [MergedPQRetriever(world.space, sample, 8), MergedPQRetriever(world.space, sample, 16)]
    recalls = [recall_at(r, world.exact, requests, [50])[0] for r in (*made, RescoredRetriever(made[1], world.space, 8.0))]
    assert 0.3 < recalls[0] < recalls[1] < recalls[2]
    assert recalls[2] > 0.97


@KINDS
def test_merged_codes_refuse_a_gate_of_the_target(world: Catalogue, kind: type[MergedCodesRetriever]) -> None:
    index = kind(world.space, world.space.merged(world.keys(1000, 1)), 4, bits=4).index(world.keys(10, 1))
    for ask in (lambda: index.top_k(world.probe(2, 1, "target"), 3), lambda: index.relevance(world.probe(2, 1, "target"))):
        with pytest.raises(ConfigError, match="gate of the target"):
            ask()


def test_sizes_that_do_not_fit_are_refused(world: Catalogue) -> None:
    sample = world.space.merged(world.keys(1000, 1))
    with pytest.raises(ConfigError, match="4 or 8"):
        MergedPQRetriever(world.space, sample, 4, bits=6)
    with pytest.raises(ConfigError, match="a divisor of dim 16"):
        MergedPQRetriever(world.space, sample, 5)
    with pytest.raises(ConfigError, match="at least 256"):
        MergedRQRetriever(world.space, sample[:100], 4)


def test_without_faiss_the_error_says_what_to_install(world: Catalogue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ConfigError, match="extra `cpu`"):
        MergedPQRetriever(world.space, world.space.merged(world.keys(1000, 1)), 4)


def test_codes_made_before_give_the_same_index(world: Catalogue) -> None:
    keys, probe = world.keys(200, 4), world.probe(3, 3)
    retriever = MergedPQRetriever(world.space, world.space.merged(world.keys(1000, 1)), 4)
    kept = retriever.encode(world.space.merged(keys))
    assert torch.equal(retriever.index_of(kept, keys).relevance(probe), retriever.index(keys).relevance(probe))
