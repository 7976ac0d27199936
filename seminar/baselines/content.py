"""Search by content: one frozen multimodal vector an item, its text and image side by side, and cosines between them.

    c = [text ; image] / ||.||     cosine(a, b) = <c_a, c_b>     query against item: <[q ; q] / sqrt(2), c>

A missing modality is zero, so an item with both is compared with an item with one by what they share. No gradient passes: the
papers' multimodal vectors are frozen. Here they are the PSU's projections, which the click loss moves unless `freeze_psu`.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from seminar.baselines.base import Seen
from seminar.channels import Pairs
from seminar.gsu import keep_top_k
from seminar.schema import ATTRIBUTES, IMAGE, QUERY, TEXT

CONTENT = slice(TEXT, IMAGE + 1)
"""The channels that are content; a slice, whose gradient costs no scatter."""
NUM_CONTENT = IMAGE + 1 - TEXT
_BELOW_ANY_COSINE = 3.0
"""What a comparison by another channel is lowered by, so that it never stands before one by content."""


def content_vectors(pairs: Pairs) -> tuple[Float[Tensor, "P m d"], Bool[Tensor, " P"]]:
    """Text and image of each pair, together of length 1, zero where missing; and whether there is any. Has a gradient."""
    present_Pm = pairs.present_NM[:, CONTENT]
    length_Pm = present_Pm * present_Pm.sum(-1, keepdim=True).clamp_min(1).rsqrt()
    # Selected: a missing vector may hold anything, also NaN.
    unit_Pmd = torch.where(present_Pm[..., None], pairs.unit_NMd[:, CONTENT], 0.0)
    return unit_Pmd * length_Pm[..., None], present_Pm.any(-1)


@torch.no_grad()
def item_relevance(
    seen: Seen, content_Pmd: Float[Tensor, "P m d"], has_P: Bool[Tensor, " P"]
) -> tuple[Float[Tensor, "B T L"], Bool[Tensor, "B T L"]]:
    """Cosine of each target's content to each behaviour's, and whether both have content.

    Pairs that cannot be compared by content stand behind all that can, in order of their attribute channels' cosine.
    """
    comparable_BTL = has_P[seen.target_BT][..., None] & has_P[seen.history_BL][:, None]
    cosine_BTL = _cosine(seen, content_Pmd.flatten(1))
    if bool(has_P.all()):
        return cosine_BTL, comparable_BTL
    attributes_Pd = torch.where(seen.pairs.present_NM[:, ATTRIBUTES, None], seen.pairs.unit_NMd[:, ATTRIBUTES], 0.0)
    return torch.where(comparable_BTL, cosine_BTL, _cosine(seen, attributes_Pd) - _BELOW_ANY_COSINE), comparable_BTL


@torch.no_grad()
def query_filter(seen: Seen, content_Pmd: Float[Tensor, "P m d"], has_P: Bool[Tensor, " P"], k: int) -> Bool[Tensor, "B T L"]:
    """The k behaviours whose content is nearest to each target's query; all of them where the target has no query.

    Targets of a request that share a query share the search. Behaviours without content stand behind all others.
    """
    mask_BTL = seen.mask_BL[:, None].expand(-1, seen.target_BT.shape[1], -1)
    searches_BT = seen.pairs.present_NM[:, QUERY][seen.target_BT] & seen.mask_BT
    if k >= seen.history_BL.shape[1] or not bool(searches_BT.any()):
        return mask_BTL
    first_BD, which_BT = _distinct(torch.where(searches_BT, seen.query_BT, -1))
    query_BDd = functional.embedding(seen.target_BT.gather(1, first_BD), seen.pairs.unit_NMd[:, QUERY])
    # The query stands against text and image alike, so their sum will do.
    content_BLd = functional.embedding(seen.history_BL, content_Pmd.sum(1) / math.sqrt(NUM_CONTENT))
    cosine_BDL = query_BDd @ content_BLd.transpose(1, 2)
    cosine_BDL = cosine_BDL.masked_fill(~has_P[seen.history_BL][:, None], -_BELOW_ANY_COSINE)
    kept_BDK = keep_top_k(cosine_BDL, seen.mask_BL, k)
    # One column more than L takes what is -1.
    near_BDL = torch.zeros(*cosine_BDL.shape[:2], cosine_BDL.shape[2] + 1, dtype=torch.bool, device=kept_BDK.device)
    near_BDL = near_BDL.scatter_(2, kept_BDK % near_BDL.shape[2], True)[..., :-1]
    near_BTL = near_BDL.gather(1, which_BT[..., None].expand_as(mask_BTL))
    return mask_BTL & (near_BTL | ~searches_BT[..., None])


def _cosine(seen: Seen, table_Pc: Float[Tensor, "P c"]) -> Float[Tensor, "B T L"]:
    target_BTc = functional.embedding(seen.target_BT, table_Pc)
    return target_BTc @ functional.embedding(seen.history_BL, table_Pc).transpose(1, 2)


def _distinct(value_BT: Int[Tensor, "B T"]) -> tuple[Int[Tensor, "B D"], Int[Tensor, "B T"]]:
    """Columns in which each row's distinct values stand, and which of them each entry is; rows with fewer repeat a column."""
    sorted_BT, order_BT = value_BT.sort(dim=1)
    rank_BT = functional.pad((sorted_BT[:, 1:] != sorted_BT[:, :-1]).long().cumsum(1), (1, 0))
    which_BT = torch.empty_like(rank_BT).scatter_(1, order_BT, rank_BT)
    first_BD = which_BT.new_zeros(len(which_BT), int(rank_BT.max()) + 1)
    return first_BD.scatter_(1, rank_BT, order_BT), which_BT
