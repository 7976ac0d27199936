"""SASRec: Self-Attentive Sequential Recommendation (Kang and McAuley 2018, arXiv 1808.09781), the ID model to compare with.

The item tower is a table, the user tower a causal transformer over the same table's rows. Departures, all shared with MMSRec so
that the two differ in what an item is and in nothing else: a request is predicted from those before it by a mask token, vectors
have length 1, a question may carry its query, popularity is counted, the softmax is sampled with logQ (the paper's binary loss
against one negative is known to be weaker: Klenitskiy and Vasilev 2023).
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from seminar.batching import WindowBatch
from seminar.candidates.fusion import fusion_encoder
from seminar.candidates.queries import QueryProjection
from seminar.candidates.tower import Asked, DualTower
from seminar.channels import VectorTables
from seminar.config import RetrieverConfig
from seminar.id_table import IdTable


class SASRec(DualTower):
    """An embedding an item ID, and self-attention over a user's."""

    def __init__(self, config: RetrieverConfig, tables: VectorTables, generator: torch.Generator) -> None:
        super().__init__(config, tables, generator)
        self.ids = IdTable(tables.num_items, config.dim, generator)
        self.queries = QueryProjection(tables, config.dim, generator)
        self.fusion = fusion_encoder(config, 1, generator)

    def items(self, rows: Int[Tensor, " N"]) -> Float[Tensor, "N d"]:
        return functional.normalize(self.ids(rows), dim=-1)

    def users(self, batch: WindowBatch, asked: Asked) -> Float[Tensor, "A d"]:
        token_BLMd = self.items(batch.item_BL.flatten()).view(*batch.item_BL.shape, 1, -1)
        hint_Ad = self.queries(asked.query_A)
        answers_Ad = self.fusion.answers(token_BLMd, batch.mask_BL[..., None], batch.request_BL, asked, hint_Ad)
        return functional.normalize(answers_Ad, dim=-1)
