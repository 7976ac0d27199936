"""General taste: what a user's recent life says of an item before any search.

Means of the newest behaviours' merged keys, plain and decayed by age, meet the target through one learned matrix each; and the
PSU's next-pair predictor says how likely the target is next. The GSU keeps what resembles the target, so what the user likes
elsewhere reaches a target that is new to the user only through this. Pooled once a request, not once a target.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from seminar.config import ModelConfig
from seminar.next_pair import NextPair, newest_first

DECAY_HOURS = (float("inf"), 1344.0)
"""Weights exp(-age / tau): a plain mean, and one of about eight weeks."""


class Taste(nn.Module):
    """Features of each target against the pooled history; width 0 where `taste` and `next_pair` are 0.

    Pools [B, S, d]: means of the newest `taste` behaviours, then the pair expected after the newest `next_pair`.
    """

    def __init__(self, config: ModelConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.newest, self.window = config.taste, config.next_pair
        self.means = len(DECAY_HOURS) if config.taste else 0
        self.project = nn.Parameter(torch.eye(config.dim).repeat(self.means, 1, 1)) if self.means else None
        self.next = NextPair(config, generator) if config.next_pair else None
        self.num_features = self.means * (config.dim + 1) + (self.next is not None)

    def weights(self, hours_BL: Float[Tensor, "B L"], mask_BL: Bool[Tensor, "B L"]) -> Float[Tensor, "B S L"]:
        """Share of each behaviour in each mean: none but the newest `taste` count; they add up to 1, or 0 without behaviours."""
        from_newest = mask_BL.sum(1, keepdim=True) - torch.arange(mask_BL.shape[1], device=mask_BL.device)
        counted = mask_BL & (from_newest <= self.newest)
        tau_S = hours_BL.new_tensor(DECAY_HOURS[: self.means])
        weight = torch.exp(-hours_BL[:, None] / tau_S[:, None]) * counted[:, None]
        return weight / weight.sum(-1, keepdim=True).clamp_min(1e-9)

    def with_next(
        self, means_BSd: Float[Tensor, "B S d"], merged_Pd: Float[Tensor, "P d"], row_BL: Int[Tensor, "B L"], length_B: Tensor
    ) -> Float[Tensor, "B S2 d"]:
        """The means, and the pair expected after each history: its rows of merged_Pd, oldest first."""
        if self.next is None:
            return means_BSd
        expected_Bd = self.next.after(merged_Pd, newest_first(row_BL, length_B, self.window))
        return torch.cat([means_BSd, expected_Bd[:, None]], 1)

    def forward(self, pooled_BSd: Float[Tensor, "B S d"], target_BTd: Float[Tensor, "B T d"]) -> Float[Tensor, "B T F"]:
        """Element-wise and inner products of every projected mean with every target, and the target's logit of coming next."""
        features = []
        if self.project is not None:
            taste = torch.einsum("bsd,sde->bse", pooled_BSd[:, : self.means], self.project)
            product = taste[:, None] * target_BTd[:, :, None]
            features += [product.flatten(2), product.sum(-1)]
        if self.next is not None:
            features.append(self.next.logit(pooled_BSd[:, -1], target_BTd)[..., None])
        return torch.cat(features, -1) if features else target_BTd.new_zeros(*target_BTd.shape[:2], 0)
