"""Parts that several papers share: the newest K of a match, and multi-head target attention with time-interval embeddings."""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from seminar.attention import TargetAttention, masked_softmax
from seminar.baselines.base import Seen
from seminar.config import ModelConfig
from seminar.encoded import pick
from seminar.esu import age_bucket
from seminar.gathered import gathered_dot, gathered_sum

AGE_BUCKETS = 16
"""Buckets of floor(log2(1 + hours)): the last begins at 3.7 years."""


@torch.no_grad()
def keep_newest(match_BTL: Bool[Tensor, "B T L"], k: int) -> Int[Tensor, "B T K"]:
    """Positions of the newest K = min(k, L) matches of each target, in increasing order; -1 where there are fewer."""
    length = match_BTL.shape[-1]
    position = torch.where(match_BTL, torch.arange(length, device=match_BTL.device), -1)
    return position.topk(min(k, length), dim=-1).values.flip(-1)


def ages(seen: Seen, kept_BTK: Int[Tensor, "B T K"]) -> Int[Tensor, "B T K"]:
    """Age bucket of each kept behaviour; of padding, that of the oldest."""
    return age_bucket(pick(seen.hours_BL, kept_BTK.clamp_min(0)), AGE_BUCKETS)


def by_value(weight: Float[Tensor, "B T H K"], value: Int[Tensor, "B T K"], num_values: int) -> Float[Tensor, "B T H V"]:
    """Weight of all behaviours that share a value of a discrete feature: attention over V rows instead of K."""
    out = weight.new_zeros(*weight.shape[:3], num_values)
    return out.scatter_add(-1, value[:, :, None].expand_as(weight), weight)


class IntervalAttention(nn.Module):
    """Multi-head target attention over kept behaviours whose keys and values carry their age (SIM, exact search unit).

    SIM concatenates an embedding of the time interval to each behaviour and projects; a sum of two projections is the same
    thing, so the age enters as a learned vector a bucket added to the behaviour, and nothing of size K x d is built.
    Targets without any kept behaviour get the learned null interest.
    """

    def __init__(self, config: ModelConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.attention = TargetAttention(config.dim, config.num_heads, generator)
        self.age = nn.Parameter(torch.randn(AGE_BUCKETS, config.dim, generator=generator) * 0.02)
        self.null = nn.Parameter(torch.randn(config.dim, generator=generator) * 0.02)

    def forward(self, seen: Seen, kept_BTK: Int[Tensor, "B T K"]) -> Float[Tensor, "B T d"]:
        """Interest of each target in the kept positions of its history (-1 padding)."""
        mask, row, bucket = kept_BTK >= 0, seen.rows(kept_BTK), ages(seen, kept_BTK)
        folded = self.attention.fold(seen.target_BTd)
        of_age = (folded @ self.age.T).gather(-1, bucket[:, :, None].expand(-1, -1, folded.shape[2], -1))
        weight = masked_softmax(gathered_dot(folded, seen.embedding_Pd, row) + of_age, mask[:, :, None])
        pooled = gathered_sum(weight, seen.embedding_Pd, row) + by_value(weight, bucket, AGE_BUCKETS) @ self.age
        return torch.where(mask.any(-1, keepdim=True), self.attention.output(pooled), self.null)
