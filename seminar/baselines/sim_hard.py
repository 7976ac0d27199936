"""SIM-hard: keep the newest K behaviours of the target's category, then attend exactly.

Search-based Interest Model (Qi et al., CIKM 2020, arXiv 2006.05639; eq. 1 and exact search unit), hard search:

    r_l(t) = [category_l = category_t]           kept(t) = newest K of {l: r_l = 1}
    z_l = [k_l; age_l],   head_h = softmax_l(<W_bh z_l, W_ah q_t>) z,   interest = concat_h(head_h) W_O

Cost: the search compares integers (served: an inverted index by category); H d multiply-adds a target and kept behaviour.

Departures: keys and targets are the merged channels of all models; W_bh z is a sum of a projection of the behaviour and one of
its age (`IntervalAttention`), which is the same thing. Attention logits are divided by sqrt(d), and heads have values and W_O.
The paper says "same category, at most K" and leaves the order open: the newest. A target without a category, or whose category
the history lacks, has a learned null interest. The paper's second branch for short-term behaviours (DIEN) is the heads' recent
branch, shared by all models.
"""

import torch
from torch import nn

from seminar.baselines.base import Found, Seen
from seminar.baselines.parts import IntervalAttention, keep_newest
from seminar.config import ModelConfig


class SIMHard(nn.Module):
    """Search by category, exact attention with time intervals."""

    num_extra = 0

    def __init__(self, config: ModelConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.top_k = config.top_k
        self.esu = IntervalAttention(config, generator)

    def forward(self, seen: Seen) -> Found:
        """Interest of each target in the newest behaviours of its category."""
        category = seen.category_BT[..., None]
        same = (seen.category_BL[:, None] == category) & (category >= 0) & seen.mask_BL[:, None]
        kept = keep_newest(same, self.top_k)
        interest = self.esu(seen, kept)
        return Found(interest, interest.new_zeros(*interest.shape[:2], 0), kept)
