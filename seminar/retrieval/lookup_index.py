"""Search of product or additive codes by SIMD table look-ups: one history, any gate, exact integer top-K.

Every target's tables are quantised to 8 bits with one step, weights of behaviours to 8 bits of the largest; nothing else is
approximate. Four-bit codes are used up to 16 centroids: they cost a third of the time and half of the bytes of 8-bit ones.
"""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int, UInt8
from numpy import ndarray
from torch import Tensor

from seminar.errors import ConfigError, explain
from seminar.kernels import lookup4, lookup8, packing, simd
from seminar.kernels.lookup import ONES, PATTERN_LIMIT, PATTERNS, PLANES
from seminar.kernels.lookup_search import EIGHT_BITS, FOUR_BITS, History, relevances, top_k
from seminar.kernels.tables import LANES, Codec
from seminar.retrieval.base import Keys, Probe, TopK

SPACE_LIMIT = 128
"""Sub-spaces a channel whose sums of bytes fit 16 bits on every path."""


@dataclass(frozen=True)
class LookupCodec:
    """Codebooks as tables are made of them. width: FOUR_BITS or EIGHT_BITS."""

    codec: Codec
    width: tuple[int, ...]

    @classmethod
    def of(
        cls,
        transform_Mde: Float[ndarray, "M d e"],
        centroid_MSCw: Float[ndarray, "M S C w"],
        num_centroids_M: Int[ndarray, " M"],
        *,
        additive: bool = False,
    ) -> "LookupCodec":
        """Targets u ask channel j for transform_j u; only its first num_centroids_j centroids are ever used.

        additive: a vector is the sum of its centroids (w = d) instead of their concatenation. ConfigError for more than 4
        channels, 256 centroids or 128 sub-spaces.
        """
        channels, spaces, centroids, _ = centroid_MSCw.shape
        if channels > 4 or centroids > lookup8.ENTRIES or spaces > SPACE_LIMIT:
            got = f"{channels} channels, {spaces} sub-spaces, {centroids} centroids"
            raise ConfigError(explain("look-up codes", got=got, expected="at most 4, 128 and 256", fix="use smaller codebooks"))
        room = 16 if centroids <= 16 else lookup8.ENTRIES
        place_MC = np.arange(room)
        place_MC = np.where(place_MC < num_centroids_M[:, None], place_MC, 0)
        padded_MSwC = np.stack([centroid_MSCw[j][:, place_MC[j]] for j in range(channels)]).swapaxes(2, 3)
        transform_Med = np.pad(transform_Mde.swapaxes(1, 2), [(0, 0), (0, 0), (0, -transform_Mde.shape[1] % LANES)])
        hop = 0 if additive else centroid_MSCw.shape[3]
        codec = Codec(np.ascontiguousarray(transform_Med, np.float32), np.ascontiguousarray(padded_MSwC, np.float32), hop)
        return cls(codec, FOUR_BITS if room == 16 else EIGHT_BITS)

    @property
    def room(self) -> int:
        """Sub-spaces a channel of the layout: padded to whole machine words of codes."""
        word = lookup4.GROUP if self.width else 8
        return self.codec.centroid_MSwC.shape[1] + -self.codec.centroid_MSwC.shape[1] % word

    def prepared(self, code_NVS: UInt8[ndarray, "N V S"]) -> ndarray:
        """Codes of N rows and V channels as packing reads them: words of eight codes, or of four 4-bit ones."""
        short = self.room - code_NVS.shape[2]
        code_NVS = np.pad(code_NVS, [(0, 0), (0, 0), (0, short)]) if short else np.ascontiguousarray(code_NVS)
        bytes_NV = code_NVS.reshape(len(code_NVS), code_NVS.shape[1] * self.room)
        return packing.readonly(bytes_NV.view(np.uint32 if self.width else np.uint64))

    def pack(self, tag: tuple[int, ...], query_code: ndarray, item_code: ndarray, keys: Keys) -> UInt8[ndarray, "B V 64"]:
        """Gather and lay out the codes of a history; query_code, item_code: `prepared`, a query's channel goes first."""
        length, vectors = len(keys) + -len(keys) % packing.ALIGN, len(self.codec.centroid_MSwC) * self.room
        query_L, item_L = (np.ascontiguousarray(row_L.numpy(), np.int64) for row_L in (keys.query_L, keys.item_L))
        if not self.width:
            bytes_BV8 = simd.aligned((length // lookup8.ROWS, vectors, 8), np.uint64)
            packing.pack8(query_code, item_code, query_L, item_L, bytes_BV8)
            return bytes_BV8.view(np.uint8)
        words_BG16 = simd.aligned((length // lookup4.ROWS, vectors // lookup4.GROUP, 16), np.uint32)
        packing.pack4(query_code, item_code, query_L, item_L, tag == simd.TAGS["avx512"], words_BG16)
        return words_BG16.view(np.uint8)


class LookupIndex:
    """Codes and weights of one history, laid out for the path of this processor when it was made."""

    def __init__(self, codec: LookupCodec, query_code: ndarray, item_code: ndarray, keys: Keys) -> None:
        self._codec, self._tag, self._length = codec, simd.TAGS[simd.path()], len(keys)
        code = codec.pack(self._tag, query_code, item_code, keys)
        length, channels = len(keys) + -len(keys) % packing.ALIGN, keys.present_LM.shape[1]
        plane_ML, pattern_1L = np.zeros((channels, length), np.uint8), np.zeros((1, length), np.uint8)
        seen, weight_LM = np.zeros(PATTERN_LIMIT, np.bool_), np.ascontiguousarray(keys.weight_LM.numpy(), np.float32)
        unit, alike = packing.pack_weights(weight_LM, plane_ML)
        packing.pack_patterns(np.ascontiguousarray(keys.present_LM.numpy()), pattern_1L[0], seen)
        plain = History(code, np.empty((0, 0), np.uint8), np.float32(1), seen, len(keys))
        # Where all behaviours weigh alike, the weights move into the tables.
        self._fold = weight_LM[:1].copy() if alike else np.empty((0, channels), np.float32)
        self._weighted = plain if alike else plain._replace(weight=plane_ML, unit=np.float32(unit))
        self._gated = plain if seen.sum() < 2 else plain._replace(weight=pattern_1L)
        self._kinds = ONES if alike else PLANES, ONES if seen.sum() < 2 else PATTERNS
        self._pattern = int(seen.argmax())

    def __len__(self) -> int:
        return self._length

    def relevance(self, probe: Probe) -> Float[Tensor, "T L"]:
        """Relevance of decoded keys, up to half a step a look-up and half a level a weight."""
        query_Td, gate_TM, kind, history = self._asked(probe)
        relevance_TL = np.empty((len(query_Td), len(self)), np.float32)
        relevances(self._codec.width, self._tag, kind, *self._codec.codec, *history, query_Td, gate_TM, relevance_TL)
        return torch.from_numpy(relevance_TL)

    def top_k(self, probe: Probe, k: int) -> TopK:
        """The K best by that relevance."""
        query_Td, gate_TM, kind, history = self._asked(probe)
        index_TK, relevance_TK = np.empty((len(query_Td), k), np.int64), np.empty((len(query_Td), k), np.float32)
        top_k(self._codec.width, self._tag, kind, *self._codec.codec, *history, query_Td, gate_TM, index_TK, relevance_TK)
        return TopK(torch.from_numpy(index_TK), torch.from_numpy(relevance_TK))

    def _asked(self, probe: Probe) -> tuple[Float32[ndarray, "T d"], Float32[ndarray, "T_ M"], tuple[int, ...], History]:
        query_Td = np.ascontiguousarray(probe.query_Td.detach().numpy(), np.float32)
        if probe.gate_TM is None:
            return query_Td, self._fold, self._kinds[0], self._weighted
        gate_TM = np.ascontiguousarray(probe.gate_TM.detach().numpy(), np.float32)
        if self._kinds[1] == ONES:
            gate_TM = _normalised(gate_TM, self._pattern)
        return query_Td, gate_TM, self._kinds[1], self._gated


def _normalised(gate_TM: Float32[ndarray, "T M"], pattern: int) -> Float32[ndarray, "T M"]:
    """Weights of a behaviour that has the channels of this pattern; zero without any."""
    present_M: Bool[ndarray, " M"] = (pattern >> np.arange(gate_TM.shape[1])) & 1 == 1
    weight_TM = np.where(present_M, gate_TM, np.float32(0))
    total_T1 = weight_TM.sum(1, keepdims=True)
    return np.divide(weight_TM, total_T1, out=np.zeros_like(weight_TM), where=total_T1 > 0)
