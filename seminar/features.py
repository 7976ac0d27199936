"""Hand-made features beside the attention: what the whole history says of a target without any embedding.

Counting, recency and popularity are the strongest signals of repeat consumption; they are computed over the whole history, not
the kept K.
"""

from typing import no_type_check

import numba
import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

DECAY_HOURS = (168.0, 1344.0)
"""Half-lives in spirit: exp(-age / tau) for a week and eight weeks."""
NUM_CROSS = 2 * (1 + len(DECAY_HOURS)) + 2 + (1 + len(DECAY_HOURS))
NUM_ITEM = 3
NUM_USER = 2


@torch.no_grad()
def cross_features(
    item_BL: Int[Tensor, "B L"],
    category_BL: Int[Tensor, "B L"],
    hours_BL: Float[Tensor, "B L"],
    mask_BL: Bool[Tensor, "B L"],
    item_BT: Int[Tensor, "B T"],
    category_BT: Int[Tensor, "B T"],
) -> Float[Tensor, "B T F"]:
    """User-x-item features, F = NUM_CROSS.

    log(1 + count) of the target's item, and of its category, in the history, plain and decayed by age; whether the item occurs;
    how recently, 1 / (1 + days), 0 if never; the item's share of its category, plain and decayed (1 without a category).
    """
    if item_BL.device.type == "cpu":
        columns = (t.numpy() for t in (item_BL, category_BL, hours_BL, mask_BL, item_BT, category_BT))
        totals = _totals(*columns, taus=np.array(DECAY_HOURS))
        items, categories, latest = (torch.from_numpy(total) for total in totals)
    else:
        items, categories, latest = _totals_plain(item_BL, category_BL, hours_BL, mask_BL, item_BT, category_BT)
    found = (items[..., 0] > 0).to(items.dtype)
    share = items / torch.maximum(categories, items).clamp_min(1e-9)
    return torch.cat([items.log1p(), categories.log1p(), found[..., None], latest[..., None], share], -1)


def _totals_plain(
    item_BL: Tensor, category_BL: Tensor, hours_BL: Tensor, mask_BL: Tensor, item_BT: Tensor, category_BT: Tensor
) -> tuple[Float[Tensor, "B T 3"], Float[Tensor, "B T 3"], Float[Tensor, "B T"]]:
    """By torch: one comparison a (target, behaviour) and one batched product."""
    ages = torch.stack([torch.ones_like(hours_BL), *(torch.exp(-hours_BL / tau) for tau in DECAY_HOURS)], -1)
    ages = ages * mask_BL[..., None]
    same_item = (item_BT[:, :, None] == item_BL[:, None]) & mask_BL[:, None]
    same_category = (category_BT[:, :, None] == category_BL[:, None]) & (category_BT >= 0)[:, :, None]
    freshness = (1 / (1 + hours_BL / 24))[:, None] * same_item
    latest = freshness.amax(-1) if freshness.shape[-1] else freshness.sum(-1)
    return same_item.to(ages.dtype) @ ages, same_category.to(ages.dtype) @ ages, latest


# no_type_check: the import hook that checks shapes in tests would wrap what numba must compile.


@numba.njit(nogil=True, cache=True)
@no_type_check
def _totals(item, category, hours, mask, wanted_item, wanted_category, taus):
    """The same on the CPU, a behaviour at a time: what no target asks for costs two searches, not T comparisons."""
    batch, targets = wanted_item.shape
    items = np.zeros((batch, targets, 1 + len(taus)), np.float32)
    categories = np.zeros((batch, targets, 1 + len(taus)), np.float32)
    latest = np.zeros((batch, targets), np.float32)
    age = np.ones(1 + len(taus))
    for b in range(batch):
        item_set, category_set = np.unique(wanted_item[b]), np.unique(wanted_category[b])
        of_item = np.zeros((len(item_set), 1 + len(taus)))
        of_category = np.zeros((len(category_set), 1 + len(taus)))
        newest = np.full(len(item_set), np.inf)
        for n in range(item.shape[1]):
            if not mask[b, n]:
                continue
            i, c = np.searchsorted(item_set, item[b, n]), np.searchsorted(category_set, category[b, n])
            asked = i < len(item_set) and item_set[i] == item[b, n]
            related = category[b, n] >= 0 and c < len(category_set) and category_set[c] == category[b, n]
            if not (asked or related):
                continue
            for k in range(len(taus)):
                age[1 + k] = np.exp(-hours[b, n] / taus[k])
            if asked:
                of_item[i] += age
                newest[i] = min(newest[i], hours[b, n])
            if related:
                of_category[c] += age
        for t in range(targets):
            i, c = np.searchsorted(item_set, wanted_item[b, t]), np.searchsorted(category_set, wanted_category[b, t])
            items[b, t], categories[b, t] = of_item[i], of_category[c]
            latest[b, t] = 1 / (1 + newest[i] / 24)
    return items, categories, latest


def item_features(count_BT: Float[Tensor, "B T"], category_mean_BT: Float[Tensor, "B T"], total: float) -> Float[Tensor, "B T F"]:
    """log popularity, log popularity relative to the category's mean, and whether the item was never seen in training."""
    popularity = count_BT.log1p()
    relative = popularity - category_mean_BT.log1p()
    return torch.stack([popularity / torch.tensor(total).log1p(), relative / 4, (count_BT <= 0).to(count_BT.dtype)], -1)


def user_features(total_length_B: Int[Tensor, " B"], hours_BL: Float[Tensor, "B L"]) -> Float[Tensor, "B F"]:
    """log(1 + history length) and log(1 + hours since the oldest visible behaviour), both scaled to about 1."""
    span = hours_BL.amax(-1)
    return torch.stack([total_length_B.to(hours_BL.dtype).log1p() / 8, span.log1p() / 8], -1)
