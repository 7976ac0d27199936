"""SEMINAR's score the way its authors' public code computes it, written by us from its description, with this ranker's weights.

For each candidate of a request apart, in a Python loop: content vectors of all L behaviours pass through the channel projections
again, repeats included, are normalised and pass through G_j; GSU relevance is the unmerged double sum over channels of target and
behaviour, sum_i sum_j gamma_i gamma_j <x_t^i Wq, x_l^j Wk>, and the ESU's logits are the same sum over the kept. All requests of
a batch are scored at once, as theirs are. Features beside the interest, heads and MUSE's parts are ours, and the logits are equal
(`tests/test_authors_form.py`): what is compared is the form of the computation alone. Gate modes `constant` and `behaviour`.
"""

import dataclasses
import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from seminar.attention import TargetAttention, masked_softmax
from seminar.batching import Batch
from seminar.channels import ChannelEncoder, Pairs
from seminar.encoded import Encoded, pick
from seminar.esu import Kept, age_bucket, sim_tiers
from seminar.gsu import keep_top_k
from seminar.heads import task_losses
from seminar.ranker import Ranker
from seminar.schema import NONE, NUM_CHANNELS


def loss_of_candidate(ranker: Ranker, batch: Batch, number: int) -> Float[Tensor, ""]:
    """Cross-entropy of the number-th target of each request; the mean over them."""
    one = candidate(batch, number)
    return torch.stack(list(task_losses(logits(ranker, one), one).values())).sum()


def candidate(batch: Batch, number: int) -> Batch:
    """The batch with one target a request."""
    columns = {name: value[:, number : number + 1] for name, value in vars(batch).items() if name.endswith("_BT")}
    return dataclasses.replace(batch, **columns, target_count_B=torch.ones_like(batch.target_count_B))


def logits(ranker: Ranker, batch: Batch) -> Float[Tensor, "B 1 S"]:
    """One logit a task of each request's only target."""
    channels = ranker.channels
    assert isinstance(channels, ChannelEncoder), "a bundle's tables are not trained"
    history = _projected(channels, batch.item_BL, batch.query_BL)
    target = _projected(channels, batch.item_BT, batch.query_BT)
    unit, present = (torch.cat([a.flatten(0, 1), b.flatten(0, 1)]) for a, b in zip(history, target, strict=True))
    pairs = Pairs(unit, present)
    gated = ranker.gsu.gated(pairs)
    of_history, size = batch.item_BL.numel(), batch.item_BL.shape
    channel = torch.einsum("pmd,mde->pme", pairs.unit_NMd * gated.weight_NM[..., None], ranker.gsu.key_transform)
    key_BLMd, asked_BMd = channel[:of_history].unflatten(0, size), channel[of_history:]
    with torch.no_grad():
        relevance = _double_sum(ranker.gsu.attention, asked_BMd, key_BLMd).sum(-1)
        kept = keep_top_k(relevance[:, None], batch.mask_BL, ranker.config.top_k)
    row = torch.arange(of_history).view(size)
    encoded = Encoded(gated, channel.sum(1), row, of_history + torch.arange(size[0])[:, None])
    interest, tiers = _esu(ranker, batch, encoded, kept, asked_BMd, key_BLMd)
    taste = ranker.taste(ranker.pooled(batch, encoded), encoded.target_BTd)
    return ranker.heads(batch, encoded, interest[:, None], torch.cat([tiers, taste], -1), ranker.cross(batch))


def _projected(channels: ChannelEncoder, item: Tensor, query: Tensor) -> tuple[Tensor, Tensor]:
    """Unit vectors and presence of every element, [B, N, M, d] and [B, N, M]: nothing is shared between repeats."""
    known = torch.where(query >= 0, channels.query_row[query.clamp_min(0)], NONE)
    contents = (
        (channels.query, known, channels.project_query),
        (channels.text, channels.text_row[item], channels.project_text),
        (channels.image, channels.image_row[item], channels.project_image),
    )
    unit = [functional.normalize(table[row.clamp_min(0).long()].float() @ w, dim=-1) for table, row, w in contents]
    token = channels.token_IA[item]
    shown = channels.seen[item]
    summed = torch.where(shown[..., None], functional.embedding(item, channels.ids.weight, sparse=True), 0.0)
    tokens = functional.embedding(token.clamp_min(0), channels.tokens.weight, sparse=True)
    summed = summed + torch.where((token >= 0)[..., None], tokens, 0.0).sum(-2)
    unit.append(functional.normalize(summed @ channels.project_attributes, dim=-1))
    present = torch.stack([*(row >= 0 for _, row, _ in contents), shown | (token >= 0).any(-1)], -1)
    return torch.where(present[..., None], torch.stack(unit, -2), 0.0), present


def _double_sum(unit: TargetAttention, asked_BMd: Tensor, key_BNMd: Tensor) -> Float[Tensor, "B N H"]:
    """sum_i sum_j (x_t^i Wq)(x_l^j Wk)^T / sqrt(d) of each head, a channel pair at a time."""
    total = key_BNMd.new_zeros(*key_BNMd.shape[:2], unit.num_heads)
    for j in range(NUM_CHANNELS):
        key = torch.einsum("bnd,hde->bnhe", key_BNMd[:, :, j], unit.wk)
        total = total + torch.einsum("he,bnhe->bnh", unit.bq, key)
        for i in range(NUM_CHANNELS):
            query = torch.einsum("bd,hde->bhe", asked_BMd[:, i], unit.wq)
            total = total + torch.einsum("bhe,bnhe->bnh", query, key)
    return total / math.sqrt(unit.dim)


def _esu(
    ranker: Ranker, batch: Batch, encoded: Encoded, kept_BTK: Tensor, asked_BMd: Tensor, key_BLMd: Tensor
) -> tuple[Tensor, Tensor]:
    """Interest [B, d] and SimTier counts [B, 1, F]: exact attention over the kept, channels unmerged."""
    esu, position = ranker.esu, kept_BTK.clamp_min(0)
    row = torch.where(kept_BTK >= 0, pick(encoded.history_BL, position), NONE)
    kept = Kept(encoded.gated.pairs, encoded.merged_Pd, encoded.target_BT, row, pick(batch.hours_BL, position))
    key = key_BLMd.gather(1, position[:, 0, :, None, None].expand(-1, -1, *key_BLMd.shape[2:]))
    similarity = kept.similarity()
    logit_BTHK = _double_sum(esu.attention, asked_BMd, key).transpose(1, 2)[:, None]
    if esu.mix is not None:
        logit_BTHK = esu._semantic(esu.mix, logit_BTHK, similarity)
    if esu.age_bias is not None:
        logit_BTHK = logit_BTHK + esu.age_bias[age_bucket(kept.hours_BTK, len(esu.age_bias))].permute(0, 1, 3, 2)
    attention = masked_softmax(logit_BTHK, kept.mask_BTK[:, :, None])[:, 0]
    value = sum(torch.einsum("bkd,hde->bhke", key[:, :, j], esu.attention.wv) for j in range(NUM_CHANNELS))
    interest = torch.einsum("bhk,bhke->bhe", attention, value).flatten(1) @ esu.attention.wo
    interest = torch.where(kept.mask_BTK.any(-1), interest, esu.null)
    return interest, sim_tiers(similarity, esu.num_tiers)
