"""ETA: SimHash of the model's own embeddings, the K nearest by Hamming distance, multi-head target attention over them.

End-to-end Target Attention (Chen et al. 2021, arXiv 2108.04468):

    signature(x)_i = sign(<x, plane_i>),  i < hash_bits             planes drawn once, fixed
    distance(l, t) = popcount(signature(k_l) xor signature(q_t))    kept(t) = the K smallest
    head_h = softmax_l(<q_t Wq_h, k_l Wk_h> / sqrt(d)) k_l Wv_h,    interest = concat_h(head_h) W_O

The search has no parameters and follows the embeddings as they learn; gradients reach these through the attention only. Unlike
SIM, both stages have one objective and there is no auxiliary loss.

Cost: hash_bits x d multiply-adds a distinct behaviour once a request (served: stored, hash_bits / 8 bytes each), hash_bits / 64
exclusive-ors a target and behaviour, H d multiply-adds a kept one.

Departures: keys and targets are the merged channels of all models. Kept behaviours carry their age, a learned vector a bucket,
as the other models know ages too; signatures do not. Logits carry a bias on the target's side, and W_O follows. Of equal
distances the newest is kept (the paper leaves it open). A user without behaviours has a learned null interest. The paper's
short-sequence attention is the heads' recent branch, shared by all models.
"""

import torch
from torch import nn

from seminar.baselines.base import Found, Seen
from seminar.baselines.parts import IntervalAttention
from seminar.baselines.simhash import SimHash
from seminar.config import ModelConfig


class ETA(nn.Module):
    """Hamming search over packed signatures, exact attention."""

    num_extra = 0

    def __init__(self, config: ModelConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.top_k = config.top_k
        self.simhash = SimHash(config.dim, config.baseline.hash_bits, generator)
        self.esu = IntervalAttention(config, generator)

    def forward(self, seen: Seen) -> Found:
        """Interest of each target in the behaviours whose signatures are nearest to its own."""
        kept = self.simhash.nearest(seen.embedding_Pd, seen.history_BL, seen.target_BT, seen.mask_BL, self.top_k)
        interest = self.esu(seen, kept)
        return Found(interest, interest.new_zeros(*interest.shape[:2], 0), kept)
