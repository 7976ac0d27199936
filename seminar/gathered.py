"""Attention over gathered rows without gathering them: the ESU's dot products and weighted sums read the key table in place.

The plain form materialises [B, T, K, d] and its gradient: at L=1000, K=200 and 1,600 targets 82 MB each, and most of a training
step's time. Here only [B, T, H, K] and [B, T, H, d] exist. Three loops serve both directions, since each is another's gradient:

    dot      z[n,h,k] = <q[n,h], table[row[n,k]]>         grad of q: pool(dz),  of table: scatter(dz, q)
    pool     o[n,h]   = sum_k w[n,h,k] table[row[n,k]]    grad of w: dot(do),   of table: scatter(w, do)
    scatter  t[r]     = sum_{n,k: row = r} sum_h w[n,h,k] v[n,h]

On the CPU in float32 by numba, elsewhere by torch. A row of -1 is padding: it contributes nothing.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import pairwise
from typing import Any, TypeVar, no_type_check

import numba
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.autograd.function import once_differentiable

from seminar.kernels import ASSOCIATIVE
from seminar.rows import for_kernels, gather_rows

T = TypeVar("T")
ROWS_A_THREAD = 64
"""Targets below which another thread costs more than it saves."""


def gathered_dot(
    query: Float[Tensor, "B T H d"], table: Float[Tensor, "P d"], row: Int[Tensor, "B T K"]
) -> Float[Tensor, "B T H K"]:
    """Inner product of each head's query with each of its K rows of the table; 0 for row -1."""
    if not for_kernels(query, table):
        return torch.einsum("bthd,btkd->bthk", query, gather_rows(table, row))
    return _Dot.apply(query.flatten(0, 1), table, row.flatten(0, 1)).unflatten(0, row.shape[:2])


def gathered_sum(
    weight: Float[Tensor, "B T H K"], table: Float[Tensor, "P d"], row: Int[Tensor, "B T K"]
) -> Float[Tensor, "B T H d"]:
    """Weighted sum, head by head, of K rows of the table; row -1 adds nothing."""
    if not for_kernels(weight, table):
        return torch.einsum("bthk,btkd->bthd", weight, gather_rows(table, row))
    return _Pool.apply(weight.flatten(0, 1), table, row.flatten(0, 1)).unflatten(0, row.shape[:2])


class _Dot(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, table: Tensor, row: Tensor) -> Tensor:
        ctx.save_for_backward(query, table, row)
        return _run_dot(query, table, row)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # type: ignore[bad-override]
        (grad,) = grad_outputs
        query, table, row = ctx.saved_tensors
        of_query = _run_pool(grad, table, row) if ctx.needs_input_grad[0] else None
        of_table = _run_scatter(grad, query, row, table) if ctx.needs_input_grad[1] else None
        return of_query, of_table, None


class _Pool(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, table: Tensor, row: Tensor) -> Tensor:
        ctx.save_for_backward(weight, table, row)
        return _run_pool(weight, table, row)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # type: ignore[bad-override]
        (grad,) = grad_outputs
        weight, table, row = ctx.saved_tensors
        of_weight = _run_dot(grad, table, row) if ctx.needs_input_grad[0] else None
        of_table = _run_scatter(weight, grad, row, table) if ctx.needs_input_grad[1] else None
        return of_weight, of_table, None


def _run_dot(query: Tensor, table: Tensor, row: Tensor) -> Tensor:
    out = query.new_zeros(*query.shape[:2], row.shape[1])
    q, t, r, o = _array(query), _array(table), _array(row), out.numpy()
    in_threads(len(r), lambda rows: _dot(q[rows], t, r[rows], o[rows]))
    return out


def _run_pool(weight: Tensor, table: Tensor, row: Tensor) -> Tensor:
    out = weight.new_zeros(*weight.shape[:2], table.shape[1])
    w, t, r, o = _array(weight), _array(table), _array(row), out.numpy()
    in_threads(len(r), lambda rows: _pool(w[rows], t, r[rows], o[rows]))
    return out


def _run_scatter(weight: Tensor, vector: Tensor, row: Tensor, table: Tensor) -> Tensor:
    w, v, r = _array(weight), _array(vector), _array(row)

    def scattered(rows: slice) -> Tensor:
        # Rows of different threads meet in the table, so each has its own.
        part = torch.zeros_like(table, memory_format=torch.contiguous_format)
        _scatter(w[rows], v[rows], r[rows], part.numpy())
        return part

    first, *others = in_threads(len(r), scattered)
    for part in others:
        first += part
    return first


def in_threads(count: int, work: Callable[[slice], T]) -> list[T]:
    """`work` on as many slices of `count` rows as torch has threads; the kernels release the interpreter lock."""
    threads = min(torch.get_num_threads(), max(count // ROWS_A_THREAD, 1))
    bounds = [count * i // threads for i in range(threads + 1)]
    slices = [slice(*pair) for pair in pairwise(bounds)]
    return [work(slices[0])] if threads == 1 else list(_threads(threads).map(work, slices))


@lru_cache(maxsize=1)
def _threads(count: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(count, "gathered")


def _array(tensor: Tensor) -> Any:
    return tensor.detach().contiguous().numpy()


# no_type_check: the import hook that checks shapes in tests would wrap what numba must compile.
@numba.njit(nogil=True, cache=True, fastmath=ASSOCIATIVE)
@no_type_check
def _dot(query, table, row, out):
    for n in range(row.shape[0]):
        for k in range(row.shape[1]):
            r = row[n, k]
            if r >= 0:
                for h in range(query.shape[1]):
                    total = numba.float32(0)
                    for i in range(table.shape[1]):
                        total += query[n, h, i] * table[r, i]
                    out[n, h, k] = total


@numba.njit(nogil=True, cache=True, fastmath=ASSOCIATIVE)
@no_type_check
def _pool(weight, table, row, out):
    for n in range(row.shape[0]):
        for k in range(row.shape[1]):
            r = row[n, k]
            if r >= 0:
                for h in range(weight.shape[1]):
                    w = weight[n, h, k]
                    for i in range(table.shape[1]):
                        out[n, h, i] += w * table[r, i]


@numba.njit(nogil=True, cache=True, fastmath=ASSOCIATIVE)
@no_type_check
def _scatter(weight, vector, row, out):
    for n in range(row.shape[0]):
        for k in range(row.shape[1]):
            r = row[n, k]
            if r >= 0:
                for h in range(weight.shape[1]):
                    w = weight[n, h, k]
                    for i in range(out.shape[1]):
                        out[r, i] += w * vector[n, h, i]
