"""MMSRec: Self-Supervised Multi-Modal Sequential Recommendation (Song, Sun, Feng 2023, arXiv 2304.13277).

An item is its content: text, image and attribute tokens, no ID. One fusion encoder is both towers; pretraining aligns what it
makes of any two combinations of an item's modalities.

Departures: attributes are a third modality; a request is one masked position that predicts all that was taken in it, and all
requests of a window are predicted in one pass, so attention is causal by request; a question may carry a query (the paper has no
search); popularity is a counted part of the score (`tower.py`); fine-tuning samples its softmax instead of scoring the catalogue.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from seminar.batching import WindowBatch
from seminar.candidates.fusion import FusionEncoder, fusion_encoder
from seminar.candidates.tower import Asked, DualTower
from seminar.channels import ChannelEncoder, ChannelSource, VectorTables
from seminar.config import RetrieverConfig
from seminar.rows import distinct, gather_rows
from seminar.schema import NONE

NUM_MODALITIES = 3


class MMSRec(DualTower):
    """The fusion encoder as user tower and item tower."""

    def __init__(self, config: RetrieverConfig, tables: VectorTables, generator: torch.Generator) -> None:
        super().__init__(config, tables, generator)
        self.channels = ChannelEncoder(tables, config.channel_shapes, generator, num_ids=0)
        self.fusion = fusion_encoder(config, NUM_MODALITIES, generator)

    def items(self, rows: Int[Tensor, " N"]) -> Float[Tensor, "N d"]:
        return functional.normalize(self.fusion.items(*self.channels.unit_items(rows)), dim=-1)

    def users(self, batch: WindowBatch, asked: Asked) -> Float[Tensor, "A d"]:
        return answers(self.fusion, self.channels, batch, asked)


def answers(fusion: FusionEncoder, source: ChannelSource, batch: WindowBatch, asked: Asked) -> Float[Tensor, "A d"]:
    """User tower over items and queries of `source`: the trainable encoder, or tables of unit vectors made with it."""
    rows, row_BL = distinct(batch.item_BL)
    unit_NMd, present_NM = source.unit_items(rows)
    hint_Ad, _ = source.unit_queries(asked.query_A)
    present_BLM = present_NM[row_BL] & batch.mask_BL[..., None]
    token_BLMd = gather_rows(unit_NMd.flatten(1), row_BL).unflatten(-1, unit_NMd.shape[1:])
    return functional.normalize(fusion.answers(token_BLMd, present_BLM, batch.request_BL, asked, hint_Ad), dim=-1)


class Pretraining(MMSRec):
    """MMSRec while it aligns combinations of modalities; its state is MMSRec's."""

    content: Tensor

    def __init__(self, config: RetrieverConfig, tables: VectorTables, generator: torch.Generator) -> None:
        super().__init__(config, tables, generator)
        self.register_buffer("content", torch.from_numpy(content_numbers(tables)), persistent=False)

    def loss(self, batch: WindowBatch) -> dict[str, Tensor]:
        """The alignment of the batch's distinct items."""
        rows, _ = distinct(batch.item_BL[batch.mask_BL])
        align = self.alignment(rows)
        return {"total": align, "align": align}

    def alignment(self, rows: Int[Tensor, " N"]) -> Float[Tensor, ""]:
        """Symmetric InfoNCE between two views of each item; items that one of their views cannot tell apart are no negatives.

        A view is a combination of the item's present modalities, every non-empty one equally likely, and its own dropout: V-V',
        V-T, T-T', VT-VT', V-VT, T-VT and their like with attributes.
        """
        unit_NMd, present_NM = self.channels.unit_items(rows)
        kept = present_NM.any(1)
        unit_NMd, present_NM, content_NM = unit_NMd[kept], present_NM[kept], self.content[rows[kept]]
        if len(unit_NMd) < 2:
            return unit_NMd.sum() * 0.0
        parts = _parts(present_NM, 2)
        left_Nd, right_Nd = (functional.normalize(self.fusion.items(unit_NMd, part), dim=-1) for part in parts)
        logit_NN = self.scale * left_Nd @ right_Nd.T
        alike_NN = torch.stack([same_rows(content_NM.masked_fill(~part, -1)) for part in (*parts, present_NM)]).any(0)
        itself = torch.eye(len(content_NM), dtype=torch.bool, device=content_NM.device)
        logit_NN = logit_NN.masked_fill(alike_NN & ~itself, -torch.inf)
        both = torch.logsumexp(logit_NN, 0) + torch.logsumexp(logit_NN, 1) - 2 * logit_NN.diagonal()
        return both.mean() / 2


def _parts(present_NM: Bool[Tensor, "N M"], count: int) -> list[Bool[Tensor, "N M"]]:
    """`count` draws of a non-empty part of each row's present modalities, all parts equally likely."""
    modalities = present_NM.shape[1]
    device = present_NM.device
    bit = torch.arange(modalities, device=device)
    subset_SM = (torch.arange(1, 1 << modalities, device=device)[:, None] >> bit) & 1 > 0
    fits_NS = ~(subset_SM[None] & ~present_NM[:, None]).any(-1)
    return [subset_SM[torch.multinomial(fits_NS.float(), 1)[:, 0]] for _ in range(count)]


def same_rows(number_NM: Int[Tensor, "N M"]) -> Bool[Tensor, "N N"]:
    """Which rows are equal."""
    return (number_NM[:, None] == number_NM).all(-1)


def content_numbers(tables: VectorTables) -> Int[np.ndarray, "I 3"]:
    """For text, image and attributes: equal for items that hold the same, -1 where missing."""
    bounds, numbers = tables.attribute_offsets, dict[bytes, int]()
    attributes = np.full(tables.num_items, NONE)
    for row in np.flatnonzero(np.diff(bounds)).tolist():
        attributes[row] = numbers.setdefault(tables.attribute_hash[bounds[row] : bounds[row + 1]].tobytes(), len(numbers))
    return np.stack([tables.text_row, tables.image_row, attributes], 1).astype(np.int64)
