"""TWIN: the search unit scores with the attention's own logits, so that what is kept is what the attention would weigh most.

Jianxin Chang, Chenbin Zhang, Zhiyi Fu, Xiaoxue Zang, Lin Guan, Jing Lu, Yiqun Hui, Dewei Leng, Yanan Niu, Yang Song, Kun Gai:
"TWIN: TWo-stage Interest Network for Lifelong User Behavior Modeling in CTR Prediction at Kuaishou", KDD 2023, arXiv 2302.02352.

A behaviour's features are split. Inherent ones (the pair) are projected once and shared by all users; each user-item cross
feature j is compressed to a scalar, a bias of the logit:

    alpha_h(t, l) = (t Wq_h + bq_h) (e_l Wk_h)^T / sqrt(d)  +  sum_j beta_hj (c_lj w_hj)
    kept(t)       = top-K of sum_h alpha_h(t, .)                                             (consistency-preserved GSU)
    interest(t)   = concat_h( softmax_kept(alpha_h) [e_l | c_l] Wv_h ) W_O                    (ESU, the same Wq, Wk and biases)

Cross features here: the behaviour's age (floor of log2 hours) and its query (none, another one, the request's). They are
discrete, so beta_hj (c_lj w_hj) is one learned number a value of the feature and head.

Cost: the heads' logits are summed before the search, so a target costs one inner product of width d a behaviour, O(L d), and an
attention over K.

Departures:
- Embeddings are the shared gated sum of channels. Cross features of the paper (watch time, clicks, page position) do not exist in
  the data; age and query stand for them. Whether the query is the request's depends on the target; it costs one addition.
- Heads are summed for the search, so that one list serves them all: our choice.
- Wq and Wk start equal (retrieval by similarity), cross-feature biases at zero.
- A user without behaviours gets a learned null interest.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from seminar.attention import TargetAttention, masked_softmax
from seminar.baselines.base import Found, Seen
from seminar.baselines.cross import NUM_QUERY_STATES, query_state
from seminar.baselines.parts import AGE_BUCKETS, ages, by_value
from seminar.config import ModelConfig
from seminar.encoded import pick
from seminar.esu import age_bucket
from seminar.gathered import gathered_dot, gathered_sum
from seminar.gsu import keep_top_k


class TWIN(nn.Module):
    """One attention in two stages."""

    num_extra = 0

    def __init__(self, config: ModelConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        self.attention = TargetAttention(config.dim, config.num_heads, generator)
        self.age_bias = nn.Parameter(torch.zeros(AGE_BUCKETS, config.num_heads))
        self.query_bias = nn.Parameter(torch.zeros(NUM_QUERY_STATES, config.num_heads))
        self.age_value = nn.Parameter(torch.randn(AGE_BUCKETS, config.dim, generator=generator) * 0.02)
        self.query_value = nn.Parameter(torch.randn(NUM_QUERY_STATES, config.dim, generator=generator) * 0.02)
        self.null = nn.Parameter(torch.randn(config.dim, generator=generator) * 0.02)

    def forward(self, seen: Seen) -> Found:
        """Keep K by summed logits, then attend over them with the same logits."""
        folded_BTHd = self.attention.fold(seen.target_BTd)
        kept_BTK = keep_top_k(self.relevance(seen, folded_BTHd), seen.mask_BL, self.config.top_k)
        mask_BTK, row_BTK, age_BTK = kept_BTK >= 0, seen.rows(kept_BTK), ages(seen, kept_BTK)
        state_BTK = query_state(pick(seen.query_BL, kept_BTK.clamp_min(0)), seen.query_BT, self.config)
        bias_BTKH = nn.functional.embedding(age_BTK, self.age_bias) + nn.functional.embedding(state_BTK, self.query_bias)
        logit_BTHK = gathered_dot(folded_BTHd, seen.embedding_Pd, row_BTK) + bias_BTKH.transpose(2, 3)
        weight_BTHK = masked_softmax(logit_BTHK, mask_BTK[:, :, None])
        pooled_BTHd = (
            gathered_sum(weight_BTHK, seen.embedding_Pd, row_BTK)
            + by_value(weight_BTHK, age_BTK, AGE_BUCKETS) @ self.age_value
            + by_value(weight_BTHK, state_BTK, NUM_QUERY_STATES) @ self.query_value
        )
        interest_BTd = torch.where(mask_BTK.any(-1, keepdim=True), self.attention.output(pooled_BTHd), self.null)
        return Found(interest_BTd, interest_BTd.new_zeros(*seen.target_BT.shape, 0), kept_BTK)

    @torch.no_grad()
    def relevance(self, seen: Seen, folded_BTHd: Float[Tensor, "B T H d"]) -> Float[Tensor, "B T L"]:
        """sum_h alpha_h of every behaviour: the ESU's logits, not a copy that learns beside them."""
        state_BTL = query_state(seen.query_BL[:, None], seen.query_BT, self.config)
        of_age_BL = self.age_bias.sum(-1)[age_bucket(seen.hours_BL, AGE_BUCKETS)]
        product_BTL = folded_BTHd.sum(2) @ seen.history_BLd.transpose(1, 2)
        return product_BTL + of_age_BL[:, None] + self.query_bias.sum(-1)[state_BTL]
