"""Distinct integers in the order of their first occurrence, by one hash table: what sorting takes ten times as long for."""

from typing import no_type_check

import numba
import numpy as np

FREE = np.int64(-(2**63))
"""Marks a free place; no code has this value."""
_MIX = np.uint64(0x9E3779B97F4A7C15)
"""2^64 divided by the golden ratio: multiplying spreads neighbours over the high bits."""


# no_type_check: the import hook that checks shapes in tests would wrap what numba must compile.
@numba.njit(nogil=True, cache=True)
@no_type_check
def distinct(code, inverse):
    """The distinct codes that are >= 0, and inverse[n]: which of them code[n] is, -1 where it is negative."""
    bits = 4
    while 1 << bits < 2 * len(code):
        bits += 1
    held, number = np.full(1 << bits, FREE, np.int64), np.empty(1 << bits, np.int64)
    found, last = np.empty(len(code), np.int64), np.uint64((1 << bits) - 1)
    shift, count = np.uint64(64 - bits), 0
    for n in range(len(code)):
        here = code[n]
        if here < 0:
            inverse[n] = -1
            continue
        place = np.uint64(here) * _MIX >> shift
        while held[place] != here and held[place] != FREE:
            place = (place + np.uint64(1)) & last
        if held[place] == FREE:
            held[place], number[place], found[count] = here, count, here
            count += 1
        inverse[n] = number[place]
    return found[:count].copy()
