"""Exact GSU: the paper's form over the unit vectors of all channels, and the same relevance over merged keys.

Both are the measure of every approximation. The paper's form reads 1 KiB a behaviour (4 channels of 64), the merged one 256 B.
"""

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from seminar.errors import ConfigError, explain
from seminar.kernels.rescore import candidate_relevance
from seminar.retrieval.base import Keys, Probe, TopK, best
from seminar.retrieval.key_space import KeySpace, target_scale


class ExactRetriever:
    """Every channel kept apart: keys [L, M d], and one matrix product with the gated targets."""

    name = "exact"

    def __init__(self, space: KeySpace) -> None:
        self.space = space
        self.bytes_per_behaviour = float(space.num_channels * space.dim * 4)

    @torch.no_grad()
    def index(self, keys: Keys) -> "ExactIndex":
        """Look up and gate every channel of every behaviour."""
        return ExactIndex(self.space, keys)


class ExactIndex:
    """Keys of one history, channels side by side; weights of the behaviours inside, the target's brought by the probe."""

    def __init__(self, space: KeySpace, keys: Keys) -> None:
        self._keys = keys
        self._parts_LMd = space.parts(keys)
        self.gated_LD = (self._parts_LMd * keys.weight_LM[..., None]).flatten(1)

    def __len__(self) -> int:
        return len(self._keys)

    @torch.no_grad()
    def relevance(self, probe: Probe) -> Float[Tensor, "T L"]:
        """Float32 relevance by its definition, as one matrix product."""
        num_channels = self._parts_LMd.shape[1]
        if probe.gate_TM is None:
            return probe.query_Td.repeat(1, num_channels) @ self.gated_LD.T
        asked_TD = (probe.query_Td[:, None] * probe.gate_TM[..., None]).flatten(1)
        return asked_TD @ self._parts_LMd.flatten(1).T * target_scale(probe.gate_TM, self._keys)

    @torch.no_grad()
    def top_k(self, probe: Probe, k: int) -> TopK:
        """The K best of all."""
        return best(self.relevance(probe), k)


class MergedRetriever:
    """Exact over merged keys: 256 bytes a behaviour at d = 64. Under a target's gate channels stay apart (ExactRetriever)."""

    name = "merged"

    def __init__(self, space: KeySpace) -> None:
        self.space = space
        self.bytes_per_behaviour = float(space.dim * 4)

    @torch.no_grad()
    def index(self, keys: Keys) -> "MergedIndex":
        """Merge every behaviour's channels."""
        return MergedIndex(self.space.merged(keys))


class MergedIndex:
    """Merged keys of one history, float32."""

    def __init__(self, key_Ld: Float[Tensor, "L d"]) -> None:
        self.key_Ld = key_Ld

    def __len__(self) -> int:
        return len(self.key_Ld)

    @torch.no_grad()
    def relevance(self, probe: Probe) -> Float[Tensor, "T L"]:
        """<u, key>."""
        require_no_gate(probe, "merged keys")
        return probe.query_Td @ self.key_Ld.T

    @torch.no_grad()
    def top_k(self, probe: Probe, k: int) -> TopK:
        """The K best of all."""
        return best(self.relevance(probe), k)

    def relevance_at(self, probe: Probe, position_TR: Int[Tensor, "T R"]) -> Float[Tensor, "T R"]:
        """<u, key> of chosen behaviours, -inf at position -1; keys are read in place."""
        require_no_gate(probe, "merged keys")
        relevance_TR = np.empty(position_TR.shape, np.float32)
        query_Td = probe.query_Td.detach().contiguous().numpy()
        candidate_relevance(query_Td, self.key_Ld.numpy(), position_TR.numpy(), relevance_TR)
        return torch.from_numpy(relevance_TR)


def require_no_gate(probe: Probe, what: str) -> None:
    """Merged keys hold the behaviours' weights; a target's gate needs channels kept apart."""
    if probe.gate_TM is not None:
        fix = "use a retriever that keeps channels apart, or `auto`"
        raise ConfigError(explain(what, got="a gate of the target", expected="one of the behaviours", fix=fix))
