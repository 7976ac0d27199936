"""General Search Unit: relevance of every behaviour to a target, and the K to keep.

    x^GSU(j) = x^PSU(j) G_j;   relevance(t, l) = sum_h alpha_h(t, l)                              (SEMINAR, fine-tuning)

With all heads summed, everything on the target's side folds into one vector u = sum_h Wk_h (Wq_h^T q_t + bq_h) / sqrt(d), so
relevance = sum_j weight_j <u, unit_j A_j> with A_j = s_j G_j. Codes made of `unit` stay valid while all of these learn.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from seminar.attention import TargetAttention
from seminar.config import ModelConfig
from seminar.gate import ChannelMerge, gate_softmax
from seminar.retrieval.base import Probe, newest_top_k


class GSU(ChannelMerge):
    """The GSU's own Wq and Wk, beside the gate and the G_j that it shares with the ESU."""

    def __init__(self, config: ModelConfig, generator: torch.Generator) -> None:
        super().__init__(config)
        self.attention = TargetAttention(config.dim, config.num_heads, generator, values=False)

    def fold(self, target: Float[Tensor, "*N d"]) -> Float[Tensor, "*N d"]:
        """u of merged targets: relevance is <u, merged key>."""
        return self.attention.fold(target).sum(-2)

    def probe(self, target: Float[Tensor, "N d"], gate_logit: Float[Tensor, "N M"]) -> Probe:
        """What a retriever needs to score N targets (Retriever protocol)."""
        query = self.fold(target)
        if self.gate.mode != "target":
            return Probe(query)
        return Probe(query, (gate_logit - gate_logit.amax(-1, keepdim=True)).exp())


def target_gate_weights(gate_logit: Float[Tensor, "B T M"], present: Bool[Tensor, "B L M"]) -> Float[Tensor, "B T L M"]:
    """gamma(t, l, j) of gate mode `target`: the target's logits renormalised over the behaviour's present channels."""
    shape = (*gate_logit.shape[:2], present.shape[1], -1)
    return gate_softmax(gate_logit[:, :, None].expand(shape), present[:, None].expand(shape))


@torch.no_grad()
def keep_top_k(relevance: Float[Tensor, "B T L"], mask: Bool[Tensor, "B L"], k: int) -> Int[Tensor, "B T K"]:
    """Positions of the K = min(k, L) most relevant behaviours, the newest of equals; -1 where there are fewer. PAD never wins."""
    kept = newest_top_k(relevance.masked_fill(~mask[:, None], -torch.inf), min(k, relevance.shape[-1]))
    return torch.where(mask[:, None].expand_as(relevance).gather(-1, kept), kept, -1)
