"""Relevance and exact integer top-K by look-ups: tables are made, used and forgotten a few targets at a time.

A block of a long history's codes stays in the second-level cache while a chunk of targets passes over it; what a target has found
so far is carried from block to block.
"""

from typing import NamedTuple, no_type_check

import numba
import numpy as np
from numba.extending import overload
from numpy import ndarray

from seminar.kernels import lookup4, lookup8
from seminar.kernels.lookup import PATTERN_LIMIT
from seminar.kernels.packing import ALIGN
from seminar.kernels.select import LEAST, STRIDE, admit, first_threshold, keep_best, kth_largest, most_held, room
from seminar.kernels.tables import fill, fill_gates

EIGHT_BITS, FOUR_BITS = (), (0,)
"""Widths of codes: tuples of different length, so that each is compiled by itself."""
TABLE_BYTES = 1 << 18
"""Tables of a chunk of targets: a quarter of a second-level cache."""
CODE_BYTES = 1 << 19
"""Codes of a block of behaviours: half of it. Smaller blocks cost selection more than they save (2**17: 11.7 us, not 9.5)."""
_score4, _score8 = lookup4.score, lookup8.score
_TARGETS = lookup4.TARGETS


class History(NamedTuple):
    """Codes and weights of one history, padded to a multiple of ALIGN behaviours, by `seminar/kernels/packing.py`.

    weight: planes, patterns or nothing, by its kind. unit: what a level of a plane weighs, else 1. seen: patterns that occur.
    """

    code: ndarray
    weight: ndarray
    unit: np.float32
    seen: ndarray
    length: int


# no_type_check: the import hook that checks shapes in tests would wrap what numba must compile.


@no_type_check
def _score(width, tag, kind, code, table, start, weight, gate, first, length, scores):
    """`lookup4.score` or `lookup8.score`."""
    raise NotImplementedError


@no_type_check
def _score_eight(width, tag, kind, code, table, start, weight, gate, first, length, scores):
    _score8(tag, kind, code, table, start, weight, gate, first, length, scores)


@no_type_check
def _score_four(width, tag, kind, code, table, start, weight, gate, first, length, scores):
    _score4(tag, kind, code, table, start, weight, gate, first, length, scores)


@overload(_score)
def _choose_score(width, tag, kind, code, table, start, weight, gate, first, length, scores):  # type: ignore[no-untyped-def]
    return (_score_eight, _score_four)[len(width)]


@numba.njit(nogil=True, cache=True)
@no_type_check
def relevances(width, tag, kind, transform, centroid, hop, code, weight, unit, seen, length, query, gate, relevance):
    """relevance [T, L] of every behaviour. Arguments: a Codec, a History, targets' query [T, e] and gate.

    gate: by kind PATTERNS [T, M], weights together with a behaviour's pattern; else what channels are scaled by: [T, M], [1, M]
    for all targets or [0, M] for 1.
    """
    channels, padded = gate.shape[1], length + -length % ALIGN
    table = np.empty((1, code.shape[1] * (1 + 3 * len(width)), centroid.shape[3]), np.uint8)
    start = np.empty((1, channels if len(kind) else 1), np.int32)
    level, step = np.empty((1, channels, PATTERN_LIMIT), np.uint8), np.empty(1, np.float32)
    scores = np.empty((1, padded), np.int32)
    for t in range(len(query)):
        own = gate[t : t + 1] if len(gate) > 1 else gate
        _prepare(kind, transform, centroid, hop, unit, seen, query[t : t + 1], own, table, start, level, step)
        _score(width, tag, kind, code, table, start, weight, level, 0, padded, scores)
        for n in range(length):
            relevance[t, n] = np.float32(scores[0, n]) * step[0]


@numba.njit(nogil=True, cache=True)
@no_type_check
def top_k(width, tag, kind, transform, centroid, hop, code, weight, unit, seen, length, query, gate, index, relevance):
    """The k best of each target: index [T, k] increasing, -1 last, and relevance [T, k], -inf there. As `relevances` else."""
    targets, k = index.shape
    index[:], relevance[:] = -1, -np.inf
    if k == 0 or length == 0 or targets == 0:
        return
    channels, spaces, padded = gate.shape[1], code.shape[1] * (1 + 3 * len(width)), length + -length % ALIGN
    chunk = min(targets, max(TABLE_BYTES // (spaces * centroid.shape[3]) // _TARGETS, 1) * _TARGETS)
    rows = min(padded, max(CODE_BYTES // (code.size // padded) // ALIGN, 1) * ALIGN)
    table, step = np.empty((chunk, spaces, centroid.shape[3]), np.uint8), np.empty(chunk, np.float32)
    start = np.empty((chunk, channels if len(kind) else 1), np.int32)
    level = np.empty((chunk, channels, PATTERN_LIMIT), np.uint8)
    scores, group = np.empty((min(chunk, _TARGETS), rows), np.int32), np.empty(rows + STRIDE, np.int32)
    working = np.empty((2, room(rows, k)), np.int32)
    kept, threshold = np.empty((2, chunk, most_held(k)), np.int32), np.empty(chunk, np.int32)
    held = np.empty(chunk, np.int64)
    for begin in range(0, targets, chunk):
        end = min(begin + chunk, targets)
        own = gate[begin:end] if len(gate) > 1 else gate
        _prepare(kind, transform, centroid, hop, unit, seen, query[begin:end], own, table, start, level, step)
        held[:] = 0
        for first in range(0, length, rows):
            count = min(rows, length - first)
            for t0 in range(0, end - begin, _TARGETS):
                some = slice(t0, min(t0 + _TARGETS, end - begin))
                size = count + -count % ALIGN
                _score(width, tag, kind, code, table[some], start[some], weight, level[some], first, size, scores)
                for t in range(some.start, some.stop):
                    row = scores[t - t0]
                    row[count : count + -count % STRIDE] = LEAST
                    if first == 0:
                        threshold[t] = first_threshold(row, count, k, group)
                    held[t], threshold[t] = _keep(row, count, first, threshold[t], working, kept[:, t], held[t], k)
        for t in range(end - begin):
            _finish(kept[0, t], kept[1, t], held[t], working[1], step[t], k, index[begin + t], relevance[begin + t])


@numba.njit(nogil=True, cache=True)
@no_type_check
def _prepare(kind, transform, centroid, hop, unit, seen, query, gate, table, start, level, step):
    """Tables and weights of a few targets; relevance is step times score."""
    if len(kind) == 2:
        fill(transform, centroid, hop, query, gate[:0], table, start, step)
        units = np.empty(len(query), np.float32)
        fill_gates(gate, seen, level, units)
        for t in range(len(query)):
            step[t] *= units[t]
    else:
        fill(transform, centroid, hop, query, gate, table, start, step)
        for t in range(len(query)):
            step[t] *= unit


@numba.njit(nogil=True, cache=True)
@no_type_check
def _keep(row, count, first, threshold, working, kept, held, k):
    """Admit a block's scores to what a target has kept; room for a whole block exists once, in `working`."""
    working[:, :held] = kept[:, :held]
    held, threshold = admit(row, count, first, threshold, working[0], working[1], held, k)
    kept[:, :held] = working[:, :held]
    return held, threshold


@numba.njit(nogil=True, cache=True)
@no_type_check
def _finish(position, value, held, working, step, k, index, relevance):
    if held > k:
        working[:held] = value[:held]
        held = keep_best(position, value, held, k, kth_largest(working, held, k))
    for i in range(held):
        index[i], relevance[i] = position[i], np.float32(value[i]) * step
