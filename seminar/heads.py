"""What every ranker has beside its lifelong interest: a short recent-sequence branch, user, item, user-x-item and context
features, and one logit a task (CTR, PSR).

Models that are compared share this part, so a difference between them is one of their interest units.
"""

import itertools
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional

from seminar.attention import TargetAttention, masked_softmax
from seminar.batching import Batch
from seminar.channels import VectorTables
from seminar.config import ModelConfig
from seminar.encoded import Encoded, pick
from seminar.features import NUM_CROSS, NUM_ITEM, NUM_USER, cross_features, item_features, user_features
from seminar.schema import NUM_CHANNELS, TASKS
from seminar.trend import NUM_TREND, decayed_counts, trend_features

HOURS_PER_WEEK = 168
_HOUR_WIDTH = 8
NUM_FIT = NUM_CHANNELS - 1
"""Cosines of the query, the first channel, with the others."""


@dataclass(frozen=True)
class CatalogueStats:
    """Per-item statistics the heads use: category row, training count, the mean count of the item's category, and its counts by
    week as `trend.decayed_counts` lays them out."""

    category_index: Int[Tensor, " I"]
    train_count: Float[Tensor, " I"]
    category_mean: Float[Tensor, " I"]
    train_total: Float[Tensor, ""]
    week_key: Int[Tensor, " E"]
    week_sum: Float[Tensor, "E F"]

    @classmethod
    def of(cls, tables: VectorTables) -> "CatalogueStats":
        category = torch.from_numpy(tables.category_index).long()
        count = torch.from_numpy(tables.train_count).float()
        slots = category + 1
        size = int(slots.max()) + 1 if len(slots) else 1
        total = torch.zeros(size).index_add_(0, slots, count)
        members = torch.zeros(size).index_add_(0, slots, torch.ones_like(count))
        weekly = decayed_counts(tables.week_offsets, tables.week, tables.week_count)
        return cls(category, count, (total / members.clamp_min(1))[slots], count.sum(), *weekly)

    def with_unseen(self) -> "CatalogueStats":
        """With rows behind the catalogue's for items that nobody ever took: first one without a category, then one of each."""
        category = torch.arange(-1, (int(self.category_index.max()) if len(self.category_index) else -1) + 1)
        mean = torch.zeros(len(category))
        mean[self.category_index + 1] = self.category_mean
        return replace(
            self,
            category_index=torch.cat([self.category_index, category]),
            train_count=torch.cat([self.train_count, torch.zeros(len(category))]),
            category_mean=torch.cat([self.category_mean, mean]),
        )


class Heads(nn.Module):
    """Features beside the interest, the scoring MLP, and one logit a task."""

    category_index: Tensor
    train_count: Tensor
    category_mean: Tensor
    train_total: Tensor
    week_key: Tensor
    week_sum: Tensor

    def __init__(self, config: ModelConfig, stats: CatalogueStats, num_extra: int, generator: torch.Generator) -> None:
        """num_extra: features an interest unit adds to its interest vector."""
        super().__init__()
        self.num_recent = config.recent
        self.crossed, self.trended, self.fitted = config.cross_features, config.trend_features, config.query_fit
        self.recent = TargetAttention(config.dim, config.num_heads, generator)
        self.hour = nn.Parameter(torch.randn(HOURS_PER_WEEK, _HOUR_WIDTH, generator=generator) * 0.02)
        optional = NUM_CROSS * self.crossed + NUM_TREND * self.trended + NUM_FIT * self.fitted
        width = 5 * config.dim + num_extra + optional + NUM_ITEM + NUM_USER + _HOUR_WIDTH
        self.head = _mlp((width, *config.hidden), config.dropout, generator)
        self.out = _linear(config.hidden[-1], len(TASKS), generator)
        for name, value in vars(stats).items():
            self.register_buffer(name, value, persistent=False)

    def forward(
        self,
        batch: Batch,
        encoded: Encoded,
        interest_BTd: Float[Tensor, "B T d"],
        extra_BTF: Float[Tensor, "B T F"],
        cross_BTF: Float[Tensor, "B T F2"],
    ) -> Float[Tensor, "B T S"]:
        """One logit a task for every target."""
        target = encoded.target_BTd
        recent = self._recent(batch, encoded, target)
        user = torch.cat([user_features(batch.total_length_B, batch.hours_BL), self.hour[batch.hour_of_week_B]], -1)
        features = [
            interest_BTd,
            recent,
            target,
            interest_BTd * target,
            recent * target,
            extra_BTF,
            cross_BTF,
            self._item_features(batch, encoded.new_BT),
            self._trend(batch, encoded.new_BT),
            *([query_fit(encoded)] if self.fitted else []),
            user[:, None].expand(-1, target.shape[1], -1),
        ]
        return self.out(self.head(torch.cat(features, -1)))

    def cross(self, batch: Batch) -> Float[Tensor, "B T F"]:
        """User-x-item features over the whole visible history; width 0 where they are switched off."""
        if not self.crossed:
            return batch.hours_BL.new_zeros(*batch.item_BT.shape, 0)
        category = self.category_index
        return cross_features(
            batch.item_BL, category[batch.item_BL], batch.hours_BL, batch.mask_BL, batch.item_BT, category[batch.item_BT]
        )

    def _trend(self, batch: Batch, new_BT: Tensor | None) -> Tensor:
        """Popularity in the weeks before the request; width 0 where it is switched off."""
        if not self.trended:
            return batch.hours_BL.new_zeros(*batch.item_BT.shape, 0)
        trend = trend_features(self.week_key, self.week_sum, batch.item_BT, batch.week_B)
        return trend if new_BT is None else trend.masked_fill(new_BT[..., None], 0.0)

    def _recent(self, batch: Batch, encoded: Encoded, target: Tensor) -> Tensor:
        """Short-term interest: target attention over the newest behaviours."""
        steps = torch.arange(self.num_recent, device=target.device)
        position = batch.length_B[:, None] - 1 - steps
        mask = position >= 0
        rows = pick(encoded.history_BL, position.clamp_min(0)[:, None])[:, 0]
        key = functional.embedding(rows, encoded.merged_Pd)
        query, k, v = self.recent.by_head(target, key)
        return self.recent.joined(masked_softmax(query @ k.transpose(-1, -2), mask[:, None, None]) @ v)

    def _item_features(self, batch: Batch, new_BT: Tensor | None) -> Tensor:
        count = self.train_count[batch.item_BT]
        if self.training:
            # The positive itself is one of the counted behaviours; at test time it is not.
            count = (count - batch.label_BT).clamp_min(0)
        if new_BT is not None:
            count = count.masked_fill(new_BT, 0.0)
        return item_features(count, self.category_mean[batch.item_BT], float(self.train_total))


def query_fit(encoded: Encoded) -> Float[Tensor, "B T F"]:
    """Cosine of each target's query with its item's text, image and attributes; 0 where either is missing."""
    unit_BTMd = encoded.gated.pairs.unit_NMd[encoded.target_BT]
    present_BTM = encoded.gated.pairs.present_NM[encoded.target_BT]
    cosine = (unit_BTMd[:, :, :1] * unit_BTMd[:, :, 1:]).sum(-1)
    # Selected: a missing vector may hold anything, also NaN.
    return torch.where(present_BTM[..., :1] & present_BTM[..., 1:], cosine, 0.0)


def task_losses(logit_BTS: Float[Tensor, "B T S"], batch: Batch) -> dict[str, Tensor]:
    """Cross-entropy a task: its sum divided by all targets, so that together they are the mean over targets."""
    losses = {}
    for code, task in enumerate(TASKS):
        chosen = batch.mask_BT & (batch.task_BT == code)
        bce = functional.binary_cross_entropy_with_logits(logit_BTS[..., code], batch.label_BT, reduction="none")
        losses[task] = torch.where(chosen, bce, 0.0).sum() / batch.mask_BT.sum().clamp_min(1)
    return losses


def own_task(logit_BTS: Float[Tensor, "B T S"], batch: Batch) -> Float[Tensor, "B T"]:
    """Logit of each target under its own task; padding targets are -inf."""
    return logit_BTS.gather(-1, batch.task_BT[..., None]).squeeze(-1).masked_fill(~batch.mask_BT, -torch.inf)


def _mlp(widths: tuple[int, ...], dropout: float, generator: torch.Generator) -> nn.Sequential:
    layers: list[nn.Module] = []
    for fan_in, fan_out in itertools.pairwise(widths):
        layers += [_linear(fan_in, fan_out, generator), nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers)


def _linear(fan_in: int, fan_out: int, generator: torch.Generator) -> nn.Linear:
    linear = nn.Linear(fan_in, fan_out)
    nn.init.normal_(linear.weight, std=(2 / fan_in) ** 0.5, generator=generator)
    nn.init.zeros_(linear.bias)
    return linear
