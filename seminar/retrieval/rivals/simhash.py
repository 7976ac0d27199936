"""SimHash: signs of random projections instead of keys, Hamming distance instead of inner products (ETA, arXiv 2108.04468).

Two vectors at angle a differ in a share a / pi of their bits, so the K at the smallest distance are about the K at the smallest
angle to the target. 8 to 64 bytes a behaviour. The length of a key, hence how much gates and missing channels shrink it, is not
in its signs: only re-scoring brings it back.
"""

from typing import Any, no_type_check

import numba
import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, UInt64
from llvmlite import ir
from numba import types
from numba.extending import intrinsic
from numpy import ndarray
from torch import Tensor

from seminar.errors import ConfigError, explain
from seminar.kernels.select import LEAST, STRIDE, admit, cut_back, first_threshold, room
from seminar.retrieval.base import Keys, Probe, TopK
from seminar.retrieval.key_space import KeySpace
from seminar.retrieval.rivals.forms import Form, arranged, asked, width

WORD = 64
"""Bits a machine word of a signature."""
ROWS = 8192
"""Behaviours a cache block: all targets pass over one before the next."""
RUN = 1024
"""Behaviours whose distances stay in the first-level cache while the words of their signatures are added up."""


class SimHashRetriever:
    """Hashes the merged key of every behaviour, or, for a gate of the target, its channels side by side.

    bits: a multiple of 64; ConfigError otherwise. generator: draws the hyperplanes, which all histories share.
    """

    name = "simhash"

    def __init__(self, space: KeySpace, bits: int, generator: torch.Generator, *, target_gate: bool = False) -> None:
        if bits < WORD or bits % WORD:
            what = "bits of a SimHash signature"
            raise ConfigError(explain(what, got=bits, expected=f"a multiple of {WORD}", fix="try 128, 256 or 512"))
        self.space = space
        self.form: Form = "parts" if target_gate else "merged"
        self.plane_Db = torch.randn(width(space, self.form), bits, generator=generator).numpy()
        self.bytes_per_behaviour = bits / 8

    @torch.no_grad()
    def index(self, keys: Keys) -> "SimHashIndex":
        """Hash one history."""
        signature_WL = np.empty((self.plane_Db.shape[1] // WORD, len(keys)), np.uint64)
        for first in range(0, len(keys), ROWS):
            rows = slice(first, first + ROWS)
            signature_WL[:, rows] = self._sign(arranged(self.space, keys[rows], self.form).numpy()).T
        return SimHashIndex(self, signature_WL)

    def signatures(self, probe: Probe) -> UInt64[ndarray, "T W"]:
        """Signatures of the targets; ConfigError if the probe's gate is not what was hashed for."""
        return self._sign(asked(probe, self.form, self.space.num_channels))

    def _sign(self, vector_ND: Float32[ndarray, "N D"]) -> UInt64[ndarray, "N W"]:
        signature_NW = np.empty((len(vector_ND), self.plane_Db.shape[1] // WORD), np.uint64)
        _hash(vector_ND, self.plane_Db, signature_NW)
        return signature_NW


class SimHashIndex:
    """Signatures of one history, word by word."""

    def __init__(self, retriever: SimHashRetriever, signature_WL: UInt64[ndarray, "W L"]) -> None:
        self._retriever, self.signature_WL = retriever, signature_WL

    def __len__(self) -> int:
        return self.signature_WL.shape[1]

    def relevance(self, probe: Probe) -> Float[Tensor, "T L"]:
        """Minus the Hamming distance."""
        query_TW = self._retriever.signatures(probe)
        score_TL = np.empty((len(query_TW), len(self)), np.int32)
        _score_all(self.signature_WL, query_TW, score_TL)
        return torch.from_numpy(score_TL.astype(np.float32))

    def top_k(self, probe: Probe, k: int) -> TopK:
        """The K at the smallest Hamming distance."""
        index_TK, relevance_TK = nearest(self.signature_WL, self._retriever.signatures(probe), k)
        return TopK(torch.from_numpy(index_TK), torch.from_numpy(relevance_TK))


def nearest(
    signature_WL: UInt64[ndarray, "W L"], query_TW: UInt64[ndarray, "T W"], k: int
) -> tuple[Int64[ndarray, "T K"], Float32[ndarray, "T K"]]:
    """Positions (increasing, -1 last) and minus the distances (-inf last) of the k nearest of each target, newest of equals."""
    index_TK, relevance_TK = np.empty((len(query_TW), k), np.int64), np.empty((len(query_TW), k), np.float32)
    if k:
        _search(signature_WL, query_TW, index_TK, relevance_TK)
    return index_TK, relevance_TK


@intrinsic
def _count_bits(typing_context: Any, word: Any) -> Any:
    """Number of set bits; in a loop LLVM makes it the processor's own vector instruction where there is one."""

    def generate(context: Any, builder: ir.IRBuilder, signature: Any, arguments: Any) -> ir.Value:
        return builder.trunc(builder.ctpop(arguments[0]), ir.IntType(32))

    return types.int32(types.uint64), generate


# no_type_check: the import hook that checks shapes in tests would wrap what numba must compile.


@numba.njit(nogil=True, cache=True)
@no_type_check
def _score(signature, query, first, count, score):
    """score[:count] = minus the distances of the behaviours from `first` on."""
    words = len(query)
    for start in range(0, count, RUN):
        length = min(RUN, count - start)
        here, low = score[start : start + length], first + start
        here[:] = 0
        word = 0
        # Four words a pass: a distance is read and written once for 256 bits.
        while word + 4 <= words:
            a = signature[word, low : low + length]
            b = signature[word + 1, low : low + length]
            c = signature[word + 2, low : low + length]
            d = signature[word + 3, low : low + length]
            qa, qb, qc, qd = query[word], query[word + 1], query[word + 2], query[word + 3]
            for i in range(length):
                ab = _count_bits(a[i] ^ qa) + _count_bits(b[i] ^ qb)
                here[i] -= np.int32(ab + _count_bits(c[i] ^ qc) + _count_bits(d[i] ^ qd))
            word += 4
        while word < words:
            a, qa = signature[word, low : low + length], query[word]
            for i in range(length):
                here[i] -= _count_bits(a[i] ^ qa)
            word += 1


@numba.njit(nogil=True, cache=True)
@no_type_check
def _score_all(signature, query, score):
    for t in range(query.shape[0]):
        _score(signature, query[t], 0, signature.shape[1], score[t])


@numba.njit(nogil=True, cache=True)
@no_type_check
def _search(signature, query, index, relevance):
    """The k best of each target into index, relevance [T, k], a cache block of behaviours after the other."""
    length, targets, k = signature.shape[1], query.shape[0], index.shape[1]
    rows = min(ROWS, (length + STRIDE - 1) // STRIDE * STRIDE)
    score, group = np.empty(rows, np.int32), np.empty(rows + STRIDE, np.int32)
    position, value = np.empty((targets, room(rows, k)), np.int32), np.empty((targets, room(rows, k)), np.int32)
    found, threshold = np.zeros(targets, np.int64), np.empty(targets, np.int32)
    for first in range(0, length, ROWS):
        count = min(rows, length - first)
        for t in range(targets):
            _score(signature, query[t], first, count, score)
            score[count : (count + STRIDE - 1) // STRIDE * STRIDE] = LEAST
            if first == 0:
                threshold[t] = first_threshold(score, count, k, group)
            found[t], threshold[t] = admit(score, count, first, threshold[t], position[t], value[t], found[t], k)
    for t in range(targets):
        found[t] = cut_back(position[t], value[t], found[t], k)
        for i in range(k):
            index[t, i] = position[t, i] if i < found[t] else -1
            relevance[t, i] = np.float32(value[t, i]) if i < found[t] else np.float32(-np.inf)


@numba.njit(nogil=True, cache=True)
@no_type_check
def _hash(vector, plane, signature):
    """Bit b of a signature [N, W] is set if <vector, plane[:, b]> > 0. Equal vectors hash equally whatever stands around them."""
    total = np.empty(plane.shape[1], np.float32)
    for n in range(vector.shape[0]):
        total[:] = 0
        for i in range(vector.shape[1]):
            for b in range(plane.shape[1]):
                total[b] += vector[n, i] * plane[i, b]
        for w in range(signature.shape[1]):
            word = np.uint64(0)
            for b in range(WORD):
                word |= np.uint64(total[w * WORD + b] > 0) << np.uint64(b)
            signature[n, w] = word
