"""GSU over merged keys in 8 bits: 64 bytes a behaviour at d = 64, exact integer top-K by `seminar/kernels/int8.py`.

A key is stored as rint((key - centre) / step); what the centre adds to relevance is the same for all behaviours. Under a gate of
the target the channels stay apart (M d bytes), the target brings its weights, and each score is scaled by what the behaviour's
present channels add up to. On its own it recalls .985 of the exact top 100 (Gaussian keys); re-scored 1.25 times as many, all.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float32, Int32, Int64, UInt8
from numpy import ndarray
from torch import Tensor

from seminar.errors import ConfigError, explain
from seminar.kernels import int8, packing, simd
from seminar.kernels.select import STRIDE, room
from seminar.retrieval.base import Keys, Probe, TopK
from seminar.retrieval.exact import MergedIndex, require_no_gate
from seminar.retrieval.key_space import KeySpace

WORD = 4
"""Dimensions a 32-bit word of the layout."""
NO_PATTERN = np.empty(0, np.uint8), np.empty((0, 1), np.float32)


@dataclass(frozen=True)
class Levels:
    """How floats became 8-bit levels: value = centre + step * level, level in [-127, 127]; beyond that they are clipped."""

    centre_d: Float32[ndarray, " d"]
    step: np.float32
    flat: bool = False
    """All keys were alike: the step says nothing about others."""

    @classmethod
    def of(cls, key_Nd: Float32[ndarray, "N d"], *, centred: bool = True) -> "Levels":
        """Levels that clip none of these keys. centred=False keeps zero exact, as keys of separate channels need."""
        if not len(key_Nd):
            return cls(np.zeros(key_Nd.shape[1], np.float32), np.float32(1), flat=True)
        low, high = int8.extremes(key_Nd)
        centre = ((low + high) / 2).astype(np.float32) if centred else np.zeros(key_Nd.shape[1], np.float32)
        largest = float(np.abs(np.stack([low, high]) - centre).max())
        return cls(centre, np.float32(largest / 127 if largest > 0 else 1), flat=largest == 0)


@dataclass(frozen=True)
class Runs:
    """Where packed keys stand in memory, oldest first; each run is readable up to a multiple of 64 behaviours."""

    address: Int64[ndarray, " R"]
    rows: Int64[ndarray, " R"]
    longest: int

    @classmethod
    def of(cls, address: Sequence[int], rows: Sequence[int]) -> "Runs":
        """Runs at these addresses with so many behaviours each."""
        return cls(np.array(address, np.int64), np.array(rows, np.int64), max(rows, default=0))

    @classmethod
    def cut(cls, address: int, length: int, rows: int, dim: int) -> "Runs":
        """One piece of memory in blocks of `rows` behaviours."""
        starts = range(0, length, rows)
        return cls.of([address + start * dim for start in starts], [min(rows, length - start) for start in starts])


@dataclass(frozen=True)
class PackedKeys:
    """Keys of one history as the scan reads them: packed [B, d/4, 16, 4] holds level + 128 of behaviours 16 b .. 16 b + 15.

    Room beyond `length` (a multiple of 64 behaviours in all) may hold anything and is never found.
    """

    packed: UInt8[ndarray, "B words 16 4"]
    length: int
    levels: Levels

    @classmethod
    def of(cls, key_Ld: Float32[ndarray, "L d"], levels: Levels | None = None) -> "PackedKeys":
        """Pack float keys; ConfigError unless d is a multiple of 4."""
        length, dim = key_Ld.shape
        if dim % WORD:
            raise ConfigError(explain("int8 keys", got=f"dim {dim}", expected="a multiple of 4", fix="choose another model.dim"))
        levels = Levels.of(key_Ld) if levels is None else levels
        packed = simd.aligned(packed_shape(length, dim), np.uint8)
        int8.pack(key_Ld, levels.centre_d, levels.step, packed, 0)
        return cls(packed, length, levels)

    @property
    def dim(self) -> int:
        return self.packed.shape[1] * WORD

    def level_LD(self) -> Int32[ndarray, "L D"]:
        """Levels of all behaviours, in [-127, 127]."""
        return self.packed.transpose(0, 2, 1, 3).reshape(-1, self.dim)[: self.length].astype(np.int32) - 128

    def runs(self, targets: int) -> Runs:
        """The keys in cache blocks, as many targets as these want them."""
        return self._together if targets > 1 else self._alone

    @cached_property
    def _alone(self) -> Runs:
        return Runs.cut(self.packed.ctypes.data, self.length, int8.cache_rows(self.length, 1), self.dim)

    @cached_property
    def _together(self) -> Runs:
        return Runs.cut(self.packed.ctypes.data, self.length, int8.cache_rows(self.length, int8.TARGETS), self.dim)


def packed_shape(length: int, dim: int) -> tuple[int, int, int, int]:
    """[B, d/4, 16, 4] with room for `length` behaviours and up to a multiple of 64."""
    return -(-length // STRIDE) * STRIDE // int8.LANES, dim // WORD, int8.LANES, WORD


@runtime_checkable
class Packed(Protocol):
    """Packed keys, wherever they lie."""

    @property
    def length(self) -> int: ...

    @property
    def levels(self) -> Levels: ...

    @property
    def dim(self) -> int: ...

    def runs(self, targets: int) -> Runs: ...

    def level_LD(self) -> Int32[ndarray, "L D"]: ...


class Int8Retriever:
    """Merges (or, under a target's gate, concatenates) every behaviour's channels and quantises the result."""

    name = "int8"

    def __init__(self, space: KeySpace, *, target_gate: bool = False) -> None:
        self.space, self.target_gate = space, target_gate
        self.bytes_per_behaviour = float(space.dim * (space.num_channels if target_gate else 1))

    @torch.no_grad()
    def index(self, keys: Keys) -> "Int8Index":
        """Merge and pack one history: about .2 us a behaviour."""
        if not self.target_gate:
            key_Ld = self.space.merged(keys)
            return Int8Index(PackedKeys.of(key_Ld.numpy()), floats=MergedIndex(key_Ld))
        part_LD = self.space.parts(keys).flatten(1).numpy()
        return Int8Index(PackedKeys.of(part_LD, Levels.of(part_LD, centred=False)), keys)


class Int8Index:
    """Packed keys of one history. `keys`, where given, says which channels are present: the index then serves target gates.

    floats: the keys before packing, where they are at hand; re-scoring then looks nothing up.
    """

    def __init__(self, packed: Packed, keys: Keys | None = None, floats: MergedIndex | None = None) -> None:
        self.packed, self.floats, self._keys = packed, floats, keys
        self._tag = simd.TAGS[simd.path()]
        self._pattern = NO_PATTERN[0] if keys is None else _pattern(keys)

    def __len__(self) -> int:
        return self.packed.length

    def relevance(self, probe: Probe) -> Float[Tensor, "T L"]:
        """Relevance by 8-bit targets and keys."""
        query_TD, factor = self._asked(probe)
        code_TD = np.empty(query_TD.shape, np.int8)
        start_T, step_T = np.empty(len(query_TD), np.int32), np.empty(len(query_TD), np.float32)
        int8.quantise(query_TD, code_TD, start_T, step_T)
        score_TL = (code_TD.astype(np.int32) @ self.packed.level_LD().T).astype(np.float32)
        if len(self._pattern):
            score_TL *= factor[:, self._pattern[: len(self)]]
        return torch.from_numpy(self._in_units(score_TL, query_TD, step_T))

    def top_k(self, probe: Probe, k: int) -> TopK:
        """The K best by 8-bit relevance."""
        query_TD, factor_TP = self._asked(probe)
        if not k:
            return TopK(torch.empty(len(query_TD), 0, dtype=torch.int64), torch.empty(len(query_TD), 0))
        targets, levels, runs = len(query_TD), self.packed.levels, self.packed.runs(len(query_TD))
        index_TK, relevance_TK = np.empty((targets, k), np.int64), np.empty((targets, k), np.float32)
        where = self._pattern, factor_TP, *scratch_for(targets, runs.longest, k), index_TK, relevance_TK
        int8.top_k(self._tag, runs.address, runs.rows, query_TD, levels.centre_d, levels.step, *where)
        return TopK(torch.from_numpy(index_TK), torch.from_numpy(relevance_TK))

    def _asked(self, probe: Probe) -> tuple[Float32[ndarray, "T D"], Float32[ndarray, "N P"]]:
        """What targets are in the space of the packed keys; with a gate, the factor of each presence pattern."""
        if self._keys is None:
            require_no_gate(probe, "merged int8 keys")
            return np.ascontiguousarray(probe.query_Td.numpy()), NO_PATTERN[1]
        if probe.gate_TM is None:
            raise ConfigError(explain("int8 keys of separate channels", got="no gate", expected="the target's", fix="merge them"))
        gate_TM = probe.gate_TM.numpy()
        query_TD = (probe.query_Td.numpy()[:, None] * gate_TM[..., None]).reshape(len(gate_TM), -1)
        present_PM = (np.arange(1 << gate_TM.shape[1])[:, None] >> np.arange(gate_TM.shape[1])) & 1
        total_TP = gate_TM @ present_PM.T.astype(np.float32)
        factor_TP = np.divide(1, total_TP, out=np.zeros_like(total_TP), where=total_TP > 0)
        return np.ascontiguousarray(query_TD, np.float32), np.ascontiguousarray(factor_TP, np.float32)

    def _in_units(self, score_TN: ndarray, query_TD: ndarray, step_T: ndarray) -> Float32[ndarray, "T N"]:
        shift_T1 = query_TD @ self.packed.levels.centre_d[:, None]
        return (score_TN * (step_T * self.packed.levels.step)[:, None] + shift_T1).astype(np.float32)


def scratch_for(targets: int, longest: int, k: int) -> tuple[ndarray, ndarray, ndarray]:
    """This thread's buffers: scores of a cache block, group maxima, candidates. Made anew only when they do not fit."""
    rows = max(1, -(-longest // STRIDE)) * STRIDE
    wanted = rows, targets, room(rows, k)
    held = getattr(_thread, "held", ((0, 0, 0), None))
    if held[1] is None or any(need > have for need, have in zip(wanted, held[0], strict=True)):
        wanted = tuple(max(pair) for pair in zip(wanted, held[0], strict=True))
        shapes = (int8.TARGETS, wanted[0]), (wanted[0] + STRIDE,), (2, *wanted[1:])
        score, group, candidate = (simd.aligned(shape, np.int32) for shape in shapes)
        held = _thread.held = wanted, (score, group, candidate)
    return held[1]


_thread = threading.local()


def _pattern(keys: Keys) -> UInt8[ndarray, " L"]:
    """Which channels a behaviour has, as a number."""
    present_LM = np.ascontiguousarray(keys.present_LM.numpy())
    pattern_L = np.empty(len(present_LM), np.uint8)
    packing.pack_patterns(present_LM, pattern_L, np.zeros(1 << present_LM.shape[1], np.bool_))
    return pattern_L
