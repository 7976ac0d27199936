"""SIM-soft: a search by learned inner products, trained by a click loss of its own over the whole history, then exact attention.

Search-based Interest Model (Qi et al., CIKM 2020, arXiv 2006.05639; general search unit), soft search:

    r_l(t) = <W_b k_l, W_a q_t>                                    eq. 1, relevance
    U(t) = sum_l r_l(t) k_l,   p(t) = sigmoid(MLP[U; q])           the search unit's own click prediction
    kept(t) = the K largest r_l(t);   second stage as in SIM-hard;   loss = alpha loss_GSU + beta loss_ESU

The search learns from its own loss alone: top-K passes no gradient. alpha = auxiliary_weight, beta = 1.

Cost: d multiply-adds a target and behaviour in the search (training: as many again for U, and their gradients), H d a kept one.

Departures: keys and targets are the merged channels of all models, so the search unit owns its projections and network, not a
second embedding table. U is divided by sqrt(behaviours), which changes no order and keeps the click logit of long histories in
range. The MLP also sees U * q, as the heads of all models see interest * target. W_a and W_b start as one scaled orthogonal
frame, so the search starts by similarity, and the MLP starts rising with <U, q>: U is linear in r, so the loss alone does not
care which sign marks what matters, but top-K does. The auxiliary loss has one logit for both tasks. The exact top-K stands
where the paper serves an approximate maximum inner product search. Histories are whole up to max_history, where the paper
samples consecutive parts of those too long for training. A user without behaviours has a learned null interest; its U is zero.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from seminar.baselines.base import Found, Seen
from seminar.baselines.parts import IntervalAttention
from seminar.config import ModelConfig
from seminar.gsu import keep_top_k

_SHARPNESS = 4.0


class SIMSoft(nn.Module):
    """Learned search with its own click loss, exact attention with time intervals."""

    num_extra = 0

    def __init__(self, config: ModelConfig, generator: torch.Generator) -> None:
        super().__init__()
        dim, width = config.dim, config.hidden[-1]
        frame = torch.linalg.qr(torch.randn(dim, dim, generator=generator)).Q.contiguous() * math.sqrt(_SHARPNESS)
        self.top_k, self.weight = config.top_k, config.baseline.auxiliary_weight
        self.of_target, self.of_key = (nn.Parameter(frame.clone()) for _ in range(2))
        hidden, click = (torch.randn(shape, generator=generator) for shape in ((3 * dim, width), (width,)))
        hidden[2 * dim :] = hidden[2 * dim :].abs() * click.sign()
        self.hidden = nn.Parameter(hidden * math.sqrt(2 / (3 * dim)))
        self.hidden_bias = nn.Parameter(torch.zeros(width))
        self.click = nn.Parameter(click / math.sqrt(width))
        self.click_bias = nn.Parameter(torch.zeros(()))
        self.esu = IntervalAttention(config, generator)

    def forward(self, seen: Seen) -> Found:
        """Interest of each target in what the search keeps; in training also the search unit's click loss."""
        key, target = seen.history_BLd, seen.target_BTd
        relevance = (target @ self.of_target @ self.of_key.T) @ key.transpose(1, 2)
        kept = keep_top_k(relevance, seen.mask_BL, self.top_k)
        interest = self.esu(seen, kept)
        losses = {"search": self.weight * self.click_loss(seen, relevance, key, target)} if self.training else {}
        return Found(interest, interest.new_zeros(*interest.shape[:2], 0), kept, losses)

    def click_loss(
        self,
        seen: Seen,
        relevance_BTL: Float[Tensor, "B T L"],
        key_BLd: Float[Tensor, "B L d"],
        target_BTd: Float[Tensor, "B T d"],
    ) -> Float[Tensor, ""]:
        """Mean cross-entropy over real targets of a click prediction from U and the target alone."""
        root = seen.mask_BL.sum(1).clamp_min(1).sqrt()[:, None, None]
        pooled = relevance_BTL.masked_fill(~seen.mask_BL[:, None], 0.0) @ key_BLd / root
        hidden = (torch.cat([pooled, target_BTd, pooled * target_BTd], -1) @ self.hidden + self.hidden_bias).relu()
        logit = hidden @ self.click + self.click_bias
        bce = functional.binary_cross_entropy_with_logits(logit, seen.label_BT, reduction="none")
        return torch.where(seen.mask_BT, bce, 0.0).sum() / seen.mask_BT.sum().clamp_min(1)
