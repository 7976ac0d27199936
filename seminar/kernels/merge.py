"""Merged keys of query-item pairs straight from a catalogue's tables: gate, look-up and weighted sum in one pass."""

from typing import no_type_check

import numba
import numpy as np

ITEM_CHANNELS = 3
"""Text, image, attributes: byte c of an item's word is 1 where channel c exists."""


# no_type_check: the import hook that checks shapes in tests would wrap what numba must compile.


@numba.njit(nogil=True, cache=True)
@no_type_check
def merge_pairs(item, query, item_key, item_logit, item_word, query_key, query_logit, query_present, new_key, new_logit, merged):
    """merged[n] = sum over present channels of softmax(logit) * key: item_key [I, 3, d], query_key [Q, d].

    query: -1 none; Q + i is row i of new_key, and none where new_key has no such row. Zero for a pair without any channel.
    """
    known, weight = len(query_key), np.empty(ITEM_CHANNELS + 1, np.float32)
    for n in range(len(item)):
        i, q = item[n], query[n]
        word, fresh = item_word[i], q - known
        queried = (q >= 0 and fresh < 0 and query_present[q]) or 0 <= fresh < len(new_key)
        weight[0] = -np.inf
        if queried:
            weight[0] = query_logit[q] if fresh < 0 else new_logit[fresh]
        top = weight[0]
        for c in range(ITEM_CHANNELS):
            weight[1 + c] = item_logit[i, c] if word >> (8 * c) & 1 else np.float32(-np.inf)
            top = max(top, weight[1 + c])
        merged[n] = 0
        if top == -np.inf:
            continue
        total = np.float32(0)
        for c in range(ITEM_CHANNELS + 1):
            weight[c] = np.exp(weight[c] - top)
            total += weight[c]
        # A missing row is never read: it may hold anything, also NaN.
        if queried:
            _add(merged[n], query_key[q] if fresh < 0 else new_key[fresh], weight[0] / total)
        for c in range(ITEM_CHANNELS):
            if weight[1 + c] != 0:
                _add(merged[n], item_key[i, c], weight[1 + c] / total)


@numba.njit(nogil=True, cache=True)
@no_type_check
def fit_rows(item, query, content, item_word, query_unit, query_present, new_unit, out):
    """out [T, 3]: cosine of each pair's query with its item's channels, 0 where either is missing. query as in merge_pairs."""
    known = len(query_unit)
    for t in range(len(item)):
        q, fresh = query[t], query[t] - known
        queried = (q >= 0 and fresh < 0 and query_present[q]) or 0 <= fresh < len(new_unit)
        for c in range(ITEM_CHANNELS):
            total = np.float32(0)
            if queried and item_word[item[t]] >> (8 * c) & 1:
                asked = query_unit[q] if fresh < 0 else new_unit[fresh]
                for i in range(len(asked)):
                    total += asked[i] * content[item[t], c, i]
            out[t, c] = total


@numba.njit(nogil=True)
@no_type_check
def _add(out, row, weight):
    for i in range(len(out)):
        out[i] += weight * row[i]
