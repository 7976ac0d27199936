"""What channel tables are made of, each distinct row once: distinct codes, unit vectors, sums of bags of rows.

On the CPU in float32 by numba, elsewhere by torch: the torch forms of these sort, and pass over their rows a dozen times.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from seminar.kernels import rows as kernels
from seminar.kernels.distinct import distinct as kernel_distinct


def for_kernels(*values: Tensor) -> bool:
    """Whether our own loops can read these: float32 in this machine's memory."""
    return all(value.device.type == "cpu" and value.dtype == torch.float32 for value in values)


def distinct(code: Int[Tensor, "*N"]) -> tuple[Int[Tensor, " U"], Int[Tensor, "*N"]]:
    """The distinct codes >= 0, in an order that depends on `code` alone, and which of them each element is; -1 if negative."""
    flat = code.flatten().long().contiguous()
    if code.device.type == "cpu":
        inverse = torch.empty_like(flat)
        found = torch.from_numpy(kernel_distinct(flat.numpy(), inverse.numpy()))
        return found, inverse.view(code.shape)
    found, inverse = torch.unique(flat.clamp_min(-1), return_inverse=True)
    missing = int((found < 0).sum())
    return found[missing:], (inverse - missing).view(code.shape)


def unit_rows(vector: Float[Tensor, "N d"]) -> Float[Tensor, "N d"]:
    """Each row divided by its Euclidean norm, or by 1e-12 where that is larger."""
    if for_kernels(vector):
        return _Unit.apply(vector)
    return functional.normalize(vector, dim=-1, eps=kernels.LEAST_NORM)


def gather_rows(table: Float[Tensor, "R D"], row: Int[Tensor, "*N"]) -> Float[Tensor, "*N D"]:
    """Rows of the table, zeros for row -1."""
    if for_kernels(table):
        return _Gather.apply(table, row.flatten()).view(*row.shape, table.shape[1])
    return torch.where((row >= 0)[..., None], functional.embedding(row.clamp_min(0), table), 0.0)


def bag_sum(table: Float[Tensor, "R D"], row: Int[Tensor, "N W"]) -> Float[Tensor, "N D"]:
    """Sum of W rows of the table; row -1 adds nothing. The table's gradient is sparse. IndexError for an unknown row."""
    if row.numel() and int(row.max()) >= len(table):
        raise IndexError(f"row {int(row.max())} of a table of {len(table)} rows")
    return _Bag.apply(table, row)


class _Unit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, vector: Tensor) -> Tensor:
        vector = vector.contiguous()
        unit, inverse_norm = torch.empty_like(vector), vector.new_empty(len(vector))
        kernels.to_unit(vector.numpy(), unit.numpy(), inverse_norm.numpy())
        ctx.save_for_backward(unit, inverse_norm)
        return unit

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # type: ignore[bad-override]
        unit, inverse_norm = ctx.saved_tensors
        out = torch.empty_like(unit)
        kernels.from_unit(grad_outputs[0].contiguous().numpy(), unit.numpy(), inverse_norm.numpy(), out.numpy())
        return out


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, row: Tensor) -> Tensor:
        ctx.save_for_backward(row)
        ctx.shape = table.shape
        out = table.new_empty(len(row), table.shape[1])
        kernels.gather(table.detach().contiguous().numpy(), row.contiguous().numpy(), out.numpy())
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # type: ignore[bad-override]
        (row,), (grad,) = ctx.saved_tensors, grad_outputs
        of_table = grad.new_zeros(ctx.shape)
        kernels.scatter_bags(grad.contiguous().numpy(), row[:, None].contiguous().numpy(), of_table.numpy())
        return of_table, None


class _Bag(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, table: Tensor, row: Tensor) -> Tensor:
        ctx.save_for_backward(row)
        ctx.shape = table.shape
        if not for_kernels(table):
            return gather_rows(table, row).sum(1)
        out = table.new_zeros(len(row), table.shape[1])
        kernels.sum_bags(table.detach().numpy(), row.contiguous().numpy(), out.numpy())
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # type: ignore[bad-override]
        (row,), grad = ctx.saved_tensors, grad_outputs[0].contiguous()
        found, place = distinct(row)
        values = grad.new_zeros(len(found), grad.shape[1])
        if for_kernels(grad):
            kernels.scatter_bags(grad.numpy(), place.contiguous().numpy(), values.numpy())
        else:
            for column in place.T:
                values.index_add_(0, column[column >= 0], grad[column >= 0])
        return torch.sparse_coo_tensor(found[None], values, ctx.shape, check_invariants=False), None
