"""The K best behaviours among those of distinct pairs, held against plain sorting."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from seminar.kernels.distinct import distinct
from seminar.kernels.served import group_pairs, keep_best

DIM = 16


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    length=st.sampled_from([0, 1, 5, 63, 64, 65, 300]),
    pairs=st.sampled_from([1, 3, 20, 200]),
    k=st.sampled_from([1, 7, 50]),
    ties=st.booleans(),
)
def test_the_best_are_kept_in_order_and_of_equals_the_newest(seed: int, length: int, pairs: int, k: int, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    of_L = np.empty(length, np.int64)
    count = len(distinct(rng.integers(0, pairs, length), of_L))
    start, position = np.empty(count + 1, np.int64), np.empty(length, np.int64)
    group_pairs(of_L, start, position)
    # Whole numbers have exact inner products, and many that are equal.
    key = (rng.integers(-1, 2, (count, DIM)) if ties else rng.integers(-99, 99, (count, DIM))).astype(np.float32)
    query = rng.integers(-2, 3, (4, DIM)).astype(np.float32)
    candidate = np.array([rng.permutation(count) for _ in range(4)]).reshape(4, count)
    kept, row, relevance = np.empty((4, k), np.int64), np.empty((4, k), np.int64), np.empty((4, k), np.float32)
    keep_best(query, key.ctypes.data, candidate, candidate, of_L, start, position, kept, row, relevance)
    for t in range(4):
        score = (key @ query[t])[of_L] if length else np.empty(0, np.float32)
        best = np.sort(np.lexsort((np.arange(length), score))[::-1][:k])
        found = len(best)
        assert kept[t].tolist() == [*best.tolist(), *[-1] * (k - found)]
        assert row[t, :found].tolist() == of_L[best].tolist()
        assert relevance[t].tolist() == [*score[best].tolist(), *[-np.inf] * (k - found)]


def test_only_behaviours_of_the_candidates_are_kept() -> None:
    of_L = np.array([0, 1, 2, 1, 0, 2, 1])
    start, position = np.empty(4, np.int64), np.empty(7, np.int64)
    group_pairs(of_L, start, position)
    assert start.tolist() == [0, 2, 5, 7]
    assert position.tolist() == [0, 4, 1, 3, 6, 2, 5]
    key = np.arange(3, dtype=np.float32)[:, None] * np.ones(DIM, np.float32)
    candidate, out = np.array([[1, 0]]), (np.empty((1, 4), np.int64), np.empty((1, 4), np.int64), np.empty((1, 4), np.float32))
    keep_best(np.ones((1, DIM), np.float32), key.ctypes.data, candidate, candidate, of_L, start, position, *out)
    assert out[0].tolist() == [[1, 3, 4, 6]]
