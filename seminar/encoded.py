"""A batch in channel space: what every ranker starts from, each distinct pair projected once."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from seminar.batching import Batch
from seminar.channels import ChannelSource, encode_pairs
from seminar.gate import ChannelMerge, GatedPairs
from seminar.psu import unique_pairs


@dataclass(frozen=True)
class Encoded:
    """A batch's distinct pairs once, and which of them stands where.

    merged_Pd: sum over channels with each pair's own gate, through G_j. history_BL, target_BT: rows of the distinct pairs.
    new_BT: targets that are shown as new, in training.
    """

    gated: GatedPairs
    merged_Pd: Float[Tensor, "P d"]
    history_BL: Int[Tensor, "B L"]
    target_BT: Int[Tensor, "B T"]
    new_BT: Bool[Tensor, "B T"] | None = None

    @property
    def target_BTd(self) -> Float[Tensor, "B T d"]:
        return functional.embedding(self.target_BT, self.merged_Pd)


def encode(batch: Batch, source: ChannelSource, merge: ChannelMerge) -> Encoded:
    """Project each distinct pair of the batch once; the price of a history does not grow with repeats or targets."""
    item = torch.cat([batch.item_BL, batch.item_BT], 1)
    query = torch.cat([batch.query_BL, batch.query_BT], 1)
    unique, inverse = unique_pairs(item, query)
    gated = merge.gated(encode_pairs(source, *unique))
    history, target = inverse.split([batch.item_BL.shape[1], batch.item_BT.shape[1]], 1)
    columns = gated.pairs.columns
    new_BT = None if columns is None or columns.new_N is None else columns.new_N[target]
    return Encoded(gated, merge.merged(gated), history, target, new_BT)


def pick(column: Tensor, position: Tensor) -> Tensor:
    """column [B, L] (or [B, 1, L]) at position [B, T, K] -> [B, T, K]."""
    if column.dim() == 2:
        column = column[:, None]
    return column.expand(-1, position.shape[1], -1).gather(-1, position)
