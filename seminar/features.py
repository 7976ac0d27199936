"""Hand-made features beside the attention: what the whole history says of a target without any embedding.

Counting, recency and popularity are the strongest signals of repeat consumption; they are computed over the whole history, not
the kept K, in one comparison a (target, behaviour) and one batched matrix product.
"""

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
    ages = torch.stack([torch.ones_like(hours_BL), *(torch.exp(-hours_BL / tau) for tau in DECAY_HOURS)], -1)
    ages = ages * mask_BL[..., None]
    same_item = (item_BT[:, :, None] == item_BL[:, None]) & mask_BL[:, None]
    same_category = (category_BT[:, :, None] == category_BL[:, None]) & (category_BT >= 0)[:, :, None]
    items = same_item.to(ages.dtype) @ ages
    categories = same_category.to(ages.dtype) @ ages
    freshness = (1 / (1 + hours_BL / 24))[:, None] * same_item
    latest = freshness.amax(-1) if freshness.shape[-1] else freshness.sum(-1)
    found = (items[..., 0] > 0).to(ages.dtype)
    share = items / torch.maximum(categories, items).clamp_min(1e-9)
    return torch.cat([items.log1p(), categories.log1p(), found[..., None], latest[..., None], share], -1)


def item_features(count_BT: Float[Tensor, "B T"], category_mean_BT: Float[Tensor, "B T"], total: float) -> Float[Tensor, "B T F"]:
    """log popularity, log popularity relative to the category's mean, and whether the item was never seen in training."""
    popularity = count_BT.log1p()
    relative = popularity - category_mean_BT.log1p()
    return torch.stack([popularity / torch.tensor(total).log1p(), relative / 4, (count_BT <= 0).to(count_BT.dtype)], -1)


def user_features(total_length_B: Int[Tensor, " B"], hours_BL: Float[Tensor, "B L"]) -> Float[Tensor, "B F"]:
    """log(1 + history length) and log(1 + hours since the oldest visible behaviour), both scaled to about 1."""
    span = hours_BL.amax(-1)
    return torch.stack([total_length_B.to(hours_BL.dtype).log1p() / 8, span.log1p() / 8], -1)
