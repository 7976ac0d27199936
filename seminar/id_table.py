"""Embedding tables of catalogue rows and hashed tokens: the one module behind which a row-sharded table can stand.

A step touches a few thousand of up to 1e8 rows, so gradients are sparse: distinct rows are looked up once, and workers exchange
(row, gradient) pairs, never a table. `SparseTable` is all that training knows of a table.
"""

import math
from abc import ABC, abstractmethod

import torch
import torch.distributed as dist
from jaxtyping import Float, Int
from torch import Tensor, nn

from seminar.rows import bag_sum


class SparseTable(nn.Module, ABC):
    """What models and training need of an embedding table, replicated or sharded."""

    def forward(self, rows: Int[Tensor, "*N"]) -> Float[Tensor, "*N D"]:
        return self.lookup(rows)

    @abstractmethod
    def lookup(self, rows: Int[Tensor, "*N"]) -> Float[Tensor, "*N D"]:
        """Vectors of rows; row -1 is missing: a zero vector that passes no gradient."""

    @abstractmethod
    def bag(self, rows: Int[Tensor, "N W"]) -> Float[Tensor, "N D"]:
        """Sum of the vectors of W rows; row -1 adds nothing. Raises IndexError for an unknown row."""

    @abstractmethod
    def sparse_parameters(self) -> list[nn.Parameter]:
        """Parameters this worker holds and updates with a sparse optimiser."""

    @abstractmethod
    def exchange_gradients(self, group: dist.ProcessGroup | None) -> None:
        """Afterwards each sparse parameter's gradient is coalesced and summed over the group's workers."""


class IdTable(SparseTable):
    """A replicated table: every worker holds all rows and applies the same summed gradient to them.

    Rows start normal with variance 1 / dim, drawn from `generator`: a vector's expected squared norm is 1.
    """

    def __init__(self, num_rows: int, dim: int, generator: torch.Generator) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_rows, dim, generator=generator) / math.sqrt(dim))

    def lookup(self, rows: Int[Tensor, "*N"]) -> Float[Tensor, "*N D"]:
        """Vectors of rows; row -1 is missing: a zero vector that passes no gradient. Raises IndexError for an unknown row."""
        return self.bag(rows.reshape(-1, 1)).view(*rows.shape, self.weight.shape[1])

    def bag(self, rows: Int[Tensor, "N W"]) -> Float[Tensor, "N D"]:
        return bag_sum(self.weight, rows)

    def sparse_parameters(self) -> list[nn.Parameter]:
        return [self.weight]

    def exchange_gradients(self, group: dist.ProcessGroup | None) -> None:
        """Sum the sparse gradient over workers by gathering everybody's (rows, values); group None is a single worker."""
        gradient = self.weight.grad
        if gradient is None:
            gradient = self._sparse(self.weight.new_empty(0, dtype=torch.int64), self.weight.new_empty(0, self.weight.shape[1]))
        gradient = gradient.coalesce()
        if group is not None and dist.get_world_size(group) > 1:
            rows, values = _gather(gradient.indices()[0], group), _gather(gradient.values(), group)
            gradient = self._sparse(rows, values).coalesce()
        self.weight.grad = gradient

    def _sparse(self, rows: Int[Tensor, " N"], values: Float[Tensor, "N D"]) -> Tensor:
        return torch.sparse_coo_tensor(rows[None], values, self.weight.shape, check_invariants=False)


def _gather(tensor: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Concatenate every worker's tensor along the first axis, whose size may differ between workers."""
    size = torch.tensor([len(tensor)], device=tensor.device)
    sizes = [torch.empty_like(size) for _ in range(dist.get_world_size(group))]
    dist.all_gather(sizes, size, group=group)
    counts = [int(s) for s in sizes]
    padded = tensor.new_zeros(max(counts), *tensor.shape[1:])
    padded[: len(tensor)] = tensor
    gathered = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(gathered, padded, group=group)
    return torch.cat([part[:count] for part, count in zip(gathered, counts, strict=True)])
