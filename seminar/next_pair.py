"""What a user takes next: attention from the last pair over those before it, as a unit vector in the space of merged keys.

    prediction = normalise(interest + <EOS> + last pair),   log p(pair | history) = s <prediction, pair> + log q(pair) + constant

q is the pair's popularity, which is known and need not be learned: an embedding is left with what the history adds to it. Where
negatives are drawn by q, the prior and the correction for drawing cancel, and the loss has neither (SEMINAR, L_next).
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from seminar.attention import TargetAttention
from seminar.config import ModelConfig


class NextPair(nn.Module):
    """Predicts the pair at every position of a window."""

    def __init__(self, config: ModelConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.attention = TargetAttention(config.dim, config.num_heads, generator)
        self.eos = nn.Parameter(torch.randn(config.dim, generator=generator) * 0.02)
        self.null = nn.Parameter(torch.randn(config.dim, generator=generator) * 0.02)
        self.log_temperature = nn.Parameter(torch.tensor(math.log(0.07)))

    @property
    def scale(self) -> Float[Tensor, ""]:
        """s: what cosines are multiplied by."""
        return (-self.log_temperature).exp()

    def forward(
        self, key_BLd: Float[Tensor, "B L d"], request_BL: Int[Tensor, "B L"], mask_BL: Bool[Tensor, "B L"]
    ) -> Float[Tensor, "B L d"]:
        """Prediction of each behaviour's pair from the behaviours of earlier requests (unit vectors).

        The query of position p is <EOS> plus the last pair before p's request; a first request sees only the null interest.
        """
        visible_BLL = (request_BL[:, :, None] > request_BL[:, None, :]) & mask_BL[:, None, :]
        seen_BL = visible_BLL.sum(-1)
        last_BLd = torch.gather(key_BLd, 1, (seen_BL - 1).clamp_min(0)[..., None].expand_as(key_BLd))
        query_BLd = self.eos + torch.where(seen_BL[..., None] > 0, last_BLd, 0.0)
        interest_BLd = self._attend(query_BLd, key_BLd, visible_BLL)
        interest_BLd = torch.where(seen_BL[..., None] > 0, interest_BLd, self.null)
        return functional.normalize(interest_BLd + query_BLd, dim=-1)

    def _attend(self, query_BLd: Tensor, key_BLd: Tensor, visible_BLL: Tensor) -> Float[Tensor, "B L d"]:
        # A first request sees nothing: it attends to everything, and the caller overwrites what comes of it.
        mask = (visible_BLL | ~visible_BLL.any(-1, keepdim=True))[:, None]
        attended = functional.scaled_dot_product_attention(*self.attention.by_head(query_BLd, key_BLd), attn_mask=mask, scale=1.0)
        return self.attention.joined(attended)
