"""General taste: what a user's recent life says of an item before any search.

Means of the newest behaviours' merged keys, plain and decayed by age, meet the target through one learned matrix each. The GSU
keeps what resembles the target, so what the user likes elsewhere reaches a target that is new to the user only through this.
Pooled once a request, not once a target.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from seminar.config import ModelConfig

DECAY_HOURS = (float("inf"), 1344.0)
"""Weights exp(-age / tau): a plain mean, and one of about eight weeks."""


class Taste(nn.Module):
    """Features of each target against the pooled history; width 0 where `taste` is 0."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.newest = config.taste
        self.pools = len(DECAY_HOURS) if config.taste else 0
        self.project = nn.Parameter(torch.eye(config.dim).repeat(self.pools, 1, 1)) if self.pools else None
        self.num_features = self.pools * (config.dim + 1)

    def weights(self, hours_BL: Float[Tensor, "B L"], mask_BL: Bool[Tensor, "B L"]) -> Float[Tensor, "B S L"]:
        """Share of each behaviour in each pool: none but the newest `taste` count; they add up to 1, or 0 without behaviours."""
        from_newest = mask_BL.sum(1, keepdim=True) - torch.arange(mask_BL.shape[1], device=mask_BL.device)
        counted = mask_BL & (from_newest <= self.newest)
        tau_S = hours_BL.new_tensor(DECAY_HOURS[: self.pools])
        weight = torch.exp(-hours_BL[:, None] / tau_S[:, None]) * counted[:, None]
        return weight / weight.sum(-1, keepdim=True).clamp_min(1e-9)

    def forward(self, pooled_BSd: Float[Tensor, "B S d"], target_BTd: Float[Tensor, "B T d"]) -> Float[Tensor, "B T F"]:
        """Element-wise and inner products of every projected pool with every target."""
        if self.project is None:
            return target_BTd.new_zeros(*target_BTd.shape[:2], 0)
        taste = torch.einsum("bsd,sde->bse", pooled_BSd, self.project)
        product = taste[:, None] * target_BTd[:, :, None]
        return torch.cat([product.flatten(2), product.sum(-1)], -1)
