"""Exact Search Unit: multi-head target attention over the K behaviours that the GSU kept.

Two switches come from MUSE (arXiv 2512.07216): semantic-aware attention, where content similarity enters each head's logit, and
SimTier, a histogram of target-behaviour similarities a modality. A learned bias by the behaviour's age is TWIN's device.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from seminar.attention import TargetAttention, masked_softmax
from seminar.config import ModelConfig
from seminar.gathered import gathered_dot, gathered_sum
from seminar.schema import NUM_CHANNELS

NUM_CONTENT = NUM_CHANNELS - 1
"""Modalities of an item: text, image, attributes."""


@dataclass(frozen=True)
class Kept:
    """The K behaviours kept for each target, as the ESU needs them.

    table_Pd, row_BTK: merged keys, and which row each kept behaviour is (-1: padding); keys are never gathered. hours_BTK: age
    at the request. similarity_BTKm: cosine of target and behaviour a modality (text, image, attributes), and shared_BTKm:
    whether both have it.
    """

    table_Pd: Float[Tensor, "P d"]
    row_BTK: Int[Tensor, "B T K"]
    hours_BTK: Float[Tensor, "B T K"]
    similarity_BTKm: Float[Tensor, "B T K m"]
    shared_BTKm: Bool[Tensor, "B T K m"]

    @property
    def mask_BTK(self) -> Bool[Tensor, "B T K"]:
        """False for padding."""
        return self.row_BTK >= 0


@dataclass(frozen=True)
class Interest:
    """ESU output: interest_BTd, each head's attention over the kept behaviours, SimTier counts (or width 0)."""

    interest_BTd: Float[Tensor, "B T d"]
    attention_BTHK: Float[Tensor, "B T H K"]
    tiers_BTF: Float[Tensor, "B T F"]


class ESU(nn.Module):
    """Own Wq, Wk, Wv over merged keys, with age bias and semantic-aware attention."""

    def __init__(self, config: ModelConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.attention = TargetAttention(config.dim, config.num_heads, generator)
        self.null = nn.Parameter(torch.randn(config.dim, generator=generator) * 0.02)
        self.num_tiers = config.simtier_bins if config.simtier else 0
        self.age_bias = nn.Parameter(torch.zeros(config.time_buckets, config.num_heads)) if config.time_buckets else None
        if config.semantic_attention:
            self.mix = nn.Parameter(torch.tensor([[1.0, 0.0, 0.0]]).repeat(config.num_heads, 1))
            self.log_temperature = nn.Parameter(torch.zeros(()))
        else:
            self.mix = None

    def forward(self, target: Float[Tensor, "B T d"], kept: Kept) -> Interest:
        """Attend over the kept behaviours; a target without any gets the learned null interest."""
        logits = gathered_dot(self.attention.fold(target), kept.table_Pd, kept.row_BTK)
        if self.mix is not None:
            logits = self._semantic(self.mix, logits, kept)
        if self.age_bias is not None:
            logits = logits + self.age_bias[age_bucket(kept.hours_BTK, len(self.age_bias))].permute(0, 1, 3, 2)
        attention = masked_softmax(logits, kept.mask_BTK[:, :, None])
        pooled = gathered_sum(attention, kept.table_Pd, kept.row_BTK)
        nonempty = kept.mask_BTK.any(-1, keepdim=True)
        interest = torch.where(nonempty, self.attention.output(pooled), self.null)
        return Interest(interest, attention, sim_tiers(kept, self.num_tiers))

    def _semantic(self, mix: Tensor, logits: Tensor, kept: Kept) -> Tensor:
        """b1 dot + b2 cos/tau + b3 dot cos/tau a head (MUSE, semantic-aware attention); cos: mean over shared modalities."""
        count = kept.shared_BTKm.sum(-1).clamp_min(1)
        cosine = (kept.similarity_BTKm * kept.shared_BTKm).sum(-1) / count / self.log_temperature.exp()
        b1, b2, b3 = mix[:, :, None].unbind(1)
        return b1 * logits + cosine[:, :, None] * (b2 + b3 * logits)


def age_bucket(hours: Float[Tensor, "*N"], num_buckets: int) -> Int[Tensor, "*N"]:
    """Bucket of an age: floor(log2(1 + hours)), the last bucket open-ended."""
    return torch.log2(hours + 1).long().clamp_max(num_buckets - 1)


@torch.no_grad()
def sim_tiers(kept: Kept, num_bins: int) -> Float[Tensor, "B T F"]:
    """SimTier: per modality, log(1 + how many kept behaviours fall in each cosine bin); F = modalities x bins.

    Bins split [-1, 1] evenly and the last one keeps cosine 1 (the item itself) inside. Missing modalities count nowhere.
    """
    batch, targets, _, modalities = kept.similarity_BTKm.shape
    if not num_bins:
        return kept.similarity_BTKm.new_zeros(batch, targets, 0)
    bins = ((kept.similarity_BTKm + 1) * (num_bins / 2)).long().clamp_(0, num_bins - 1)
    counted = kept.shared_BTKm & kept.mask_BTK[..., None]
    slot = bins + num_bins * torch.arange(modalities, device=bins.device)
    counts = slot.new_zeros((batch, targets, modalities * num_bins), dtype=torch.float32)
    counts.scatter_add_(-1, slot.flatten(2), counted.flatten(2).float())
    return counts.log1p()
