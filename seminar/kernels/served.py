"""What a served request does target by target: keep the best of its candidates, attend over them, and read the recent branch.

As `rescore.py` and `esu.py` do for tensors; here keys, contents and times are read where they lie, by position in the history.
"""

from typing import no_type_check

import numba
import numpy as np

from seminar.kernels import float_blocks, floats
from seminar.kernels.counts import MS_PER_HOUR
from seminar.kernels.esu import compare, pool, soften
from seminar.kernels.floats import SIDE, WIDTH
from seminar.kernels.select import LEAST, STRIDE, kth_largest, lowest_bit, ordered, unordered

BITS = 64

# no_type_check: the import hook that checks shapes in tests would wrap what numba must compile.


@numba.njit(nogil=True, cache=True)
@no_type_check
def group_pairs(pair, start, position):
    """Positions [L] by pair: those of pair p are position[start[p] : start[p + 1]], increasing. pair [L]: of each position."""
    for p in range(len(start)):
        start[p] = 0
    for n in range(len(pair)):
        start[pair[n] + 1] += 1
    for p in range(1, len(start)):
        start[p] += start[p - 1]
    free = start.copy()
    for n in range(len(pair)):
        position[free[pair[n]]] = n
        free[pair[n]] += 1


@numba.njit(nogil=True, cache=True)
@no_type_check
def keep_best(query, key_at, candidate, row, pair, start, position, kept, kept_row, relevance):
    """The K behaviours of largest <query[t], key> among those of some pairs, of equals the newest: kept [T, K], increasing.

    candidate [T, R]: distinct pairs, row [T, R]: which key each is, in a table at an address; pair [L], start, position as
    `group_pairs` has them. kept_row [T, K]: keys of the kept. Where there are fewer than K: -1, -1 and -inf at the end.
    """
    k, num, size = kept.shape[1], candidate.shape[1], 4 * query.shape[1]
    room = -(-num // SIDE) * SIDE
    at, product = np.zeros(room, np.uintp), np.empty(WIDTH, np.float32)
    score_of, row_of = np.empty(len(start), np.int32), np.empty(len(start), np.int64)
    spread = np.empty(min(num * k, len(pair)) + STRIDE, np.int32)
    marked = np.zeros(-(-len(pair) // BITS), np.uint64)
    for t in range(len(query)):
        for r in range(room):
            at[r] = key_at + row[t, min(r, num - 1)] * size
        for r in range(0, num, SIDE):
            dots = float_blocks.dots_of_1(query[t].ctypes.data, at.ctypes.data + 8 * r, size)
            floats.store_lanes(dots, product.ctypes.data)
            for i in range(min(SIDE, num - r)):
                score_of[candidate[t, r + i]] = ordered(product[SIDE * i])
        behaviours = 0
        for r in range(num):
            p = candidate[t, r]
            row_of[p], spread[behaviours] = row[t, r], score_of[p]
            behaviours += 1
            for _ in range(1, min(start[p + 1] - start[p], k)):
                spread[behaviours] = score_of[p]
                behaviours += 1
        least = kth_largest(spread, behaviours, k) if behaviours > k else LEAST
        left, ties = k, 0
        for r in range(num):
            # The newest of a pair is marked without a branch: whether its score is above is chance, repeats are rare.
            p = candidate[t, r]
            end, above, equal = start[p + 1] - 1, score_of[p] > least, score_of[p] == least
            newest = position[end]
            marked[newest // BITS] |= np.uint64(above) << np.uint64(newest % BITS)
            spread[ties] = newest
            left -= above
            ties += equal
            if start[p] < end and (above or equal):
                for n in range(max(start[p], end + 1 - k), end):
                    if above:
                        _mark(marked, position[n])
                        left -= 1
                    else:
                        spread[ties] = position[n]
                        ties += 1
        if ties:
            oldest = kth_largest(spread, ties, left) if ties > left else LEAST
            for n in range(ties):
                if spread[n] >= oldest:
                    _mark(marked, spread[n])
        found = 0
        for word in range(len(marked)):
            bits = marked[word]
            marked[word] = 0
            while bits != 0:
                here = BITS * word + lowest_bit(bits)
                bits &= bits - np.uint64(1)
                kept[t, found], kept_row[t, found] = here, row_of[pair[here]]
                relevance[t, found] = unordered(score_of[pair[here]])
                found += 1
        for i in range(found, k):
            kept[t, i], kept_row[t, i], relevance[t, i] = -1, -1, -np.inf


@numba.njit(nogil=True, cache=True, inline="always")
@no_type_check
def _mark(marked, position):
    marked[position // BITS] |= np.uint64(1) << np.uint64(position % BITS)


@numba.njit(nogil=True, cache=True)
@no_type_check
def attend_kept(
    query, key_at, kept, kept_row, item, time_ms, now_ms, content_at, content_size, presence, target, bias, mix, pooled, count
):
    """`esu.attend` of merged keys: attention of each head over the kept behaviours into pooled [T, H, d], SimTier into count.

    content: vectors of items at an address, content_size bytes each; presence: a byte a modality of each item, or empty: nothing
    is compared.
    """
    num_kept, (heads, dim) = kept.shape[1], query.shape[1:]
    room, size = -(-num_kept // SIDE) * SIDE, 4 * dim
    row_at, compared, bias_at = np.empty((1, room), np.uintp), np.empty(room, np.uintp), np.empty(room, np.uintp)
    word = np.empty(room, np.int32)
    cosine, weight = np.zeros(SIDE * room, np.float32), np.empty(SIDE * room, np.float32)
    scale = np.ones((1, SIDE * room), np.float32)
    for t in range(len(kept)):
        length = 0
        while length < num_kept and kept[t, length] >= 0:
            length += 1
        if not length:
            continue
        for k in range(-(-length // SIDE) * SIDE):
            # The last block repeats its last row: what it gives there is not used.
            last = min(k, length - 1)
            position = kept[t, last]
            row_at[0, k] = key_at + kept_row[t, last] * size
            hours = np.float32(max((now_ms - time_ms[position]) / MS_PER_HOUR, 0.0))
            bias_at[k] = bias.ctypes.data + 4 * heads * min(floats.exponent(hours + np.float32(1)), len(bias) - 1)
            if len(presence):
                compared[k] = content_at + item[position] * content_size
                word[k] = presence[item[position]] & presence[target[t]] if k < length else 0
        if len(presence):
            compare(content_at + target[t] * content_size, compared, size, word, length, cosine, count[t])
        for first in range(0, heads, SIDE):
            soften(query[t].reshape((1, heads, dim)), first, row_at, scale, length, cosine, bias_at, mix, weight)
            pool(weight, row_at[0], length, pooled[t, first:])


@numba.njit(nogil=True, cache=True)
@no_type_check
def soften_recent(logit, num_rows):
    """Softmax over the rows of each block of 4 heads, in place: logit [T, G, rows up to a multiple of 4, 4]; zero beyond them."""
    groups, room = logit.shape[1], logit.shape[2]
    for t in range(len(logit)):
        for g in range(groups):
            base = logit.ctypes.data + 16 * room * (t * groups + g)
            top, total = floats.fill_lanes(np.float32(-np.inf)), floats.fill_lanes(np.float32(0))
            for k in range(0, room, SIDE):
                x = floats.first_lanes(floats.load_lanes(base + 16 * k), SIDE * (num_rows - k), np.float32(-np.inf))
                floats.store_lanes(x, base + 16 * k)
                top = floats.larger(x, top)
            top = floats.max_over_rows(top)
            for k in range(0, room, SIDE):
                x = floats.exp(floats.subtract(floats.load_lanes(base + 16 * k), top))
                floats.store_lanes(x, base + 16 * k)
                total = floats.add(total, x)
            share = floats.divide(floats.fill_lanes(np.float32(1)), floats.sum_over_rows(total))
            for k in range(0, room, SIDE):
                floats.store_lanes(floats.multiply(floats.load_lanes(base + 16 * k), share), base + 16 * k)


@numba.njit(nogil=True, cache=True)
@no_type_check
def taste_head(of_target, of_taste, taste, user, of_user, bias, head, start):
    """The head's first layer where it is linear in the target: head [d, N] = of_target + sum_s taste_s * of_taste_s, a row each;
    start [N] = bias + user @ of_user, what all targets share."""
    for n in range(len(start)):
        start[n] = bias[n]
    for u in range(len(user)):
        for n in range(len(start)):
            start[n] += user[u] * of_user[u, n]
    for i in range(len(head)):
        for n in range(len(start)):
            head[i, n] = of_target[i, n]
        for s in range(len(taste)):
            for n in range(len(start)):
                head[i, n] += taste[s, i] * of_taste[s, i, n]


@numba.njit(nogil=True, cache=True)
@no_type_check
def feature_rows(target, interest, recent, count, log_count, item, static, row):
    """row [T, F] from its third part on: products of interest and recent with the target, log SimTier counts, item features.

    Returns the column that comes next.
    """
    dim, tiers = target.shape[1], count.shape[1]
    for t in range(len(target)):
        for i in range(dim):
            row[t, 2 * dim + i] = interest[t, i] * target[t, i]
            row[t, 3 * dim + i] = recent[t, i] * target[t, i]
        for i in range(tiers):
            row[t, 4 * dim + i] = log_count[count[t, i]]
        for i in range(static.shape[1]):
            row[t, 4 * dim + tiers + i] = static[item[t], i]
    return 4 * dim + tiers + static.shape[1]
