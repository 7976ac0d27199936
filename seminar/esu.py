"""Exact Search Unit: multi-head target attention over the K behaviours that the GSU kept.

Two switches come from MUSE (arXiv 2512.07216): semantic-aware attention, where content similarity enters each head's logit, and
SimTier, a histogram of target-behaviour similarities a modality. A learned bias by the behaviour's age is TWIN's device.
"""

from dataclasses import dataclass
from functools import cached_property

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from seminar.attention import TargetAttention, masked_softmax
from seminar.channels import Pairs
from seminar.config import ModelConfig
from seminar.fused_esu import Sources, fused
from seminar.gathered import gathered_dot, gathered_sum
from seminar.kernels.esu import MODALITIES
from seminar.kernels.floats import WIDTH
from seminar.rows import for_kernels
from seminar.schema import TEXT

NUM_CONTENT = MODALITIES
"""Modalities of an item: text, image, attributes."""


@dataclass(frozen=True)
class TargetGate:
    """A gate that depends on the target: key(t, k) = sum_j share[t, k, j] unit_j A_j. transform_Mde: A_j = s_j G_j."""

    share_BTKM: Float[Tensor, "B T K M"]
    transform_Mde: Float[Tensor, "M d e"]


@dataclass(frozen=True)
class Similarity:
    """cosine_BTKm of target and kept behaviour a modality, and shared_BTKm: whether both have it (False for padding)."""

    cosine_BTKm: Float[Tensor, "B T K m"]
    shared_BTKm: Bool[Tensor, "B T K m"]


@dataclass(frozen=True)
class Kept:
    """The K behaviours kept for each target, as the ESU needs them: rows of the batch's distinct pairs, nothing gathered.

    merged_Pd: merged keys of the pairs, used where `gate` is None. target_BT, row_BTK: which pair each target and each kept
    behaviour is (-1: padding). hours_BTK: age at the request.
    """

    pairs: Pairs
    merged_Pd: Float[Tensor, "P d"]
    target_BT: Int[Tensor, "B T"]
    row_BTK: Int[Tensor, "B T K"]
    hours_BTK: Float[Tensor, "B T K"]
    gate: TargetGate | None = None

    @property
    def mask_BTK(self) -> Bool[Tensor, "B T K"]:
        """False for padding."""
        return self.row_BTK >= 0

    @cached_property
    def keys(self) -> tuple[Float[Tensor, "R d"], Int[Tensor, "B T K"]]:
        """A table of merged keys and which of its rows each kept behaviour is (-1: padding); the kernel does without it."""
        if self.gate is None:
            return self.merged_Pd, self.row_BTK
        # A behaviour's key depends on the target, so every kept behaviour is a row of its own.
        weighted = self.pairs.unit_NMd[self.row_BTK.clamp_min(0)] * self.gate.share_BTKM[..., None]
        table = torch.einsum("btkmd,mde->btke", weighted, self.gate.transform_Mde).flatten(0, 2)
        row = torch.arange(len(table), device=table.device).view(self.row_BTK.shape)
        return table, torch.where(self.mask_BTK, row, -1)

    @torch.no_grad()
    def similarity(self) -> Similarity:
        """Cosine of target and kept behaviours in each content modality."""
        unit, present = self.pairs.unit_NMd[:, TEXT:], self.pairs.present_NM[:, TEXT:]
        target = unit[self.target_BT]
        cosine = [gathered_dot(target[:, :, m : m + 1], unit[:, m], self.row_BTK)[:, :, 0] for m in range(NUM_CONTENT)]
        shared = present[self.target_BT][:, :, None] & present[self.row_BTK.clamp_min(0)] & self.mask_BTK[..., None]
        # Selected: a missing vector may hold anything, also NaN.
        return Similarity(torch.where(shared, torch.stack(cosine, -1), 0.0), shared)


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

    @property
    def num_features(self) -> int:
        """Width of what SimTier adds to the interest."""
        return NUM_CONTENT * self.num_tiers

    def forward(self, target: Float[Tensor, "B T d"], kept: Kept) -> Interest:
        """Attend over the kept behaviours; a target without any gets the learned null interest."""
        attend = self._fused if _fusible(target, kept) else self._plain
        pooled, attention, tiers = attend(self.attention.fold(target), kept)
        nonempty = kept.row_BTK.amax(-1, keepdim=True) >= 0
        interest = torch.where(nonempty, self.attention.output(pooled), self.null)
        return Interest(interest, attention, tiers)

    def _plain(self, folded: Float[Tensor, "B T H d"], kept: Kept) -> tuple[Tensor, Tensor, Tensor]:
        """Pooled keys, attention and tiers by torch operations, on any device."""
        table, row = kept.keys
        similarity = kept.similarity() if self._compares else None
        logits = gathered_dot(folded, table, row)
        if self.mix is not None:
            assert similarity is not None
            logits = self._semantic(self.mix, logits, similarity)
        if self.age_bias is not None:
            logits = logits + self.age_bias[age_bucket(kept.hours_BTK, len(self.age_bias))].permute(0, 1, 3, 2)
        attention = masked_softmax(logits, kept.mask_BTK[:, :, None])
        pooled = gathered_sum(attention, table, row)
        tiers = folded.new_zeros(*row.shape[:2], 0) if similarity is None else sim_tiers(similarity, self.num_tiers)
        return pooled, attention, tiers

    def _fused(self, folded: Float[Tensor, "B T H d"], kept: Kept) -> tuple[Tensor, Tensor, Tensor]:
        """The same by one pass of the kernel; its attention passes no gradient."""
        heads, unit, gate = self.attention.num_heads, kept.pairs.unit_NMd, kept.gate
        query = folded[:, :, None] if gate is None else torch.einsum("jde,bthe->btjhd", gate.transform_Mde, folded)
        sources = Sources(
            part_PSd=kept.merged_Pd[:, None] if gate is None else unit,
            row_NK=kept.row_BTK.flatten(0, 1),
            hours_NK=kept.hours_BTK.flatten(0, 1),
            share_NKS=None if gate is None else gate.share_BTKM.flatten(0, 1),
            content_Pmd=unit.detach()[:, TEXT:] if self._compares else None,
            present_Pm=kept.pairs.present_NM[:, TEXT:] if self._compares else None,
            target_N=kept.target_BT.flatten(),
        )
        bias = folded.new_zeros(1, heads) if self.age_bias is None else self.age_bias
        mix = folded.new_tensor([1.0, 0.0, 0.0]).expand(heads, 3)
        if self.mix is not None:
            mix = torch.cat([self.mix[:, :1], self.mix[:, 1:] / self.log_temperature.exp()], 1)
        attended = fused(query.flatten(0, 1), sources, bias, mix, self.num_tiers)
        attention, pooled, count = (
            part.unflatten(0, kept.row_BTK.shape[:2])
            for part in (attended.attention_NKH, attended.pooled_NSHd, attended.count_NF)
        )
        pooled = pooled[:, :, 0] if gate is None else torch.einsum("btjhd,jde->bthe", pooled, gate.transform_Mde)
        return pooled, attention.transpose(2, 3), count.log1p()

    @property
    def _compares(self) -> bool:
        return self.mix is not None or bool(self.num_tiers)

    def _semantic(self, mix: Tensor, logits: Tensor, similarity: Similarity) -> Tensor:
        """b1 dot + b2 cos/tau + b3 dot cos/tau a head (MUSE, semantic-aware attention); cos: mean over shared modalities."""
        count = similarity.shared_BTKm.sum(-1).clamp_min(1)
        cosine = similarity.cosine_BTKm.sum(-1) / count / self.log_temperature.exp()
        b1, b2, b3 = mix[:, :, None].unbind(1)
        return b1 * logits + cosine[:, :, None] * (b2 + b3 * logits)


def age_bucket(hours: Float[Tensor, "*N"], num_buckets: int) -> Int[Tensor, "*N"]:
    """Bucket of an age: floor(log2(1 + hours)), exact, the last bucket open-ended."""
    return (torch.frexp(hours + 1).exponent - 1).long().clamp_max(num_buckets - 1)


@torch.no_grad()
def sim_tiers(similarity: Similarity, num_bins: int) -> Float[Tensor, "B T F"]:
    """SimTier: per modality, log(1 + how many kept behaviours fall in each cosine bin); F = modalities x bins.

    Bins split [-1, 1] evenly and the last one keeps cosine 1 (the item itself) inside. Missing modalities count nowhere.
    """
    cosine, shared = similarity.cosine_BTKm, similarity.shared_BTKm
    batch, targets, _, modalities = cosine.shape
    if not num_bins:
        return cosine.new_zeros(batch, targets, 0)
    bins = ((cosine + 1) * (num_bins / 2)).long().clamp_(0, num_bins - 1)
    slot = bins + num_bins * torch.arange(modalities, device=bins.device)
    counts = slot.new_zeros((batch, targets, modalities * num_bins), dtype=torch.float32)
    counts.scatter_add_(-1, slot.flatten(2), shared.flatten(2).float())
    return counts.log1p()


def _fusible(target: Tensor, kept: Kept) -> bool:
    """The kernel reads whole vectors of float32 in this machine's memory, and has a gradient where keys are merged ahead."""
    return for_kernels(target) and target.shape[-1] % WIDTH == 0 and (kept.gate is None or not torch.is_grad_enabled())
