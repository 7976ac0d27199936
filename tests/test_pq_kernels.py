"""Look-up kernels against plain integer references on every path, their tables against floats, their layouts."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seminar.kernels import simd
from seminar.kernels.lookup import ONES, PATTERNS, PLANES
from seminar.kernels.tables import fill, fill_gates
from seminar.retrieval.base import Keys, Probe, best
from seminar.retrieval.lookup_index import LookupCodec, LookupIndex

KINDS = {"ones": ONES, "planes": PLANES, "patterns": PATTERNS}


def codec(channels: int, spaces: int, centroids: int, width: int = 2, seed: int = 0, used: int | None = None) -> LookupCodec:
    draw = np.random.default_rng(seed)
    centroid = draw.standard_normal((channels, spaces, centroids, width)).astype(np.float32)
    transform = draw.standard_normal((channels, spaces * width, spaces * width)).astype(np.float32)
    return LookupCodec.of(transform, centroid, np.full(channels, used or centroids))


def history(made: LookupCodec, length: int, centroids: int, spaces: int, seed: int) -> tuple[np.ndarray, np.ndarray, Keys]:
    """Codes of 50 items with three channels and 20 queries, and a history over them; a third has no query."""
    draw = np.random.default_rng(seed)
    query_code = draw.integers(0, centroids, (20, 1, spaces), np.uint8)
    item_code = draw.integers(0, centroids, (50, 3, spaces), np.uint8)
    query = np.where(draw.random(length) < 0.67, draw.integers(0, 20, length), -1)
    present = np.concatenate([(query >= 0)[:, None], draw.random((length, 3)) < 0.7], 1)
    weight = np.where(present, draw.random((length, 4)), 0).astype(np.float32)
    keys = Keys(*(torch.from_numpy(array) for array in (draw.integers(0, 50, length), query, present, weight)))
    return query_code, item_code, keys


def reference(
    made: LookupCodec, kind: tuple[int, ...], codes: tuple[np.ndarray, np.ndarray, Keys], query: np.ndarray, gate: np.ndarray
) -> np.ndarray:
    """The sum in `lookup.py`, from the same tables and levels of weights, in int64; and times its step."""
    query_code, item_code, keys = codes
    channels, spaces = 4, query_code.shape[2]
    table = np.zeros((len(query), channels * made.room, made.codec.centroid_MSwC.shape[3]), np.uint8)
    start = np.zeros((len(query), channels if kind else 1), np.int32)
    step = np.zeros(len(query), np.float32)
    fill(*made.codec, query, gate[:0] if kind == PATTERNS else gate, table, start, step)
    table = table.reshape(len(query), channels, made.room, -1)[:, :, :spaces].astype(np.int64)
    none = np.zeros((1, 1, spaces), np.uint8)
    code = np.concatenate([np.concatenate([query_code, none])[keys.query_L.numpy()], item_code[keys.item_L.numpy()]], 1)
    sums = np.stack([each[np.arange(channels)[:, None], np.arange(spaces), code].sum(2) for each in table])
    present = keys.present_LM.numpy()
    if kind == ONES:
        return (sums.sum(2) + start).astype(np.float32) * step[:, None]
    if kind == PLANES:
        weight = keys.weight_LM.numpy()
        level = (weight * (np.float32(255) / weight.max()) + np.float32(0.5)).astype(np.int64)
        unit = np.float32(weight.max() / np.float32(255))
        return ((sums + start[:, None]) * level).sum(2).astype(np.float32) * (step * unit)[:, None]
    pattern = present @ (1 << np.arange(channels))
    level, unit = np.zeros((len(query), channels, 16), np.uint8), np.zeros(len(query), np.float32)
    fill_gates(gate, np.isin(np.arange(16), pattern), level, unit)
    chosen = level[:, :, pattern].transpose(0, 2, 1).astype(np.int64)
    return ((sums + start[:, None]) * chosen).sum(2).astype(np.float32) * (step * unit)[:, None]


@pytest.mark.parametrize("path", simd.available())
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("centroids", "spaces", "targets"), [(16, 16, 6), (16, 3, 1), (256, 16, 3), (200, 5, 1), (17, 1, 4)])
def test_every_path_gives_the_integers_of_the_definition(
    monkeypatch: pytest.MonkeyPatch, path: str, kind: str, centroids: int, spaces: int, targets: int
) -> None:
    monkeypatch.setenv("SEMINAR_SIMD", path)
    made, draw = codec(4, spaces, centroids), np.random.default_rng(1)
    query = draw.standard_normal((targets, spaces * 2)).astype(np.float32)
    codes = history(made, 700, centroids, spaces, 2)
    query_code, item_code, keys = codes
    if kind == "ones":
        keys = Keys(keys.item_L, keys.query_L, torch.ones_like(keys.present_LM), torch.full_like(keys.weight_LM, 0.25))
    index = LookupIndex(made, made.prepared(query_code), made.prepared(item_code), keys)
    probe = Probe(torch.from_numpy(query), torch.rand(targets, 4) if kind == "patterns" else None)
    gate = np.full((1, 4), 0.25, np.float32) if kind == "ones" else np.empty((0, 4), np.float32)
    gate = gate if probe.gate_TM is None else probe.gate_TM.numpy()
    expected = reference(made, KINDS[kind], (query_code, item_code, keys), query, gate)
    np.testing.assert_array_equal(index.relevance(probe), expected)
    if kind != "planes":
        return  # selection does not depend on the kind, and compiling it does take seconds
    top = index.top_k(probe, 20)
    wanted = best(torch.from_numpy(expected), 20)
    assert torch.equal(top.index_TK, wanted.index_TK)
    assert torch.equal(top.relevance_TK, wanted.relevance_TK)


@pytest.mark.parametrize("centroids", [16, 256])
@pytest.mark.parametrize("gated", [False, True])
def test_long_histories_in_blocks_keep_the_newest_of_equals(centroids: int, gated: bool) -> None:
    made = codec(4, 2, centroids)
    query_code, item_code, keys = history(made, 140_000, centroids, 2, 3)
    index = LookupIndex(made, made.prepared(query_code), made.prepared(item_code), keys)
    query = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    probe = Probe(query, torch.rand(9, 4, generator=torch.Generator().manual_seed(1)) if gated else None)
    wanted, top = best(index.relevance(probe), 500), index.top_k(probe, 500)
    assert torch.equal(top.index_TK, wanted.index_TK)
    assert torch.equal(top.relevance_TK, wanted.relevance_TK)


@given(
    spaces=st.integers(1, 6),
    centroids=st.sampled_from([2, 15, 16, 17, 100, 256]),
    width=st.integers(1, 4),
    scale=st.sampled_from([1e-20, 1.0, 1e15]),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_tables_are_within_half_a_step_of_floats(spaces: int, centroids: int, width: int, scale: float, seed: int) -> None:
    made = codec(2, spaces, centroids, width, seed, used=max(1, centroids - 3))
    query = (np.random.default_rng(seed).standard_normal((3, spaces * width)) * scale).astype(np.float32)
    table = np.zeros((3, 2 * made.room, made.codec.centroid_MSwC.shape[3]), np.uint8)
    start, step = np.zeros((3, 2), np.int32), np.zeros(3, np.float32)
    fill(*made.codec, query, np.empty((0, 2), np.float32), table, start, step)
    transform, centroid, _ = made.codec
    asked = np.einsum("te,med->tmd", query.astype(np.float64), transform)[:, :, : spaces * width]
    exact = np.einsum("tmsw,mswc->tmsc", asked.reshape(3, 2, spaces, width), centroid.astype(np.float64))
    level = table.reshape(3, 2, made.room, -1)[:, :, :spaces].astype(np.float64) - 128
    middle = (exact.max(3) + exact.min(3)) / 2
    unit = step.astype(np.float64)[:, None, None, None]
    assert (step > 0).all()
    assert (np.abs(level * unit + middle[..., None] - exact) <= 0.51 * unit).all()
    begin = (start + 128 * spaces) * step.astype(np.float64)[:, None]
    assert (np.abs(begin - middle.sum(2)) <= 0.51 * step[:, None] + 1e-6 * np.abs(middle).sum(2)).all()


def test_targets_of_zero_or_without_numbers_score_and_select_something() -> None:
    made = codec(4, 4, 16)
    query_code, item_code, keys = history(made, 300, 16, 4, 5)
    index = LookupIndex(made, made.prepared(query_code), made.prepared(item_code), keys)
    query = torch.zeros(2, 8)
    query[1] = torch.nan
    top = index.top_k(Probe(query), 5)
    assert top.index_TK[0].tolist() == [295, 296, 297, 298, 299]
    assert not top.relevance_TK[0].any()
    assert ((top.index_TK >= 0) & (top.index_TK < 300)).all()


def test_tables_far_from_zero_do_not_overflow() -> None:
    """Centroids that hardly differ: a step from their range alone would put a channel's start beyond 32 bits."""
    made = codec(4, 8, 16)
    near = made.codec.centroid_MSwC * np.float32(1e-7) + np.float32(1)
    made = LookupCodec(made.codec._replace(centroid_MSwC=near), made.width)
    query_code, item_code, keys = history(made, 300, 16, 8, 5)
    index = LookupIndex(made, made.prepared(query_code), made.prepared(item_code), keys)
    query = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    asked = np.einsum("te,med->tm", query.double().numpy(), made.codec.transform_Med[:, :, :16])
    expected = asked @ keys.weight_LM.double().numpy().T
    np.testing.assert_allclose(index.relevance(Probe(query)), expected, atol=0.01 * np.abs(asked).max())


def test_blocks_of_scores_start_where_they_should() -> None:
    """`relevances` scores in one piece what `top_k` scores in blocks; both must read the same codes and weights."""
    made = codec(4, 4, 256)
    query_code, item_code, keys = history(made, 1000, 256, 4, 8)
    whole = LookupIndex(made, made.prepared(query_code), made.prepared(item_code), keys)
    tail = LookupIndex(made, made.prepared(query_code), made.prepared(item_code), keys[512:])
    probe = Probe(torch.randn(3, 8, generator=torch.Generator().manual_seed(0)), torch.ones(3, 4))
    assert torch.equal(whole.relevance(probe)[:, 512:], tail.relevance(probe))
