"""Two towers of averages: Deep Neural Networks for YouTube Recommendations (Covington et al. 2016), with IDs and content.

    item = normalise(MLP(ID embedding + content tokens)),   user = normalise(MLP(mean of the items before the request, query))

Departure: both towers share the table of item vectors that is averaged (the paper's output table is apart), and the user's
demographics are left out.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from seminar.batching import WindowBatch
from seminar.candidates.tower import Asked, DualTower
from seminar.channels import ChannelEncoder, VectorTables
from seminar.config import RetrieverConfig
from seminar.rows import distinct


class TwoTower(DualTower):
    """A multilayer perceptron on each side."""

    def __init__(self, config: RetrieverConfig, tables: VectorTables, generator: torch.Generator) -> None:
        super().__init__(config, tables, generator)
        self.channels = ChannelEncoder(tables, config.channel_shapes, generator)
        d = config.dim
        self.item_part = nn.Sequential(nn.Linear(d, 2 * d), nn.ReLU(), nn.Linear(2 * d, d))
        self.user_part = nn.Sequential(nn.Linear(2 * d, 2 * d), nn.ReLU(), nn.Linear(2 * d, d))

    def items(self, rows: Int[Tensor, " N"]) -> Float[Tensor, "N d"]:
        pooled = self._pooled(rows)
        return functional.normalize(pooled + self.item_part(pooled), dim=-1)

    def users(self, batch: WindowBatch, asked: Asked) -> Float[Tensor, "A d"]:
        rows, row_BL = distinct(batch.item_BL)
        before_BLd = torch.where(batch.mask_BL[..., None], self._pooled(rows)[row_BL], 0.0).cumsum(1)
        total_Ad = before_BLd[asked.window_A, (asked.seen_A - 1).clamp_min(0)]
        mean_Ad = torch.where(asked.seen_A[:, None] > 0, total_Ad / asked.seen_A[:, None].clamp_min(1), 0.0)
        hint_Ad, _ = self.channels.unit_queries(asked.query_A)
        return functional.normalize(mean_Ad + hint_Ad + self.user_part(torch.cat([mean_Ad, hint_Ad], 1)), dim=-1)

    def _pooled(self, rows: Int[Tensor, " N"]) -> Float[Tensor, "N d"]:
        return functional.normalize(self.channels.unit_items(rows)[0].sum(1), dim=-1)
