"""A stable 64-bit hash of strings, whole columns at a time: the one way rows are spread, sampled and hashed to table rows.

Python's `hash(str)` differs between processes; cryptographic hashes cost a Python call per string. This one is 8 bytes a step of
the SplitMix64 finaliser, in numpy: about 5 million short ids a second. Its values are part of every artefact's format: shards,
samples of users and rows of hashed tables depend on them, so they never change (tests pin known answers).
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
from jaxtyping import UInt64
from numpy import ndarray

_SEED = np.uint64(0x9E3779B97F4A7C15)
_ALL = np.uint64(0xFFFFFFFFFFFFFFFF)


def stable_hash(strings: pa.Array | pa.ChunkedArray | ndarray | Sequence[str]) -> UInt64[ndarray, " N"]:
    """Hash of every string's UTF-8 bytes, equal in every process, on every machine and in every release.

        h = mix(seed ^ length);  for each 8-byte little-endian word w (zero-padded): h = mix(h ^ w)

    mix is the SplitMix64 finaliser (Steele, Lea, Flood: Fast splittable pseudorandom number generators, 2014), a bijection.
    Not keyed: do not use it against an adversary. Raises ValueError for a null, which has no hash.
    """
    column = _binary(strings)
    if column.null_count:
        raise ValueError("stable_hash: got a null, expected strings; drop or quarantine nulls first")
    offsets = np.frombuffer(column.buffers()[1], np.int64)[column.offset : column.offset + len(column) + 1]
    data = column.buffers()[2]
    lo, hi = (int(offsets[0]), int(offsets[-1])) if len(column) else (0, 0)
    padded = np.zeros(hi - lo + 8, np.uint8)
    if hi > lo:
        padded[: hi - lo] = np.frombuffer(data, np.uint8, count=hi - lo, offset=lo)
    return _hash_spans(padded, offsets[:-1] - lo, np.diff(offsets))


def mix64(values: UInt64[ndarray, "..."]) -> UInt64[ndarray, "..."]:
    """SplitMix64 finaliser: a bijection of 64-bit integers whose output bits all depend on all input bits."""
    z = values + _SEED
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def _binary(strings: pa.Array | pa.ChunkedArray | ndarray | Sequence[str]) -> pa.Array:
    if isinstance(strings, pa.ChunkedArray):
        strings = strings.combine_chunks()
    if not isinstance(strings, pa.Array):
        strings = pa.array(strings, pa.large_string())
    return strings.cast(pa.large_binary())


def _hash_spans(data: ndarray, start: ndarray, length: ndarray) -> ndarray:
    # Longest first, so that the strings that still have words are always a prefix.
    order = np.argsort(-length, kind="stable")
    start, length = start[order], length[order]
    words = (length + 7) // 8
    h = mix64(length.astype(np.uint64) ^ _SEED)
    word_at = np.ndarray(len(data) - 7, "<u8", buffer=data, strides=(1,))
    for step in range(int(words.max(initial=0))):
        active = int(np.searchsorted(-words, -step, side="left"))
        excess = np.maximum(8 * (step + 1) - length[:active], 0).astype(np.uint64)
        word = word_at[start[:active] + 8 * step] & (_ALL >> (np.uint64(8) * excess))
        h[:active] = mix64(h[:active] ^ word)
    out = np.empty_like(h)
    out[order] = h
    return out
