"""Product codes: relevance against decoded keys in float64, rotations, the paper's symmetric form, stamps and damaged codes."""

import time
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch

from seminar.codes.codebook import CatalogueCodes, Stamp
from seminar.config import CodebookConfig
from seminar.errors import ArtifactError, ConfigError, VersionMismatch
from seminar.kernels import simd
from seminar.retrieval.base import Keys, Probe, TopK, best
from seminar.retrieval.decoded import DecodedRetriever
from seminar.retrieval.exact import ExactRetriever
from seminar.retrieval.key_space import KeySpace
from seminar.retrieval.pq import PQRetriever
from seminar.retrieval.recall import found_share, recall_at
from seminar.retrieval.rescored import RescoredRetriever
from seminar.retrieval.symmetric import (
    CollapsedRetriever,
    gather_codes,
    scan_collapsed,
    scan_symmetric,
    symmetric_relevance,
    symmetric_tables,
)
from tests.retrieval_world import CHANNELS, DIM, STAMP, Catalogue, check_top_k, clustered, oracle, shared_catalogue


@pytest.fixture(scope="module")
def world() -> Catalogue:
    return shared_catalogue()


@cache
def rotated(num_centroids: int) -> Catalogue:
    return Catalogue(config=CodebookConfig(num_subquantizers=4, num_centroids=num_centroids, iterations=4, rotation="opq"))


@cache
def full_size(num_centroids: int) -> Catalogue:
    """Codebooks as the paper has them, 16 codes a channel of 64."""
    return Catalogue(6000, 64, CodebookConfig(iterations=4, num_centroids=num_centroids, rotation="none"))


MODES = pytest.mark.parametrize("mode", ["constant", "target", "behaviour"])


def errors(retriever: PQRetriever, world: Catalogue, probe: Probe, keys: Keys) -> tuple[np.ndarray, np.ndarray]:
    """Relevance less that of decoded keys in float64, and what quantised tables and weights can make of it at most."""
    expected = oracle(world.space, probe, keys, *world.decoded())
    vector = world.space.channel_vectors(probe).double().numpy()
    asked = world.books.rotated(vector).astype(np.float64).reshape(len(vector), CHANNELS, world.books.num_subquantizers, -1)
    tables = np.einsum("tmsw,mscw->tmsc", asked, world.books.centroid_MSCw.astype(np.float64))
    ranges = np.stack([np.ptp(tables[:, m, :, :count], axis=2) for m, count in enumerate(world.books.num_centroids_M)], 1)
    lookup = ranges.max((1, 2)) / 254 * (0.51 * world.books.num_subquantizers + 0.51)
    # A behaviour's weights add up to 1; each is off by half a level, 1 / 510 of the largest, which is at most 1.
    weight = np.abs(tables).max(3).sum((1, 2)) / 510
    return retriever.index(keys).relevance(probe).numpy() - expected, (lookup + weight)[:, None] + np.zeros(expected.shape)


@MODES
@pytest.mark.parametrize("make", [shared_catalogue, lambda: rotated(16), lambda: rotated(60), lambda: full_size(256)])
def test_codes_give_the_relevance_of_decoded_keys(make: object, mode: str) -> None:
    world = make()  # type: ignore[operator]
    probe, keys = world.probe(5, 3, mode), world.keys(70, 4, mode)
    error, bound = errors(world.pq, world, probe, keys)
    assert (np.abs(error) <= bound).all()
    exact = CollapsedRetriever(world.space, world.books, world.codes).index(keys).relevance(probe)
    expected = oracle(world.space, probe, keys, *world.decoded())
    np.testing.assert_allclose(exact, expected, atol=1e-5 * np.abs(expected).max())
    assert np.sqrt((error**2).mean()) < 0.005 * expected.std() + 0.004 * np.abs(expected).max()
    index = world.pq.index(keys)
    check_top_k(index.top_k(probe, 7), index.relevance(probe).double().numpy(), 7)


@MODES
@pytest.mark.parametrize("num_centroids", [16, 256])
def test_every_path_finds_the_same(monkeypatch: pytest.MonkeyPatch, num_centroids: int, mode: str) -> None:
    world = full_size(num_centroids)
    probe, keys, found = world.probe(6, 5, mode), world.keys(900, 6, mode), list[TopK]()
    for path in simd.available():
        monkeypatch.setenv("SEMINAR_SIMD", path)
        found.append(world.pq.index(keys).top_k(probe, 50))
    for other in found[1:]:
        assert torch.equal(other.index_TK, found[0].index_TK)
        assert torch.equal(other.relevance_TK, found[0].relevance_TK)


@pytest.mark.parametrize("mode", ["constant", "target"])
def test_behaviours_that_all_have_the_same_channels_need_no_weights(world: Catalogue, mode: str) -> None:
    keys = world.keys(40, 3, mode)
    chosen = torch.tensor([True, False, True, True])
    weight = torch.tensor([0.5, 0.0, 0.3, 0.2]).expand(40, -1).contiguous()
    keys = Keys(keys.item_L, keys.query_L.clamp_min(0), chosen.expand(40, -1).contiguous(), weight)
    full = replace(world.codes, item_present_I3=np.ones_like(world.codes.item_present_I3))
    probe, retriever = world.probe(3, 2, mode), PQRetriever(world.space, world.books, full)
    vector = world.space.channel_vectors(probe).double().numpy()
    gate = weight.double().numpy()[0]
    if probe.gate_TM is not None:
        gate = probe.gate_TM.double().numpy() * chosen.numpy()
        gate = (gate / gate.sum(1, keepdims=True))[:, None]
    code = gather_codes(full, keys)
    decoded = np.stack([world.books.decode(m, code[:, m]) for m in range(CHANNELS)], 1).astype(np.float64)
    expected = (np.einsum("tmd,lmd->tlm", vector, decoded) * gate).sum(2)
    np.testing.assert_allclose(retriever.index(keys).relevance(probe), expected, atol=0.02 * np.abs(expected).max())


def test_the_papers_symmetric_form_equals_the_collapsed_tables_for_a_decoded_target(world: Catalogue) -> None:
    draw = np.random.default_rng(0)
    books, keys = world.books, world.keys(80, 9)
    target_code = np.stack([books.encode(m, clustered(6, 60 + m)) for m in range(CHANNELS)], 1)
    target_weight = draw.dirichlet(np.ones(CHANNELS), 6)
    symmetric = symmetric_relevance(books, target_code, target_weight, gather_codes(world.codes, keys), keys.weight_LM.numpy())
    decoded = np.stack([books.decode(m, target_code[:, m]) for m in range(CHANNELS)], 1)
    merged = np.einsum("tm,tmd->td", target_weight, decoded).astype(np.float32)
    plain = KeySpace(world.space.item_unit, world.space.query_unit, torch.eye(DIM).repeat(CHANNELS, 1, 1))
    collapsed = CollapsedRetriever(plain, books, world.codes).index(keys).relevance(Probe(torch.from_numpy(merged)))
    np.testing.assert_allclose(collapsed, symmetric, atol=1e-5 * np.abs(symmetric).max())


def test_collapsed_tables_are_faster_than_symmetric_ones_and_recall_more() -> None:
    world = full_size(256)
    keys = world.keys(3000, 5)
    code, weight = gather_codes(world.codes, keys), keys.weight_LM.numpy()
    draw = np.random.default_rng(1)
    target = draw.integers(0, 256, (2, CHANNELS, CHANNELS, 16), np.uint8)
    gate, found = draw.random((2, CHANNELS, CHANNELS)).astype(np.float32), np.empty((2, 3000), np.float32)
    pairs, table = symmetric_tables(world.books), draw.random((2, CHANNELS, 16, 256), np.float32)
    times = []
    for _ in range(7):
        marks = [time.thread_time()]
        scan_symmetric(pairs, target, gate, code, weight, found)
        marks.append(time.thread_time())
        scan_collapsed(table, code, weight, found)
        times.append(np.diff([*marks, time.thread_time()]))
    long, short = np.median(times, 0)
    assert long > 2 * short
    unit = np.stack([clustered(8, 60 + m, 64) for m in range(CHANNELS)], 1)
    coded = np.stack([world.books.encode(m, np.ascontiguousarray(unit[:, m])) for m in range(CHANNELS)], 1)
    even = np.full((8, CHANNELS), 1 / CHANNELS)
    plain = KeySpace(world.space.item_unit, world.space.query_unit, torch.eye(64).repeat(CHANNELS, 1, 1))
    probe, exact = Probe(torch.from_numpy(unit.mean(1))), ExactRetriever(plain).index(keys)
    guesses = [
        torch.from_numpy(symmetric_relevance(world.books, coded, even, code, weight)),
        CollapsedRetriever(plain, world.books, world.codes).index(keys).relevance(probe),
    ]
    recalls = [found_share(exact.relevance(probe), best(guess, 100)).mean() for guess in guesses]
    assert recalls[0] < recalls[1], "a target that is not quantised"


def test_symmetric_tables_refuse_rotated_codebooks() -> None:
    with pytest.raises(ConfigError, match="rotated codebooks"):
        symmetric_tables(rotated(16).books)


@MODES
@pytest.mark.parametrize(("num_centroids", "worst", "best"), [(256, 0.6, 0.98), (16, 0.3, 0.95)])
def test_over_fetching_and_rescoring_finds_what_exact_finds(num_centroids: int, worst: float, best: float, mode: str) -> None:
    world = full_size(num_centroids)
    requests = [(world.probe(8, 20 + i, mode), world.keys(2000, 30 + i, mode)) for i in range(3)]
    raw, rescored = (recall_at(r, world.exact, requests, [20, 100]) for r in (world.pq, world.rescored))
    assert min(rescored) > (0.995 if num_centroids == 256 else 0.95)
    assert worst < min(raw) <= max(raw) < best


@pytest.mark.parametrize("other", [Stamp("books-2", STAMP.psu_fingerprint), Stamp("books-1", "b" * 64)])
def test_codes_of_other_codebooks_or_another_psu_are_refused(world: Catalogue, other: Stamp) -> None:
    codes = replace(world.codes, stamp=other)
    for retriever in (PQRetriever, DecodedRetriever, CollapsedRetriever):
        with pytest.raises(VersionMismatch) as error:
            retriever(world.space, world.books, codes)
        assert str(other) in str(error.value)
        assert str(STAMP) in str(error.value)


def test_codes_that_point_past_the_codebook_are_refused(world: Catalogue) -> None:
    damaged = world.codes.item_code_I3S.copy()
    damaged[17, 1, 2] = 16
    codes: CatalogueCodes = replace(world.codes, item_code_I3S=damaged)
    for retriever in (PQRetriever, DecodedRetriever):
        with pytest.raises(ArtifactError, match="codes up to 16"):
            retriever(world.space, world.books, codes)


def test_codebooks_beyond_what_look_ups_hold_are_refused(world: Catalogue) -> None:
    wide = np.zeros((CHANNELS, 129, 16, 1), np.float32)
    space = KeySpace(torch.zeros(1, 3, 129), torch.zeros(1, 129), torch.zeros(CHANNELS, 129, 129))
    books = replace(world.books, centroid_MSCw=wide, rotation_Mdd=np.tile(np.eye(129, dtype=np.float32), (CHANNELS, 1, 1)))
    nothing = np.zeros((1, 3, 129), np.uint8), np.zeros((1, 129), np.uint8), np.ones((1, 3), bool), np.ones(1, bool)
    codes = CatalogueCodes(*nothing, STAMP)
    with pytest.raises(ConfigError, match="129 sub-spaces"):
        PQRetriever(space, books, codes)


def test_decoding_once_gives_the_keys_that_codes_stand_for() -> None:
    for world in (shared_catalogue(), rotated(60)):
        keys = world.keys(600, 4)
        retriever = DecodedRetriever(world.space, world.books, world.codes)
        item, query = world.decoded()
        item, query = np.nan_to_num(item).astype(np.float64), query.astype(np.float64)
        unit = np.concatenate([query[keys.query_L][:, None], item[keys.item_L]], 1)
        weight = keys.weight_LM.double().numpy()
        expected = np.einsum("lm,lmd,mde->le", weight, unit, world.space.transform.double().numpy())
        np.testing.assert_allclose(retriever.merged(keys), expected, atol=1e-6)
        probe = world.probe(5, 3)
        truth = oracle(world.space, probe, keys, *world.decoded())
        np.testing.assert_allclose(retriever.index(keys).relevance(probe), truth, atol=0.02 * np.abs(truth).max())
        assert retriever.bytes_per_behaviour == world.pq.bytes_per_behaviour


def test_decoded_keys_refuse_a_gate_of_the_target(world: Catalogue) -> None:
    index = DecodedRetriever(world.space, world.books, world.codes).index(world.keys(10, 1))
    with pytest.raises(ConfigError, match="gate of the target"):
        index.top_k(world.probe(2, 1, "target"), 3)
    assert len(DecodedRetriever(world.space, world.books, world.codes).index(world.keys(0, 1))) == 0


def test_decoded_keys_rescored_find_what_exact_finds() -> None:
    world = full_size(256)
    requests = [(world.probe(8, 20), world.keys(2000, 30))]
    retriever = RescoredRetriever(DecodedRetriever(world.space, world.books, world.codes), world.space, 4.0)
    assert recall_at(retriever, world.exact, requests, [100])[0] > 0.995
