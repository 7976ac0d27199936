"""How often an item is taken, whoever asks: the part of a retrieval score that is counted instead of learned."""

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray


def log_prior(train_count: Int[ndarray, " I"]) -> Float[ndarray, " I"]:
    """log q of every catalogue item: the share of the next behaviours that will be of it, float32.

    A seen item has its share of training behaviours. So has an unseen one: by Good and Turing (Good 1953, equation 9) the
    next behaviour is of some unseen item with probability n_1 / N, n_1 being the items seen once, and the unseen share it evenly,
    but never counts for more than an item seen once. Without items seen once, an unseen one counts as half a behaviour.
    """
    count = train_count.astype(np.float64)
    unseen, once = int((train_count == 0).sum()), int((train_count == 1).sum())
    count[train_count == 0] = min(once / unseen, 1.0) if unseen and once else 0.5
    return (np.log(count) - np.log(count.sum())).astype(np.float32)
