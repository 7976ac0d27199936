"""Pretraining Search Unit: learns channel embeddings from sequences of query-item pairs before any click model exists.

    L_PSU = w_next L_next + w_align L_align + w_rel L_rel                                        (SEMINAR, pretraining)

Dense: every behaviour of a window is a next-pair target, predicted from what was known before its own request.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from seminar.batching import WindowBatch
from seminar.channels import ChannelEncoder, Pairs, VectorTables, encode_pairs
from seminar.config import ModelConfig, PretrainConfig
from seminar.gate import ChannelGate
from seminar.next_pair import NextPair
from seminar.rows import distinct
from seminar.sampled_softmax import sampled_softmax
from seminar.schema import QUERY, TEXT


class PSU(nn.Module):
    """Channel encoder, gate, next-pair predictor and the three pretraining losses."""

    def __init__(self, model: ModelConfig, pretrain: PretrainConfig, tables: VectorTables, generator: torch.Generator) -> None:
        super().__init__()
        self.config = pretrain
        self.channels = ChannelEncoder(tables, model, generator)
        self.gate = ChannelGate(model)
        self.next = NextPair(model, generator)
        self.log_temperature = nn.ParameterDict({name: nn.Parameter(torch.tensor(math.log(0.07))) for name in ("align", "rel")})
        self.rel_bias = nn.Parameter(torch.zeros(()))

    @classmethod
    def build(cls, model: ModelConfig, pretrain: PretrainConfig, tables: VectorTables, generator: torch.Generator) -> "PSU":
        return cls(model, pretrain, tables, generator)

    def loss(self, batch: WindowBatch) -> dict[str, Tensor]:
        """Weighted total and the three parts, each a mean over what it applies to."""
        unique, inverse_BL = unique_pairs(batch.item_BL, batch.query_BL)
        pairs = encode_pairs(self.channels, *unique)
        merged_P = self._merge(pairs)
        next_ = self._next(batch, merged_P, inverse_BL)
        align = self._align(batch, pairs, inverse_BL)
        rel = self._relevance(batch, pairs, inverse_BL)
        c = self.config
        return {"total": c.w_next * next_ + c.w_align * align + c.w_rel * rel, "next": next_, "align": align, "rel": rel}

    def _merge(self, pairs: Pairs) -> Float[Tensor, "P d"]:
        # Pretraining has no target whose gate could weigh behaviours, so gate mode `target` learns its own-pair form here.
        return torch.einsum("pmd,pm->pd", pairs.unit_NMd, self.gate.weights(pairs) * self.gate.scale)

    def _next(self, batch: WindowBatch, merged_P: Tensor, inverse_BL: Tensor) -> Tensor:
        """L_next: sampled softmax over whole pairs of the batch at every position; popularity is the prior (`NextPair`)."""
        mask = batch.mask_BL
        predicted = self.next(merged_P[inverse_BL], batch.request_BL, mask)[mask]
        unit_P = functional.normalize(merged_P, dim=-1)
        scale = self.next.scale
        candidates = torch.randperm(len(unit_P), device=unit_P.device)[: self.config.num_negatives]
        excluded = _in_same_request(batch, inverse_BL, len(unit_P), candidates)
        positive = scale * (predicted * unit_P[inverse_BL[mask]]).sum(-1)
        return sampled_softmax(predicted, positive, unit_P[candidates], excluded, scale).mean()

    def _align(self, batch: WindowBatch, pairs: Pairs, inverse_BL: Tensor) -> Tensor:
        length = -(-batch.mask_BL.shape[1] // self.config.num_chunks)
        pad = length * self.config.num_chunks - batch.mask_BL.shape[1]
        index = functional.pad(inverse_BL, (0, pad)).reshape(-1, length)
        item = functional.pad(batch.item_BL, (0, pad)).reshape(-1, length)
        valid = functional.pad(batch.mask_BL, (0, pad)).reshape(-1, length)
        present = pairs.present_NM[index][..., TEXT:] & valid[..., None]
        return alignment_loss(pairs.unit_NMd[index][..., TEXT:, :], present, item, (-self.log_temperature["align"]).exp())

    def _relevance(self, batch: WindowBatch, pairs: Pairs, inverse_BL: Tensor) -> Tensor:
        asked = batch.mask_BL & (batch.query_BL >= 0)
        query, index = batch.query_BL[asked], inverse_BL[asked]
        content = self.gate.weights(Pairs(pairs.unit_NMd, pairs.present_NM & _content_only(pairs)))
        item_P = functional.normalize(torch.einsum("pmd,pm->pd", pairs.unit_NMd, content * self.gate.scale), dim=-1)
        return relevance_loss(
            pairs.unit_NMd[index, QUERY], item_P[index], query, (-self.log_temperature["rel"]).exp(), self.rel_bias
        )


def alignment_loss(
    unit: Float[Tensor, "N L m d"], present: Bool[Tensor, "N L m"], item: Int[Tensor, "N L"], scale: Float[Tensor, ""]
) -> Float[Tensor, ""]:
    """L_align: symmetric InfoNCE between each two modalities, inside each of N chunks, as one batched matmul.

    A position counts for a pair of modalities when it has both. Columns that repeat the row's item are no negatives.
    Mean over rows that have at least one negative; 0 when none has.
    """
    modalities = unit.shape[2]
    left, right = torch.triu_indices(modalities, modalities, 1, device=unit.device)
    of_modality = unit.transpose(1, 2)
    logits = scale * (of_modality.index_select(1, left) @ of_modality.index_select(1, right).transpose(2, 3))
    rows = (present[..., left] & present[..., right]).permute(0, 2, 1)
    distinct_items = item[:, :, None] != item[:, None, :]
    itself = torch.eye(item.shape[1], dtype=torch.bool, device=item.device)
    # What competes is symmetric, so one masked matrix serves both directions: its rows and its columns.
    negatives = rows[:, :, None, :] & rows[:, :, :, None] & distinct_items[:, None]
    logits = logits.masked_fill(~(negatives | itself), -torch.inf)
    losses = torch.logsumexp(logits, -1) + torch.logsumexp(logits, -2) - 2 * logits.diagonal(dim1=-2, dim2=-1)
    counted = negatives.any(-1)
    return torch.where(counted, losses, 0.0).sum() / (2 * counted.sum()).clamp_min(1)


def relevance_loss(
    query_unit: Float[Tensor, "N d"],
    item_unit: Float[Tensor, "N d"],
    query: Int[Tensor, " N"],
    scale: Float[Tensor, ""],
    bias: Float[Tensor, ""],
) -> Float[Tensor, ""]:
    """L_rel: binary cross-entropy, matched query-item pair = 1, mismatched = 0, over pairs with a query.

    A negative is the same item with the query of another pair of the batch, so queries of positives and negatives come from one
    distribution; shifts that meet the same query are left out.
    """
    if len(query) < 2:
        return query_unit.sum() * 0.0
    shift = len(query) // 2
    positive = scale * (query_unit * item_unit).sum(-1) + bias
    negative = scale * (query_unit.roll(shift, 0) * item_unit).sum(-1) + bias
    mismatched = query != query.roll(shift, 0)
    negatives = torch.where(mismatched, functional.softplus(negative), 0.0).sum() / mismatched.sum().clamp_min(1)
    return (functional.softplus(-positive).mean() + negatives) / 2


def unique_pairs(item: Int[Tensor, "*N"], query: Int[Tensor, "*N"]) -> tuple[tuple[Tensor, Tensor], Int[Tensor, "*N"]]:
    """Distinct (item, query) pairs and, for each element, which one it is."""
    width = int(query.max()) + 2 if query.numel() else 2
    code, inverse = distinct(item * width + query + 1)
    return (code // width, code % width - 1), inverse


def _in_same_request(batch: WindowBatch, inverse_BL: Tensor, num_pairs: int, candidates: Tensor) -> Bool[Tensor, "N C"]:
    """Which candidates belong to the request that each valid position belongs to: they are positives, never negatives."""
    mask = batch.mask_BL
    window = torch.arange(len(mask), device=mask.device)[:, None].expand_as(mask)
    code = window * (int(batch.request_BL.max()) + 1) + batch.request_BL
    requests, request = distinct(code[mask])
    member = torch.zeros(len(requests), num_pairs, dtype=torch.bool, device=mask.device)
    member[request, inverse_BL[mask]] = True
    return member[:, candidates][request]


def _content_only(pairs: Pairs) -> Bool[Tensor, "N M"]:
    content = torch.ones_like(pairs.present_NM)
    content[:, QUERY] = False
    return content
