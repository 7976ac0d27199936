"""General Search Unit: relevance of every behaviour to a target, and the K to keep.

    x^GSU(j) = x^PSU(j) G_j;   relevance(t, l) = sum_h alpha_h(t, l)                              (SEMINAR, fine-tuning)

With all heads summed, everything on the target's side folds into one vector u = sum_h Wk_h (Wq_h^T q_t + bq_h) / sqrt(d), so
relevance = sum_j weight_j <u, unit_j A_j> with A_j = s_j G_j. Codes made of `unit` stay valid while all of these learn.
"""

import math

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from seminar.attention import TargetAttention
from seminar.config import ModelConfig
from seminar.gate import ChannelMerge, gate_softmax
from seminar.gathered import in_threads
from seminar.kernels.keep import newest_best
from seminar.retrieval.base import Probe, newest_top_k
from seminar.rows import for_kernels
from seminar.schema import NONE


class GSU(ChannelMerge):
    """The GSU's own Wq and Wk, beside the gate and the G_j that it shares with the ESU."""

    def __init__(self, config: ModelConfig, generator: torch.Generator) -> None:
        super().__init__(config)
        self.attention = TargetAttention(config.dim, config.num_heads, generator, values=False)

    def fold(self, target: Float[Tensor, "*N d"]) -> Float[Tensor, "*N d"]:
        """u of merged targets: relevance is <u, merged key>."""
        # Heads are summed, so both projections act as d x d matrices on all heads at once.
        of_target, of_key = (w.transpose(0, 1).flatten(1) for w in (self.attention.wq, self.attention.wk))
        return (target @ of_target + self.attention.bq.flatten()) @ of_key.T / math.sqrt(self.attention.dim)

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
    length = mask.sum(-1)
    padded_on_the_right = torch.equal(mask, torch.arange(mask.shape[-1], device=mask.device) < length[:, None])
    if for_kernels(relevance) and padded_on_the_right:
        return _keep_newest_best(relevance, length, min(k, relevance.shape[-1]))
    kept = newest_top_k(relevance.masked_fill(~mask[:, None], -torch.inf), min(k, relevance.shape[-1]))
    return torch.where(mask[:, None].expand_as(relevance).gather(-1, kept), kept, -1)


@torch.no_grad()
def keep_nearest(
    folded: Float[Tensor, "B T d"], key_Pd: Float[Tensor, "P d"], history: Int[Tensor, "B L"], length: Int[Tensor, " B"], k: int
) -> Int[Tensor, "B T K"]:
    """`keep_top_k` of <folded, key> for merged keys in rows `history`, of which length[b] are real; float32 on the CPU.

    One request after another, so that its relevance stays in the second-level cache.
    """
    batch, targets, _ = folded.shape
    kept = np.full((batch, targets, min(k, history.shape[1])), NONE)
    for b, count in enumerate(length.tolist()):
        if count > k:
            _newest_best(folded[b] @ key_Pd[history[b, :count]].T, np.full(targets, count), kept[b])
        else:
            kept[b, :, :count] = np.arange(count)
    return torch.from_numpy(kept)


def _keep_newest_best(relevance: Float[Tensor, "B T L"], length: Int[Tensor, " B"], k: int) -> Int[Tensor, "B T K"]:
    batch, targets, _ = relevance.shape
    kept = np.full((batch * targets, k), NONE)
    _newest_best(relevance.flatten(0, 1), length.repeat_interleave(targets).numpy(), kept)
    return torch.from_numpy(kept).view(batch, targets, k)


def _newest_best(relevance_NL: Tensor, length_N: np.ndarray, kept_NK: np.ndarray) -> None:
    row = relevance_NL.contiguous().numpy()
    in_threads(len(row), lambda n: newest_best(row[n], length_N[n], kept_NK[n]))
