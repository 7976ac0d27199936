"""SDIM: behaviours that share a hash bucket with the target, summed; no search, no top-K, no softmax.

Yue Cao, Xiaojiang Zhou, Jiaqi Feng, Peihao Huang, Yao Xiao, Dayao Chen, Sheng Chen: "Sampling Is All You Need on Modeling
Long-Term User Behaviors for CTR Prediction", CIKM 2022, arXiv 2205.10249.

    h_i(x) = sign(<r_i, x>),  i = 1..m;          sig_g(x) = the tau signs of group g,  g = 1..m / tau
    interest(t) = tau / m  sum_g  l2( sum_l s_l 1[sig_g(e_l) = sig_g(t)] )

The chance of a shared signature is (1 - angle / pi)^tau, so the sum estimates attention with that kernel. A history becomes one
table of m/tau x 2^tau bucket sums; a target hashes itself and reads m/tau of them.

Cost: a history O(P m d) for the signatures of its P distinct pairs and O(L m/tau 2^tau d) for the bucket sums, a matrix product
(per behaviour and bucket, because that is faster than scattered additions on the CPU at tau = 3); a target O(m d + m/tau d)
whatever L is. Where 2^tau exceeds T, only the buckets that targets ask for are summed.

Departures:
- Embeddings are the shared gated sum of channels, and so the hash sees the query channel too.
- r_i are full Gaussian vectors; the paper's fast transform (O(m log d)) is for serving and changes nothing here.
- A behaviour is summed as s_l = e_l + a vector for its age (zero at first), as the other models also know ages; hashes see e_l.
- Hashes are drawn once and kept with the model, so that scores repeat.
- A target that shares no bucket with any behaviour, or has no behaviours, gets a learned null interest; the paper's sum is zero.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from seminar.baselines.base import Found, Seen
from seminar.baselines.parts import AGE_BUCKETS
from seminar.config import ModelConfig
from seminar.esu import age_bucket

_SMALLEST_NORM = 1e-6
"""Below it a bucket counts as empty: gradients of a normalised sum grow with its inverse."""


class SDIM(nn.Module):
    """Sampled attention by SimHash collisions."""

    num_extra = 0
    plane_dm: Tensor
    power_w: Tensor

    def __init__(self, config: ModelConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.width = config.baseline.sdim_width
        self.groups = config.baseline.sdim_hashes // self.width
        self.register_buffer("plane_dm", torch.randn(config.dim, config.baseline.sdim_hashes, generator=generator))
        self.register_buffer("power_w", 2.0 ** torch.arange(self.width), persistent=False)
        self.age = nn.Parameter(torch.zeros(AGE_BUCKETS, config.dim))
        self.null = nn.Parameter(torch.randn(config.dim, generator=generator) * 0.02)

    def forward(self, seen: Seen) -> Found:
        """Mean over groups of the normalised sum of the target's bucket."""
        signature_PG = self.signature(seen.embedding_Pd)
        of_history_BGL = torch.where(seen.mask_BL[..., None], signature_PG[seen.history_BL], -1).transpose(1, 2)
        of_target_BTG = signature_PG[seen.target_BT]
        if 2**self.width <= of_target_BTG.shape[1]:
            wanted_BGC = torch.arange(2**self.width, device=of_target_BTG.device).expand(len(of_target_BTG), self.groups, -1)
            column_BTG = of_target_BTG
        else:
            wanted_BGC = of_target_BTG.transpose(1, 2)
            column_BTG = torch.arange(wanted_BGC.shape[2], device=wanted_BGC.device)[:, None].expand_as(of_target_BTG)
        bucket_BCd, filled_BC = self._buckets(seen, of_history_BGL, wanted_BGC)
        # Reading m/tau buckets and averaging them is a product with a 0/1 matrix.
        read_BTC = functional.one_hot(column_BTG, wanted_BGC.shape[2]).flatten(2).to(bucket_BCd.dtype)
        matched_BT1 = read_BTC @ filled_BC[..., None].to(read_BTC.dtype) > 0
        return Found(
            interest_BTd=torch.where(matched_BT1, read_BTC @ bucket_BCd / self.groups, self.null),
            extra_BTF=bucket_BCd.new_zeros(*seen.target_BT.shape, 0),
        )

    @torch.no_grad()
    def signature(self, vector: Float[Tensor, "N d"]) -> Int[Tensor, "N G"]:
        """Each group's tau signs as one number in [0, 2^tau)."""
        bits = (vector @ self.plane_dm > 0).to(vector.dtype).unflatten(1, (self.groups, self.width))
        return (bits @ self.power_w.to(bits.dtype)).long()

    def _buckets(
        self, seen: Seen, of_history_BGL: Int[Tensor, "B G L"], wanted_BGC: Int[Tensor, "B G C"]
    ) -> tuple[Float[Tensor, "B GC d"], Bool[Tensor, "B GC"]]:
        """l2-normalised sum of each wanted bucket, groups one after another, and whether anything is in it."""
        behaviour_BLd = seen.history_BLd + functional.embedding(age_bucket(seen.hours_BL, AGE_BUCKETS), self.age)
        inside_BCL = (of_history_BGL[:, :, None] == wanted_BGC[..., None]).flatten(1, 2).to(behaviour_BLd.dtype)
        return functional.normalize(inside_BCL @ behaviour_BLd, dim=-1, eps=_SMALLEST_NORM), inside_BCL.sum(-1) > 0
