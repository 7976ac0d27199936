"""GSU over codes of merged keys, for where storage binds: 8 to 16 bytes a behaviour, found by the same SIMD look-ups as `pq`.

A merged key is one d-vector (gate of the request or of the behaviour), and one quantiser codes it: a product quantiser sub-space
by sub-space, a residual quantiser by a sum of full-width centroids, each of what those before it left. Both are faiss's, trained
on a sample of merged keys. Codes depend on the gate and on A_j, so every new model makes them anew.
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, UInt8
from numpy import ndarray
from torch import Tensor

from seminar.errors import ConfigError, explain
from seminar.faiss_extra import faiss_module
from seminar.retrieval.base import Keys, Probe, TopK
from seminar.retrieval.exact import require_no_gate
from seminar.retrieval.key_space import KeySpace
from seminar.retrieval.lookup_index import LookupCodec, LookupIndex


class MergedCodesRetriever:
    """Codes of num_bytes a behaviour, of 4 or 8 bits each; sample_Nd: merged keys to train on, at least 2^bits.

    Raises ConfigError without faiss or where the sizes do not fit.
    """

    name: str
    additive: bool

    def __init__(self, space: KeySpace, sample_Nd: Float[Tensor, "N d"], num_bytes: int, bits: int = 8) -> None:
        if bits not in (4, 8):
            raise ConfigError(explain("bits of merged codes", got=bits, expected="4 or 8", fix="choose one"))
        if len(sample_Nd) < 1 << bits:
            got, fix = f"{len(sample_Nd)} keys to train on", "sample more behaviours"
            raise ConfigError(explain(self.name, got=got, expected=f"at least {1 << bits}", fix=fix))
        self.space, self.bytes_per_behaviour = space, float(num_bytes)
        self.num_codes, self.bits = num_bytes * 8 // bits, bits
        self._quantiser = self._trained(np.ascontiguousarray(sample_Nd.detach().numpy(), np.float32))
        centroid_SCw = self._centroids()
        identity = np.eye(space.dim, dtype=np.float32)[None]
        used = np.array([centroid_SCw.shape[1]])
        self._codec = LookupCodec.of(identity, centroid_SCw[None], used, additive=self.additive)

    def index(self, keys: Keys) -> "MergedCodesIndex":
        """Merge, code and pack one history."""
        return self.index_of(self.encode(self.space.merged(keys)), keys)

    def encode(self, key_Ld: Float[Tensor, "L d"]) -> UInt8[ndarray, "L S"]:
        """Codes of merged keys, a byte each."""
        packed = self._quantiser.compute_codes(np.ascontiguousarray(key_Ld.numpy(), np.float32))
        return packed if self.bits == 8 else np.stack([packed & 15, packed >> 4], -1).reshape(len(packed), -1)

    def decode(self, code_LS: UInt8[ndarray, "L S"]) -> Float32[ndarray, "L d"]:
        """The keys that codes stand for."""
        chosen_LSw = self._centroids()[np.arange(self.num_codes), code_LS]
        return chosen_LSw.sum(1) if self.additive else chosen_LSw.reshape(len(code_LS), -1)

    def index_of(self, code_LS: UInt8[ndarray, "L S"], keys: Keys) -> "MergedCodesIndex":
        """Pack codes that were made before; of `keys` only presence is looked at."""
        any_L1 = keys.present_LM.any(1, keepdim=True)
        rows = torch.arange(len(keys))
        own = Keys(rows, torch.full_like(rows, -1), any_L1, any_L1.float())
        prepared = self._codec.prepared(code_LS[:, None])
        return MergedCodesIndex(LookupIndex(self._codec, prepared[:0], prepared, own))

    def _trained(self, sample_Nd: Float32[ndarray, "N d"]) -> Any:
        raise NotImplementedError

    def _centroids(self) -> Float32[ndarray, "S C w"]:
        raise NotImplementedError


class MergedPQRetriever(MergedCodesRetriever):
    """A product quantiser of merged keys: num_codes sub-spaces, of which there must be a whole number of dimensions each."""

    name = "merged_pq"
    additive = False

    def _trained(self, sample_Nd: Float32[ndarray, "N d"]) -> Any:
        dim = sample_Nd.shape[1]
        if dim % self.num_codes:
            got, fix = f"{self.num_codes} codes", "choose other bytes or bits"
            raise ConfigError(explain("merged_pq", got=got, expected=f"a divisor of dim {dim}", fix=fix))
        quantiser = faiss_module(self.name).ProductQuantizer(dim, self.num_codes, self.bits)
        quantiser.train(sample_Nd)
        return quantiser

    def _centroids(self) -> Float32[ndarray, "S C w"]:
        flat = faiss_module(self.name).vector_to_array(self._quantiser.centroids)
        return flat.reshape(self.num_codes, 1 << self.bits, -1)


class MergedRQRetriever(MergedCodesRetriever):
    """A residual quantiser of merged keys: num_codes centroids of full width that add up."""

    name = "merged_rq"
    additive = True

    def _trained(self, sample_Nd: Float32[ndarray, "N d"]) -> Any:
        quantiser = faiss_module(self.name).ResidualQuantizer(sample_Nd.shape[1], self.num_codes, self.bits)
        quantiser.verbose = False
        quantiser.train(sample_Nd)
        return quantiser

    def _centroids(self) -> Float32[ndarray, "S C w"]:
        flat = faiss_module(self.name).vector_to_array(self._quantiser.codebooks)
        return flat.reshape(self.num_codes, 1 << self.bits, -1)


class MergedCodesIndex:
    """Codes of one history's merged keys."""

    def __init__(self, inner: LookupIndex) -> None:
        self._inner = inner

    def __len__(self) -> int:
        return len(self._inner)

    def relevance(self, probe: Probe) -> Float[Tensor, "T L"]:
        """Relevance of decoded keys; ConfigError under a gate of the target."""
        require_no_gate(probe, "codes of merged keys")
        return self._inner.relevance(probe)

    def top_k(self, probe: Probe, k: int) -> TopK:
        """The K best by that relevance."""
        require_no_gate(probe, "codes of merged keys")
        return self._inner.top_k(probe, k)
