"""QIN: search what is relevant to the query first and to the target second, then attend to IDs and to content apart.

Tong Guo, Xuanping Li, Haitao Yang, Xiao Liang, Yong Yuan, Jingyou Hou, Bingqing Ke, Chao Zhang, Junlin He, Shunyu Zhang,
Enyun Yu, Wenwu Ou: "Query-dominant User Interest Network for Large-Scale Search Ranking", CIKM 2023, arXiv 2310.06444.

    near(q)     = top-K1 of cosine(query, c_l) over the history         (relevance search unit, for the query)
    kept(t)     = top-K2 of cosine(c_t, c_l) over near(q)               (relevance search unit, for the target)
    a^f_h       = softmax_kept( (x^f_t Wq^f_h + bq^f_h)(x^f_l Wk^f_h)^T / sqrt(d) + age ),   f: ID field, content field
    g_l         = sigmoid(age_l + query_l)                              (fused attention unit: how far IDs count)
    interest(t) = sum_f concat_h( sum_l g^f_l a^f_h(l) x^f_l Wv^f_h ) W_O^f,                 g^ID = g, g^content = 1 - g

c is the content vector of `content.py`; x^ID is the attribute channel (item ID and attribute tokens), x^content the sum of c's
text and image, each with a learned scale.

Cost: a query one inner product a behaviour, shared by the targets that share the query; a target one inner product of width 2d a
behaviour of near(q) (here of all L, masked: one matrix product a batch), then attention over K2.

Departures:
- The fusion of the paper depends on the user's engagement with a behaviour (how much of a video was watched). The data has
  none: g depends on the age of the behaviour and on its query (none, another one, the request's). The exact form of the fusion is
  ours: the field-wise attentions are separate softmaxes, and g shares each behaviour between the two fields.
- A target without a query (or whose query has no vector) skips the first search; the paper ranks search results only.
- Behaviours or targets without content stand last, by attributes. A field that a behaviour lacks has no part in that field's
  softmax; a field that the target lacks is attended by bq and ages alone.
- Multimodal vectors are the PSU's projections; no gradient passes through either search.
- Ages also bias the attention logits, zero at first: the other models know ages too.
- A user without behaviours gets a learned null interest.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from seminar.attention import TargetAttention, masked_softmax
from seminar.baselines.base import Found, Seen
from seminar.baselines.content import NUM_CONTENT, content_vectors, item_relevance, query_filter
from seminar.baselines.cross import NUM_QUERY_STATES, query_state
from seminar.baselines.parts import AGE_BUCKETS, ages
from seminar.config import ModelConfig
from seminar.encoded import pick
from seminar.gathered import gathered_dot, gathered_sum
from seminar.gsu import keep_top_k
from seminar.schema import ATTRIBUTES


class QIN(nn.Module):
    """Relevance search unit and fused attention unit."""

    num_extra = 0

    def __init__(self, config: ModelConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        self.ids = TargetAttention(config.dim, config.num_heads, generator)
        self.content = TargetAttention(config.dim, config.num_heads, generator)
        self.scale = nn.Parameter(torch.ones(NUM_CONTENT))
        self.age_bias = nn.Parameter(torch.zeros(2, AGE_BUCKETS, config.num_heads))
        self.age_gate = nn.Parameter(torch.zeros(AGE_BUCKETS))
        self.query_gate = nn.Parameter(torch.zeros(NUM_QUERY_STATES))
        self.null = nn.Parameter(torch.randn(config.dim, generator=generator) * 0.02)

    def forward(self, seen: Seen) -> Found:
        """Search twice, attend twice, fuse."""
        content_Pmd, has_P = content_vectors(seen.pairs)
        near_BTL = query_filter(seen, content_Pmd, has_P, self.config.baseline.query_top_k)
        relevance_BTL = item_relevance(seen, content_Pmd, has_P)[0].masked_fill(~near_BTL, -torch.inf)
        kept_BTK = keep_top_k(relevance_BTL, seen.mask_BL, self.config.top_k)
        kept_BTK = torch.where(near_BTL.gather(2, kept_BTK.clamp_min(0)), kept_BTK, -1)
        mask_BTK, row_BTK, age_BTK = kept_BTK >= 0, seen.rows(kept_BTK), ages(seen, kept_BTK)
        gate_BTK = self.gate(age_BTK, query_state(pick(seen.query_BL, kept_BTK.clamp_min(0)), seen.query_BT, self.config))
        has_id_P, id_Pd = seen.pairs.present_NM[:, ATTRIBUTES], seen.pairs.unit_NMd[:, ATTRIBUTES]
        fields = (
            (self.ids, self.age_bias[0], id_Pd, has_id_P, gate_BTK),
            (self.content, self.age_bias[1], (content_Pmd * self.scale[:, None]).sum(1), has_P, 1 - gate_BTK),
        )
        interest_BTd = torch.stack([self._attend(seen, row_BTK, age_BTK, *field) for field in fields]).sum(0)
        interest_BTd = torch.where(mask_BTK.any(-1, keepdim=True), interest_BTd, self.null)
        return Found(interest_BTd, interest_BTd.new_zeros(*seen.target_BT.shape, 0), kept_BTK)

    def gate(self, age: Int[Tensor, "B T K"], state: Int[Tensor, "B T K"]) -> Float[Tensor, "B T K"]:
        """How far each behaviour counts by its ID; the rest is by its content."""
        return torch.sigmoid(self.age_gate[age] + self.query_gate[state])

    def _attend(
        self,
        seen: Seen,
        row_BTK: Int[Tensor, "B T K"],
        age_BTK: Int[Tensor, "B T K"],
        attention: TargetAttention,
        age_bias: Float[Tensor, "A H"],
        field_Pd: Float[Tensor, "P d"],
        has_P: Bool[Tensor, " P"],
        share_BTK: Float[Tensor, "B T K"],
    ) -> Float[Tensor, "B T d"]:
        """One field's attention over the kept behaviours that have it."""
        row_BTK = torch.where(has_P[row_BTK.clamp_min(0)], row_BTK, -1)
        folded_BTHd = attention.fold(nn.functional.embedding(seen.target_BT, field_Pd))
        logit_BTHK = gathered_dot(folded_BTHd, field_Pd, row_BTK)
        logit_BTHK = logit_BTHK + nn.functional.embedding(age_BTK, age_bias).transpose(2, 3)
        weight_BTHK = masked_softmax(logit_BTHK, (row_BTK >= 0)[:, :, None])
        return attention.output(gathered_sum(weight_BTHK * share_BTK[:, :, None], field_Pd, row_BTK))
