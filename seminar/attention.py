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

    def by_head(self, query: Float[Tensor, "B Q d"], key: Float[Tensor, "B N d"]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (scaled), keys and values of each head, [B, H, Q or N, e]: where many queries meet few keys, keys are projected
        and queries are not folded."""
        of_query, of_key, of_value = (w.transpose(0, 1).flatten(1) for w in (self.wq, self.wk, self.wv))
        scaled = (query @ of_query + self.bq.flatten()) / math.sqrt(self.dim)
        query, key, value = (
            rows.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for rows in (scaled, key @ of_key, key @ of_value)
        )
        return query, key, value

    def joined(self, attended: Float[Tensor, "B H Q e"]) -> Float[Tensor, "B Q d"]:
        """Interest from each head's weighted mean of its values."""
        return attended.transpose(1, 2).flatten(2) @ self.wo

    def output(self, pooled: Float[Tensor, "*N H d"]) -> Float[Tensor, "*N d"]:
        """Interest from each head's attention-weighted mean of merged keys."""
        return torch.einsum("...hd,hde->...he", pooled, self.wv).flatten(-2) @ self.wo


def masked_softmax(logits: Float[Tensor, "*N L"], mask: Bool[Tensor, "*#N L"]) -> Float[Tensor, "*N L"]:
    """Softmax over the last axis where `mask` holds, exactly zero elsewhere; rows without any true entry are all zero."""
    weights = torch.softmax(logits.masked_fill(~mask, -torch.inf), dim=-1)
    return torch.where(mask, weights, torch.zeros_like(weights))
