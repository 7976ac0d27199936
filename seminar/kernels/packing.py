"""Codes and weights of a history laid out as the look-up kernels read them, gathered from the catalogue in one pass.

Behaviours are padded to a multiple of ALIGN. The last channels of a behaviour are its item's, one before them its query's.
"""

from typing import no_type_check

import numba
import numpy as np
from numpy import ndarray

from seminar.kernels import lookup4, lookup8

ALIGN = 256
"""Behaviours that packed codes are padded to: four vectors of 8-bit codes."""


def readonly(array: ndarray) -> ndarray:
    """A view that kernels take: writable and read-only arrays are two types to numba; with one of them it compiles once."""
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view


# no_type_check: the import hook that checks shapes in tests would wrap what numba must compile.


@numba.njit(nogil=True, cache=True)
@no_type_check
def pack4(query_code, item_code, query, item, by_behaviour, packed):
    """4-bit codes. query_code [Q, G], item_code [I, J G]: four codes a uint32. packed: zeros, uint32 [blocks, M G, 16].

    by_behaviour: bytes of a half as [16 behaviours][4 sub-spaces], else [4][16].
    """
    items = item_code.shape[1]
    queries = packed.shape[1] - items
    for n in range(len(item)):
        block, r = packed[n // lookup4.ROWS], n % 16
        shift = np.uint32(n % lookup4.ROWS // 16 * 4)
        if queries and query[n] >= 0:
            row = query_code[query[n]]
            for v in range(queries):
                block[v, r] |= row[v] << shift
        row = item_code[item[n]]
        for v in range(items):
            block[queries + v, r] |= row[v] << shift
    if not by_behaviour:
        for block in packed:
            for v in range(len(block)):
                by_space = block[v].copy().view(np.uint8)
                to = block[v].view(np.uint8)
                for s in range(lookup4.GROUP):
                    for r in range(16):
                        to[16 * s + r] = by_space[lookup4.GROUP * r + s]


@numba.njit(nogil=True, cache=True)
@no_type_check
def pack8(query_code, item_code, query, item, packed):
    """8-bit codes. query_code [Q, W], item_code [I, J W]: eight codes a uint64. packed: uint64 [blocks, 8 M W, 8]."""
    items = item_code.shape[1]
    queries = packed.shape[1] // 8 - items
    square = np.zeros((8, queries + items), np.uint64)
    word = np.empty(8, np.uint64)
    for first in range(0, len(item), 8):
        for i in range(8):
            n = first + i
            square[i] = 0
            if n < len(item):
                if queries and query[n] >= 0:
                    row = query_code[query[n]]
                    for v in range(queries):
                        square[i, v] = row[v]
                row = item_code[item[n]]
                for v in range(items):
                    square[i, queries + v] = row[v]
        block, column = packed[first // lookup8.ROWS], first % lookup8.ROWS // 8
        for v in range(queries + items):
            for i in range(8):
                word[i] = square[i, v]
            _transpose(word)
            for i in range(8):
                block[8 * v + i, column] = word[i]


@numba.njit(nogil=True, cache=True)
@no_type_check
def _transpose(word):
    """Byte i of word k becomes byte k of word i, for eight of each: halves, then quarters, then bytes change places."""
    for distance, mask in ((4, 0x00000000FFFFFFFF), (2, 0x0000FFFF0000FFFF), (1, 0x00FF00FF00FF00FF)):
        shift = np.uint64(8 * distance)
        for i in range(8):
            if not i & distance:
                moved = ((word[i] >> shift) ^ word[i + distance]) & np.uint64(mask)
                word[i + distance] ^= moved
                word[i] ^= moved << shift


@numba.njit(nogil=True, cache=True)
@no_type_check
def pack_weights(weight, plane):
    """Planes of bytes [M, L] from weights [L, M]: returns what one level weighs, and whether all behaviours weigh alike."""
    largest, alike = np.float32(0), True
    for n in range(weight.shape[0]):
        for j in range(weight.shape[1]):
            largest = max(largest, weight[n, j])
            alike = alike and weight[n, j] == weight[0, j]
    inverse = np.float32(255) / largest if largest > 0 else np.float32(0)
    for n in range(weight.shape[0]):
        for j in range(weight.shape[1]):
            plane[j, n] = np.uint8(weight[n, j] * inverse + np.float32(0.5))
    return largest / np.float32(255), alike


@numba.njit(nogil=True, cache=True)
@no_type_check
def pack_patterns(present, pattern, seen):
    """Which channels each behaviour has, as a number: bit j for channel j; and which numbers occur."""
    for n in range(present.shape[0]):
        bits = 0
        for j in range(present.shape[1]):
            bits |= present[n, j] << j
        pattern[n] = bits
        seen[bits] = True
