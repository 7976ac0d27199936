"""The ESU's attention in one pass a target, for serving and training: reads the K kept rows in place.

What the torch form does in a dozen tensors of [B, T, H, K] stays in the first-level cache here, target by target: cosines of the
content modalities, SimTier counts, logits of all heads, semantic mix, age bias, softmax and pooling. At K = 100, H = 4 and d = 64
a target takes 4 us, 2 us without cosines and SimTier, on one core with AVX-512.

A key is a sum of parts, each a share times a row: one part where keys are merged ahead, a part a channel where the target's gate
decides. No key is built then: queries and pooled rows pass through A_j, x = sum_j share_j <A_j u_h, unit_j>. A gradient is taken
of merged keys alone, in one more pass (`seminar/kernels/esu_gradient.py`).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

from seminar.gathered import in_threads
from seminar.kernels.esu import MODALITIES, attend
from seminar.kernels.esu_gradient import retrace
from seminar.kernels.floats import SIDE


@dataclass(frozen=True)
class Sources:
    """What the kernel reads in place for N targets.

    part_PSd: the S parts of each key. row_NK: which key each kept behaviour is (-1: padding). hours_NK: its age. target_N: the
    targets' rows. share_NKS: weight of each part, None for 1. content_Pmd, present_Pm: vectors to compare, by the same rows, and
    which exist; None: nothing is compared.
    """

    part_PSd: Float[Tensor, "P S d"]
    row_NK: Int[Tensor, "N K"]
    hours_NK: Float[Tensor, "N K"]
    target_N: Int[Tensor, " N"]
    share_NKS: Float[Tensor, "N K S"] | None = None
    content_Pmd: Float[Tensor, "P m d"] | None = None
    present_Pm: Bool[Tensor, "P m"] | None = None


@dataclass(frozen=True)
class Attended:
    """attention_NKH: softmax weights, 0 at padding. pooled_NSHd: weighted sum of each part. count_NF: SimTier counts."""

    attention_NKH: Float[Tensor, "N K H"]
    pooled_NSHd: Float[Tensor, "N S H d"]
    count_NF: Int[Tensor, "N F"]


def fused(
    query_NSHd: Float[Tensor, "N S H d"],
    sources: Sources,
    bias_EH: Float[Tensor, "E H"],
    mix_H3: Float[Tensor, "H 3"],
    num_bins: int,
) -> Attended:
    """Attention of each head over the kept rows with logit b1 x + cosine (b2 + b3 x) + bias[age], and SimTier counts.

    x: sum over parts of share times inner product. cosine: mean over the modalities both have, 0 if there is none. bias_EH: by
    floor(log2(1 + hours)), the last row open-ended. d must be a multiple of 16; float32 on the CPU. With one part, gradients flow
    from the pooled rows to query, keys, bias and mix; attention and counts pass none.
    """
    wanted = (query_NSHd, sources.part_PSd, bias_EH, mix_H3)
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in wanted):
        assert sources.share_NKS is None, "the gradient is written for merged keys"
        return Attended(*_Attend.apply(*wanted, sources, num_bins))
    return _attend(query_NSHd, sources, bias_EH, mix_H3, num_bins, None)


class _Attend(torch.autograd.Function):
    """The same with gradients of query, merged keys, bias and mix; nothing flows back through attention and counts."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, part: Tensor, bias: Tensor, mix: Tensor, sources: Sources, num_bins: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        similar = np.zeros(sources.row_NK.shape if sources.content_Pmd is not None else (0, 0), np.float32)
        attended = _attend(query, sources, bias, mix, num_bins, similar)
        ctx.save_for_backward(query, part, bias, mix, attended.attention_NKH, sources.row_NK, sources.hours_NK)
        ctx.similar = similar
        ctx.mark_non_differentiable(attended.attention_NKH, attended.count_NF)
        return attended.attention_NKH, attended.pooled_NSHd, attended.count_NF

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # type: ignore[bad-override]
        query, part, bias, mix, attention, row, hours = ctx.saved_tensors
        heads = query.shape[2]
        short = -heads % SIDE
        asked, given = _padded(query[:, 0], -2, short), _padded(grad_outputs[1][:, 0], -2, short)
        weight, shares = _padded(attention, -1, short), _padded(mix.T, -1, short)
        table, rows, ages, similar = _address(part), row.contiguous().numpy(), hours.contiguous().numpy(), ctx.similar
        of_query = np.zeros(asked.shape, np.float32)

        def work(n: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            # Rows of different threads meet in these, so each thread has its own.
            own = [
                np.zeros(shape, np.float32) for shape in ((len(part), part.shape[2]), (len(bias), heads + short), shares.shape)
            ]
            same = similar[n] if len(similar) else similar
            retrace(asked[n], table, rows[n], ages[n], same, shares, weight[n], given[n], of_query[n], *own)
            return own[0], own[1], own[2]

        first, *others = in_threads(len(rows), work)
        for other in others:
            for total, addend in zip(first, other, strict=True):
                total += addend
        of_table, of_bias, of_mix = (torch.from_numpy(total) for total in first)
        return torch.from_numpy(of_query)[:, None, :heads], of_table[:, None], of_bias[:, :heads], of_mix[:, :heads].T, None, None


def _attend(
    query_NSHd: Tensor, sources: Sources, bias_EH: Tensor, mix_H3: Tensor, num_bins: int, similar: np.ndarray | None
) -> Attended:
    """similar [N, K]: where the cosines are left, or None."""
    num_targets, num_parts, num_heads, dim = query_NSHd.shape
    short = -num_heads % SIDE
    query, bias, mix = _padded(query_NSHd, -2, short), _padded(bias_EH, -1, short), _padded(mix_H3.T, -1, short)
    row, hours = sources.row_NK.contiguous().numpy(), sources.hours_NK.contiguous().numpy()
    share = np.empty((0, 0, 0), np.float32) if sources.share_NKS is None else sources.share_NKS.contiguous().numpy()
    content, presence = (0, 0), np.empty(0, np.int32)
    if sources.content_Pmd is not None and sources.present_Pm is not None:
        content, presence = _address(sources.content_Pmd), _words(sources.present_Pm)
    tables, target = (_address(sources.part_PSd), content), sources.target_N.contiguous().numpy()
    # The kernel reads addresses: nothing below would notice a row that is not there.
    assert max(row.max(initial=-1), target.max(initial=-1)) < len(sources.part_PSd)
    attention = np.zeros((*row.shape, num_heads + short), np.float32)
    pooled = np.zeros((num_targets, num_parts, num_heads + short, dim), np.float32)
    count = np.zeros((num_targets, MODALITIES * num_bins), np.int32)

    similar = np.empty((0, 0), np.float32) if similar is None else similar

    def work(n: slice) -> None:
        own, same = (array[n] if len(array) else array for array in (share, similar))
        answers = attention[n], pooled[n], count[n], same
        attend(query[n], *tables, row[n], hours[n], own, target[n], presence, bias, mix, *answers)

    in_threads(num_targets, work)
    by_head = torch.from_numpy(attention)[..., :num_heads], torch.from_numpy(pooled)[:, :, :num_heads]
    return Attended(*by_head, torch.from_numpy(count))


def _padded(of_heads: Tensor, axis: int, short: int) -> np.ndarray:
    """Blocks have 4 heads: those that are short are zero."""
    if short:
        of_heads = pad(of_heads, (0, 0) * (-axis - 1) + (0, short))
    return of_heads.detach().contiguous().numpy()


def _address(table: Tensor) -> tuple[int, int]:
    """Where a table of contiguous rows begins, and bytes from one row to the next."""
    assert table[:1].is_contiguous(), "rows are read as they lie"
    return table.data_ptr(), 4 * table.stride(0)


def _words(present: Bool[Tensor, "P m"]) -> Int[np.ndarray, " P"]:
    """A byte a modality, the fourth zero."""
    return pad(present, (0, SIDE - MODALITIES)).numpy().view(np.int32)[:, 0]
