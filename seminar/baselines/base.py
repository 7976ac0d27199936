"""What a model that stands beside SEMINAR is made of: shared channels and heads, and one paper's interest unit between them.

An interest unit sees the whole encoded history and all targets of a batch and answers with one interest vector a target. It
never sees features, heads or labels of other units, so that two models differ by what their papers differ in.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from seminar.batching import Batch
from seminar.channels import ChannelEncoder, Pairs, VectorTables
from seminar.config import ModelConfig
from seminar.encoded import Encoded, encode, pick
from seminar.gate import ChannelMerge, load_psu
from seminar.heads import CatalogueStats, Heads, own_task, task_losses
from seminar.schema import NONE


@dataclass(frozen=True)
class Seen:
    """What an interest unit sees: B histories of up to L behaviours (oldest first, padded on the right), T targets each.

    embedding_Pd: one vector a distinct pair, the gated sum of its channels through G_j. history_BL, target_BT: which pair each
    behaviour and each target is. pairs: unit vectors of each pair's channels and which exist. category_*: catalogue category of
    the item, -1 none. query_*: catalogue row of the query, -1 none. hours_BL: age at the request, hours, >= 0.
    label_BT: for auxiliary losses in training only. mask_*: False for padding.
    """

    embedding_Pd: Float[Tensor, "P d"]
    pairs: Pairs
    history_BL: Int[Tensor, "B L"]
    target_BT: Int[Tensor, "B T"]
    category_BL: Int[Tensor, "B L"]
    category_BT: Int[Tensor, "B T"]
    query_BL: Int[Tensor, "B L"]
    query_BT: Int[Tensor, "B T"]
    hours_BL: Float[Tensor, "B L"]
    mask_BL: Bool[Tensor, "B L"]
    mask_BT: Bool[Tensor, "B T"]
    label_BT: Float[Tensor, "B T"]

    @property
    def history_BLd(self) -> Float[Tensor, "B L d"]:
        return nn.functional.embedding(self.history_BL, self.embedding_Pd)

    @property
    def target_BTd(self) -> Float[Tensor, "B T d"]:
        return nn.functional.embedding(self.target_BT, self.embedding_Pd)

    def rows(self, kept_BTK: Int[Tensor, "B T K"]) -> Int[Tensor, "B T K"]:
        """Which pair each kept position of the history is; -1 stays padding."""
        return torch.where(kept_BTK >= 0, pick(self.history_BL, kept_BTK.clamp_min(0)), NONE)

    @classmethod
    def of(cls, batch: Batch, encoded: Encoded, category_I: Int[Tensor, " I"]) -> "Seen":
        return cls(
            embedding_Pd=encoded.merged_Pd,
            pairs=encoded.gated.pairs,
            history_BL=encoded.history_BL,
            target_BT=encoded.target_BT,
            category_BL=category_I[batch.item_BL],
            category_BT=category_I[batch.item_BT],
            query_BL=batch.query_BL,
            query_BT=batch.query_BT,
            hours_BL=batch.hours_BL,
            mask_BL=batch.mask_BL,
            mask_BT=batch.mask_BT,
            label_BT=batch.label_BT,
        )


@dataclass(frozen=True)
class Found:
    """interest_BTd: the lifelong interest in each target. extra_BTF: further features of the unit's own (F may be 0).

    kept_BTK: positions of the history that were kept, -1 padding; none where a model keeps no subset. losses: auxiliary, added
    to the click loss as they are, each a scalar.
    """

    interest_BTd: Float[Tensor, "B T d"]
    extra_BTF: Float[Tensor, "B T F"]
    kept_BTK: Int[Tensor, "B T K"] | None = None
    losses: Mapping[str, Tensor] = field(default_factory=dict)


@runtime_checkable
class InterestUnit(Protocol):
    """One paper's way from history and targets to an interest; an nn.Module built from (config, generator).

    num_extra: width of `Found.extra_BTF`. A target of a user without behaviours, or without any match, has a defined, finite
    interest that learns.
    """

    num_extra: int

    def __call__(self, seen: Seen) -> Found: ...


class Baseline(nn.Module):
    """Channels, one interest unit, heads."""

    def __init__(
        self, config: ModelConfig, channels: ChannelEncoder, unit: InterestUnit, stats: CatalogueStats, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.config = config
        self.channels = channels
        self.merge = ChannelMerge(config)
        self.unit = unit
        self.heads = Heads(config, stats, unit.num_extra, generator)
        if config.freeze_psu:
            channels.requires_grad_(False)

    @classmethod
    def build(
        cls,
        unit: InterestUnit,
        config: ModelConfig,
        tables: VectorTables,
        generator: torch.Generator,
        num_ids: int | None = None,
    ) -> "Baseline":
        """A fresh model over a vectors artefact; num_ids as in ChannelEncoder."""
        return cls(config, ChannelEncoder(tables, config, generator, num_ids), unit, CatalogueStats.of(tables), generator)

    def load_psu(self, state: dict[str, Tensor]) -> None:
        """Restore a PSU's channel encoder and gate as initialisation."""
        load_psu(state, self.channels, self.merge.gate)

    def forward(self, batch: Batch) -> tuple[Float[Tensor, "B T S"], Found]:
        """One logit a task for every target, and what the interest unit found."""
        encoded = encode(batch, self.channels, self.merge)
        found = self.unit(Seen.of(batch, encoded, self.heads.category_index))
        return self.heads(batch, encoded, found.interest_BTd, found.extra_BTF, self.heads.cross(batch)), found

    def score(self, batch: Batch) -> Float[Tensor, "B T"]:
        """Logit of each target under its own task; padding targets are -inf."""
        with torch.no_grad():
            return own_task(self.forward(batch)[0], batch)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy of the targets under their tasks, and the unit's auxiliary losses."""
        logit_BTS, found = self.forward(batch)
        losses = task_losses(logit_BTS, batch) | dict(found.losses)
        return {"total": torch.stack(list(losses.values())).sum(), **losses}
