"""MUSE: search by frozen multimodal similarity, then attention that this similarity guides, and a histogram of it.

Bin Wu, Feifan Yang, Zhangming Chan, Yu-Ran Gu, Jiawei Feng, Chao Yi, Xiang-Rong Sheng, Han Zhu, Jian Xu, Mang Ye, Bo Zheng:
"MUSE: A Simple Yet Effective Multimodal Search-Based Framework for Lifelong User Interest Modeling", arXiv 2512.07216, 2025;
code: github.com/alimama-tech/MUSE.

    r(t, l)     = cosine(c_t, c_l), c the content vector                                     (GSU; `content.py`)
    kept(t)     = top-K of r(t, .)
    SimTier(t)  = log(1 + how many kept behaviours fall in each bin of the cosine)           (ESU, a histogram a modality)
    SA-TA       : logit_h = gamma1_h a_h + gamma2_h r + gamma3_h a_h r,  a_h = (t Wq_h + bq_h)(e_l Wk_h)^T / sqrt(d)
    interest(t) = concat_h( softmax_kept(logit_h) e_l Wv_h ) W_O

Cost: a target one inner product of width 2d a behaviour, O(L d), then attention and SimTier over K. Nothing of the search learns.

Departures:
- Embeddings in the attention are the shared gated sum of channels, which holds the item ID and attributes that the paper uses,
  and query and content as well.
- One content vector of text and image stands for the paper's contrastively trained one. SimTier counts text and image apart,
  behaviours that lack a modality nowhere; its bins split [-1, 1] evenly. The learned factor a bin of the public code is left
  to the first layer of the shared heads, which multiplies it in the same way.
- `finetune.pretrained = "content"` starts from the content projections of SEMINAR's PSU where the paper has a contrastively
  trained encoder; `true`, from the whole PSU, item IDs included, is a variant of ours.
- Where the target or a behaviour has no content, the search falls back on attributes, behind all that content can compare.
- The age of a behaviour is a learned bias of each head's logit, zero at first: the other models know ages too.
- gamma starts at (1, 4, 0): the softmax leans to similar content before anything is learned. Our choice.
- The public code also feeds the plain mean of the kept behaviours to its tower and has an auxiliary loss (off by default): left
  out here. A user without behaviours gets a learned null interest.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from seminar.attention import TargetAttention, masked_softmax
from seminar.baselines.base import Found, Seen
from seminar.baselines.content import CONTENT, NUM_CONTENT, content_vectors, item_relevance
from seminar.baselines.parts import AGE_BUCKETS, ages
from seminar.config import ModelConfig
from seminar.esu import Similarity, sim_tiers
from seminar.gathered import gathered_dot, gathered_sum
from seminar.gsu import keep_top_k


class MUSE(nn.Module):
    """Content search, SimTier and semantic-aware target attention. num_extra: bins of the histograms."""

    def __init__(self, config: ModelConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.top_k = config.top_k
        self.num_bins = config.simtier_bins
        self.num_extra = NUM_CONTENT * config.simtier_bins
        self.attention = TargetAttention(config.dim, config.num_heads, generator)
        self.gamma = nn.Parameter(torch.tensor([1.0, 4.0, 0.0]).repeat(config.num_heads, 1))
        self.age_bias = nn.Parameter(torch.zeros(AGE_BUCKETS, config.num_heads))
        self.null = nn.Parameter(torch.randn(config.dim, generator=generator) * 0.02)

    def forward(self, seen: Seen) -> Found:
        """Keep K by content, attend over them, and count their similarities."""
        relevance_BTL, comparable_BTL = item_relevance(seen, *content_vectors(seen.pairs))
        kept_BTK = keep_top_k(relevance_BTL, seen.mask_BL, self.top_k)
        mask_BTK, row_BTK = kept_BTK >= 0, seen.rows(kept_BTK)
        cosine_BTK = torch.where(comparable_BTL, relevance_BTL, 0.0).gather(2, kept_BTK.clamp_min(0))
        of_age_BTKH = nn.functional.embedding(ages(seen, kept_BTK), self.age_bias)
        product_BTHK = gathered_dot(self.attention.fold(seen.target_BTd), seen.embedding_Pd, row_BTK)
        logit_BTHK = self.guided(product_BTHK, cosine_BTK) + of_age_BTKH.transpose(2, 3)
        weight_BTHK = masked_softmax(logit_BTHK, mask_BTK[:, :, None])
        pooled_BTHd = gathered_sum(weight_BTHK, seen.embedding_Pd, row_BTK)
        interest_BTd = torch.where(mask_BTK.any(-1, keepdim=True), self.attention.output(pooled_BTHd), self.null)
        return Found(interest_BTd, sim_tiers(self._similarity(seen, row_BTK), self.num_bins), kept_BTK)

    def guided(self, product_BTHK: Float[Tensor, "B T H K"], cosine_BTK: Float[Tensor, "B T K"]) -> Float[Tensor, "B T H K"]:
        """gamma1 a + gamma2 r + gamma3 a r of each head."""
        gamma1, gamma2, gamma3 = self.gamma[:, :, None].unbind(1)
        return gamma1 * product_BTHK + cosine_BTK[:, :, None] * (gamma2 + gamma3 * product_BTHK)

    @torch.no_grad()
    def _similarity(self, seen: Seen, row_BTK: Int[Tensor, "B T K"]) -> Similarity:
        """Cosine in text and in image apart."""
        unit_Pmd, present_Pm = seen.pairs.unit_NMd[:, CONTENT], seen.pairs.present_NM[:, CONTENT]
        target_BTmd = unit_Pmd[seen.target_BT]
        cosine = [gathered_dot(target_BTmd[:, :, [m]], unit_Pmd[:, m], row_BTK)[:, :, 0] for m in range(NUM_CONTENT)]
        shared_BTKm = present_Pm[seen.target_BT][:, :, None] & present_Pm[row_BTK.clamp_min(0)] & (row_BTK >= 0)[..., None]
        return Similarity(torch.where(shared_BTKm, torch.stack(cosine, -1), 0.0), shared_BTKm)
