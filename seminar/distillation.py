"""Distillation of the ESU's attention into GSU relevance: what the GSU keeps is what the ESU wants."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from seminar.gathered import in_threads
from seminar.kernels.distil import divergence


def distilled(
    query_BTd: Float[Tensor, "B T d"],
    table_Pd: Float[Tensor, "P d"],
    row_BTK: Int[Tensor, "B T K"],
    teacher_BTK: Float[Tensor, "B T K"],
    mask_BT: Bool[Tensor, "B T"],
) -> Float[Tensor, ""]:
    """Mean over real targets with kept behaviours of KL(teacher || softmax of <query, table[row]>), row -1 is padding.

    Only the query learns. float32 on the CPU: loss and gradient come from one pass over the kept rows.
    """
    counted = mask_BT & (row_BTK.amax(-1) >= 0)
    tensors = (part.flatten(0, 1).contiguous() for part in (row_BTK, teacher_BTK.detach()))
    return _Divergence.apply(query_BTd.flatten(0, 1), table_Pd.detach(), *tensors, counted.flatten())


def distilled_plainly(
    teacher_BTK: Float[Tensor, "B T K"], relevance_BTK: Float[Tensor, "B T K"], mask_BT: Bool[Tensor, "B T"]
) -> Float[Tensor, ""]:
    """The same from relevance (-inf for padding) by torch operations, on any device and where keys depend on the target."""
    teacher = teacher_BTK.detach()
    rows = (relevance_BTK > -torch.inf).any(-1, keepdim=True) & mask_BT[..., None]
    student = torch.where(rows, relevance_BTK, 0.0).log_softmax(-1)
    divergence = torch.where((teacher > 0) & rows, teacher * (teacher.clamp_min(1e-12).log() - student), 0.0).sum(-1)
    return divergence.sum() / rows.sum().clamp_min(1)


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, table: Tensor, row: Tensor, teacher: Tensor, counted: Tensor) -> Tensor:
        loss, of_query = query.new_zeros(len(query)), torch.zeros_like(query, memory_format=torch.contiguous_format)
        q, t, r, w, c = (tensor.detach().contiguous().numpy() for tensor in (query, table, row, teacher, counted))
        in_threads(len(r), lambda n: divergence(q[n], t, r[n], w[n], c[n], loss.numpy()[n], of_query.numpy()[n]))
        count = counted.sum().clamp_min(1)
        ctx.save_for_backward(of_query, count)
        return loss.sum() / count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # type: ignore[bad-override]
        of_query, count = ctx.saved_tensors
        return of_query * (grad_outputs[0] / count), None, None, None, None
