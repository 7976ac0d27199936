"""8-bit keys: the same integers on every path, exact integer top-K with newest-of-equals, and what quantisation costs."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seminar.errors import ConfigError
from seminar.kernels import int8, simd
from seminar.retrieval.base import Probe
from seminar.retrieval.exact import MergedIndex
from seminar.retrieval.int8 import Int8Index, Int8Retriever, Levels, PackedKeys
from seminar.retrieval.recall import recall_at
from seminar.retrieval.rescored import RescoredRetriever
from tests.retrieval_world import Catalogue, check_top_k, shared_catalogue


def history(length: int, dim: int, seed: int, distinct: int | None = None) -> np.ndarray:
    """Random keys, of which only some are distinct: real histories repeat items."""
    draw = np.random.default_rng(seed)
    key = draw.standard_normal((distinct or max(length, 1), dim)).astype(np.float32)
    return key[draw.integers(0, len(key), length)] if distinct else key[:length]


def integers(index: Int8Index, query: np.ndarray) -> np.ndarray:
    """Scores by their definition, in 64 bits."""
    step = np.abs(query).max(1, keepdims=True) / np.float32(127)
    inverse = np.divide(np.float32(127), np.abs(query).max(1, keepdims=True), out=np.zeros_like(step), where=step > 0)
    code = np.rint(query * inverse).astype(np.int64)
    stored = index.packed.packed.transpose(0, 2, 1, 3).reshape(-1, index.packed.dim)[: len(index)]
    return code @ (stored.astype(np.int64) - 128).T


def best_of(score: np.ndarray, k: int) -> list[int]:
    """Positions of the k largest, of equals the newest, increasing."""
    order = sorted(range(len(score)), key=lambda i: (-score[i], -i))
    return sorted(order[:k])


@pytest.mark.parametrize("path", simd.available())
@given(
    length=st.integers(0, 700),
    dim=st.sampled_from([4, 16, 64, 256]),
    targets=st.integers(1, 19),
    k=st.integers(1, 60),
    seed=st.integers(0, 10**6),
    repeats=st.booleans(),
    rows=st.sampled_from([64, 128, 8192]),
)
@settings(max_examples=60, deadline=None)
def test_every_path_finds_the_exact_integer_top_k(
    path: str, length: int, dim: int, targets: int, k: int, seed: int, repeats: bool, rows: int
) -> None:
    key = history(length, dim, seed, distinct=7 if repeats else None)
    query = np.random.default_rng(seed + 1).standard_normal((targets, dim)).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEMINAR_SIMD", path)
        patch.setattr(int8, "ROWS", rows)
        index = Int8Index(PackedKeys.of(key))
        top = index.top_k(Probe(torch.from_numpy(query)), k)
    score = integers(index, query)
    kept = min(k, length)
    assert [row[:kept] for row in top.index_TK.tolist()] == [best_of(row, kept) for row in score]
    assert (top.index_TK[:, kept:] == -1).all()
    assert torch.isneginf(top.relevance_TK[:, kept:]).all()
    expected = index.relevance(Probe(torch.from_numpy(query))).numpy()
    found = np.take_along_axis(expected, top.index_TK[:, :kept].numpy(), 1)
    np.testing.assert_allclose(top.relevance_TK[:, :kept], found, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("path", simd.available())
def test_extreme_bytes_do_not_saturate(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEMINAR_SIMD", path)
    key = np.stack([np.full(256, value, np.float32) for value in (1, -1, 1, 0)])
    index = Int8Index(PackedKeys.of(key, Levels(np.zeros(256, np.float32), np.float32(1 / 127))))
    for sign in (1, -1):
        probe = Probe(torch.full((9, 256), float(sign)))
        top = index.top_k(probe, 4)
        assert top.index_TK.tolist() == [[0, 1, 2, 3]] * 9
        np.testing.assert_allclose(top.relevance_TK[0], sign * np.array([256, -256, 256, 0]), rtol=1e-5)


def test_a_quantised_target_of_zero_finds_the_newest() -> None:
    index = Int8Index(PackedKeys.of(history(300, 16, 0)))
    assert index.top_k(Probe(torch.zeros(1, 16)), 3).index_TK.tolist() == [[297, 298, 299]]


def test_what_stands_behind_the_last_behaviour_is_never_found() -> None:
    packed = PackedKeys.of(history(70, 16, 1))
    packed.packed.reshape(-1, 4, 16, 4)[5:] = 255
    top = Int8Index(packed).top_k(Probe(torch.ones(12, 16)), 64)
    assert int(top.index_TK.max()) < 70


@pytest.fixture(scope="module")
def world() -> Catalogue:
    return shared_catalogue()


@pytest.mark.parametrize("mode", ["constant", "behaviour", "target"])
def test_relevance_is_close_to_exact_and_rescoring_makes_it_exact(world: Catalogue, mode: str) -> None:
    retriever = Int8Retriever(world.space, target_gate=mode == "target")
    probe, keys = world.probe(9, 3, mode), world.keys(500, 4, mode)
    truth = world.exact.index(keys).relevance(probe).numpy()
    guess = retriever.index(keys).relevance(probe).numpy()
    # Keys and targets are off by half a step a dimension, a 254th of the largest, and errors of dimensions are independent.
    # Under a target's gate a behaviour with only lightly weighed channels is scaled up, and its error with it.
    assert np.abs(guess - truth).max() < (0.08 if mode == "target" else 0.03) * np.abs(truth).max()
    check_top_k(retriever.index(keys).top_k(probe, 20), guess, 20)
    check_top_k(RescoredRetriever(retriever, world.space, 2.0).index(keys).top_k(probe, 20), truth, 20)


def test_recall_of_gaussian_keys_is_what_the_documentation_says() -> None:
    key = history(10_240, 64, 5)
    probe = Probe(torch.from_numpy(history(32, 64, 6)))
    truth = MergedIndex(torch.from_numpy(key)).top_k(probe, 100).index_TK
    found = Int8Index(PackedKeys.of(key)).top_k(probe, 100).index_TK
    share = np.mean([len(set(a.tolist()) & set(b.tolist())) / 100 for a, b in zip(truth, found, strict=True)])
    assert 0.98 < share < 1


def test_rescored_int8_finds_what_exact_finds(world: Catalogue) -> None:
    requests = [(world.probe(8, i), world.keys(2000, 50 + i)) for i in range(3)]
    assert (
        min(recall_at(RescoredRetriever(Int8Retriever(world.space), world.space, 1.25), world.exact, requests, [20, 100])) > 0.999
    )


def test_the_gate_must_be_the_one_the_keys_were_packed_for(world: Catalogue) -> None:
    keys = world.keys(30, 1)
    with pytest.raises(ConfigError, match="gate of the target"):
        Int8Retriever(world.space).index(keys).top_k(world.probe(2, 1, "target"), 3)
    with pytest.raises(ConfigError, match="no gate"):
        Int8Retriever(world.space, target_gate=True).index(keys).top_k(world.probe(2, 1), 3)


def test_a_width_that_words_do_not_divide_is_refused() -> None:
    with pytest.raises(ConfigError, match="multiple of 4"):
        PackedKeys.of(np.zeros((3, 10), np.float32))


def test_a_path_the_processor_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEMINAR_SIMD", "avx1024")
    with pytest.raises(ConfigError, match="avx1024"):
        simd.path()
