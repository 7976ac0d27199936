"""A query's text vector in the towers' space, for a tower without channels."""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from seminar.channels import VectorTables
from seminar.rows import gather_rows, unit_rows


class QueryProjection(nn.Module):
    """Projected and normalised text vectors of catalogue queries; zero for row -1 and for a query without text."""

    query: Tensor
    query_row: Tensor

    def __init__(self, tables: VectorTables, dim: int, generator: torch.Generator) -> None:
        super().__init__()
        rows = max(tables.query.shape[1], 1)
        self.project = nn.Parameter(torch.randn(tables.query.shape[1], dim, generator=generator) / rows**0.5)
        self.register_buffer("query", torch.from_numpy(tables.query), persistent=False)
        self.register_buffer("query_row", torch.from_numpy(tables.query_row).long(), persistent=False)

    def forward(self, rows: Int[Tensor, " N"]) -> Float[Tensor, "N d"]:
        if not len(self.query):
            return self.project.new_zeros(len(rows), self.project.shape[1])
        content = torch.where(rows >= 0, self.query_row[rows.clamp_min(0)], -1)
        return gather_rows(unit_rows(self.query.float() @ self.project), content)
