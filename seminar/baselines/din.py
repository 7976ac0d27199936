"""DIN: every behaviour of the whole history weighed by a small network, summed without softmax; no retrieval.

Deep Interest Network (Zhou et al., KDD 2018, arXiv 1706.06978; activation unit of figure 2):

    interest(t) = sum_l a(k_l, q_t) k_l,      a(k, q) = v . PReLU(W [k; q; k - q; k * q] + b) + c          (eq. 3)

The weights are not normalised, so that the intensity of an interest survives: a history that holds everything three times gives
three times the interest, where a softmax would give the same.

The first layer is expanded, exactly, and whatever does not depend on both sides leaves the loop:

    W [k; q; k - q; k * q] + b = k (A + diag(q) C) + (q B + b)
    A = of_key = W1 + W3,   B = of_target = W2 - W3,   C = of_product = W4,   W_i: the blocks of W, transposed

so a target is one d x h matrix and all targets of a history are one matrix product, L x d by d x T h. As PReLU(z) = s z + (1 -
s) relu(z), its linear half folds into one more inner product with k. A weight depends on pair and age bucket alone, so what a
history holds n times is computed once and counted n times.

Cost: d h multiply-adds a target and distinct behaviour (a dot product: d); nothing is prepared a history. Training: three such
products, a fourth where keeping L T h activations would take more than `KEPT` numbers, which are then computed again.

Departures: keys and targets are the merged channels of all models, not an ID embedding of the paper's. A key carries its age, a
learned vector a bucket (zero at first), as the other models know ages too. PReLU, not Dice (the paper offers both): Dice
standardises by statistics of the mini-batch, so a score in training would depend on batch mates and the loss on the number of
workers. W3 has no parameters of its own, since A and B already reach all it can. The activation unit starts as a rising
function of <k, q> (the paper leaves initialisation open), as all models here start by retrieving what is similar. A user
without behaviours has a learned null interest where the paper's sum would be zero.
"""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from seminar.baselines.base import Found, Seen
from seminar.baselines.parts import AGE_BUCKETS
from seminar.config import ModelConfig
from seminar.esu import age_bucket

KEPT = 1 << 26
"""Activations of a batch that are kept for the gradient, 256 MiB; beyond it they are computed again."""
BLOCK = 1 << 24
"""Activations that exist at one moment: targets of a history are scored in blocks, 64 MiB each."""
_SLOPE = 0.25
_GAIN, _NOISE = 4.0, 0.1


class DIN(nn.Module):
    """Local activation unit over the whole history."""

    num_extra = 0

    def __init__(self, config: ModelConfig, generator: torch.Generator) -> None:
        super().__init__()
        dim, width = config.dim, config.baseline.activation_width
        sign = torch.where(torch.arange(width) % 2 == 0, 1.0, -1.0)

        def drawn(*shape: int, std: float) -> Tensor:
            return torch.randn(shape, generator=generator) * std

        self.of_key = nn.Parameter(drawn(dim, width, std=1 / math.sqrt(2 * dim)))
        self.of_target = nn.Parameter(drawn(dim, width, std=1 / math.sqrt(2 * dim)))
        self.of_product = nn.Parameter(_GAIN * sign + drawn(dim, width, std=1.0))
        self.bias = nn.Parameter(torch.zeros(width))
        self.slope = nn.Parameter(torch.full((width,), _SLOPE))
        # Half of the hidden units rise with <k, q> and count up, half fall and count down.
        self.out = nn.Parameter(sign / width + drawn(width, std=_NOISE / width))
        self.out_bias = nn.Parameter(torch.zeros(()))
        self.age = nn.Parameter(torch.zeros(AGE_BUCKETS, dim))
        self.null = nn.Parameter(drawn(dim, std=0.02))

    def forward(self, seen: Seen) -> Found:
        """Weighted sum of all behaviours for each target."""
        batch, targets = seen.target_BT.shape
        recompute = torch.is_grad_enabled() and seen.history_BL.numel() * targets * len(self.bias) > KEPT
        target_BTd, slot_BL = seen.target_BTd, seen.history_BL * AGE_BUCKETS + age_bucket(seen.hours_BL, AGE_BUCKETS)
        interest = []
        for b in range(batch):
            slot, count = slot_BL[b, seen.mask_BL[b]].unique(return_counts=True)
            if not len(slot):
                interest.append(self.null.expand(targets, -1))
                continue
            key = functional.embedding(slot // AGE_BUCKETS, seen.embedding_Pd) + self.age[slot % AGE_BUCKETS]
            for target in target_BTd[b].split(max(BLOCK // (len(slot) * len(self.bias)), 1)):
                if recompute:
                    part = checkpoint(self.attend, key, count, target, use_reentrant=False, preserve_rng_state=False)
                else:
                    part = self.attend(key, count, target)
                interest.append(part)
        return Found(torch.cat(interest).view(batch, targets, -1), target_BTd.new_zeros(batch, targets, 0))

    def attend(self, key: Float[Tensor, "N d"], count: Int[Tensor, " N"], target: Float[Tensor, "T d"]) -> Float[Tensor, "T d"]:
        """sum_n count_n a(key_n, target) key_n."""
        return (self.activation(key, target) * count[:, None]).T @ key

    def activation(self, key: Float[Tensor, "N d"], target: Float[Tensor, "T d"]) -> Float[Tensor, "N T"]:
        """a(key, target) of every pair of them."""
        matrix = self.of_key[:, None] + target.T[..., None] * self.of_product[:, None]
        shift = target @ self.of_target + self.bias
        rising = torch.addmm(shift.flatten(), key, matrix.flatten(1)).relu_().unflatten(1, shift.shape)
        straight = self.out * self.slope
        linear = torch.addmm(shift @ straight, key, matrix @ straight)
        return rising @ (self.out * (1 - self.slope)) + linear + self.out_bias
