"""Multi-head target attention with its projections folded to the target's side: the structure PSU, GSU and ESU share.

    alpha_h = (q Wq_h + bq_h) (k Wk_h)^T / sqrt(d),   interest = concat_h( softmax(alpha_h) (k Wv_h) ) W_O      (SEMINAR)

`fold` turns a target into H vectors u_h = Wk_h (Wq_h^T q + bq_h) / sqrt(d), after which a logit is one inner product with the
merged key and no key is ever projected; `output` applies Wv and W_O to the pooled keys. Both are exact rewritings.
"""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn


class TargetAttention(nn.Module):
    """Parameters and algebra of one attention; scoring, masking and top-K belong to the caller.

    Wq and Wk start as the same scaled orthogonal frame, so the initial sum of head logits is `sharpness` times the inner product
    of target and key: retrieval by similarity before anything is learned.
    """

    def __init__(
        self, dim: int, num_heads: int, generator: torch.Generator, *, sharpness: float = 4.0, values: bool = True
    ) -> None:
        super().__init__()
        width = dim // num_heads
        frame = torch.linalg.qr(torch.randn(dim, dim, generator=generator)).Q * math.sqrt(sharpness * math.sqrt(dim))
        heads = frame.reshape(dim, num_heads, width).permute(1, 0, 2).contiguous()
        self.dim = dim
        self.num_heads = num_heads
        self.wq = nn.Parameter(heads.clone())
        self.wk = nn.Parameter(heads.clone())
        self.bq = nn.Parameter(torch.zeros(num_heads, width))
        if values:
            self.wv = nn.Parameter(torch.randn(num_heads, dim, width, generator=generator) / math.sqrt(dim))
            self.wo = nn.Parameter(torch.randn(dim, dim, generator=generator) / math.sqrt(dim))

    def fold(self, target: Float[Tensor, "*N d"]) -> Float[Tensor, "*N H d"]:
        """u_h of each target; a head's logit for key k is <u_h, k>. The key bias would be constant in l and is left out."""
        query = torch.einsum("...d,hde->...he", target, self.wq) + self.bq
        return torch.einsum("...he,hde->...hd", query, self.wk) / math.sqrt(self.dim)

    def output(self, pooled: Float[Tensor, "*N H d"]) -> Float[Tensor, "*N d"]:
        """Interest from each head's attention-weighted mean of merged keys."""
        return torch.einsum("...hd,hde->...he", pooled, self.wv).flatten(-2) @ self.wo


def masked_softmax(logits: Float[Tensor, "*N L"], mask: Bool[Tensor, "*#N L"]) -> Float[Tensor, "*N L"]:
    """Softmax over the last axis where `mask` holds, exactly zero elsewhere; rows without any true entry are all zero."""
    weights = torch.softmax(logits.masked_fill(~mask, -torch.inf), dim=-1)
    return torch.where(mask, weights, torch.zeros_like(weights))
