"""Planted tasks that DIN, SIM-hard, SIM-soft or ETA must solve by its own mechanism and a named simpler one cannot.

Items are their text vectors, without IDs; the recent branch and the cross features are off, so only the interest can tell.
"""

import numpy as np

from seminar.baselines.din import DIN
from seminar.baselines.eta import ETA
from seminar.baselines.sim_hard import SIMHard
from seminar.baselines.sim_soft import SIMSoft
from seminar.batching import Batch
from seminar.channels import VectorTables
from tests.baseline_world import auc_after_training, built, planted_batch, planted_tables

ROWS, TARGETS = 16, 8
OFF = {"cross_features": False, "recent": 0}


def random_items(num_items: int) -> VectorTables:
    """All of one category, which therefore tells nothing."""
    text = np.random.default_rng(0).standard_normal((num_items, 24)) / 24**0.5
    return planted_tables(text, np.zeros(num_items))


def intensity(rng: np.random.Generator) -> Batch:
    """Positive if the item was bought four times. A history holds four items, each of them once or each four times.

    Softmax attention over all of it cannot tell the two apart: copies of everything change no mean. Ages are all the same.
    """
    repeats = np.arange(ROWS) % 2 * 3 + 1
    item = np.stack([rng.permutation(20) for _ in range(ROWS)])
    known = (rng.random((ROWS, TARGETS)) < 0.75) | (repeats == 1)[:, None]
    target = np.take_along_axis(item, np.where(known, rng.integers(0, 4, known.shape), rng.integers(4, 20, known.shape)), 1)
    return planted_batch(np.tile(item[:, :4], 4), target, known & (repeats == 4)[:, None], 4 * repeats, hours_apart=0.0)


def test_din_tells_how_often_and_softmax_attention_over_everything_does_not() -> None:
    tables = random_items(20)
    assert auc_after_training(built(DIN, tables, **OFF), intensity, steps=60) > 0.9
    assert auc_after_training(built(ETA, tables, top_k=16, **OFF), intensity, steps=60) < 0.7


def bare_kinds() -> VectorTables:
    """Of each of six groups one liked item, one disliked and one neutral: 3 g, 3 g + 1, 3 g + 2.

    Text shows the kind alone; only the catalogue knows the group, as their category.
    """
    group, kind = np.arange(18) // 3, np.arange(18) % 3
    return planted_tables(np.eye(3)[kind], group)


def liked_group(rng: np.random.Generator) -> Batch:
    """Five liked items in each of three groups and five disliked in each other one. Positive if the target's group is liked."""
    disliked = np.stack([rng.permutation(6) % 2 for _ in range(ROWS)])
    order = np.stack([rng.permutation(30) for _ in range(ROWS)]) % 6
    group = rng.integers(0, 6, (ROWS, TARGETS))
    label = np.take_along_axis(disliked, group, 1) == 0
    return planted_batch(3 * order + np.take_along_axis(disliked, order, 1), 3 * group + 2, label)


def test_sim_hard_finds_the_category_that_no_embedding_shows_and_attention_over_everything_does_not() -> None:
    assert auc_after_training(built(SIMHard, bare_kinds(), top_k=5, **OFF), liked_group, steps=50) > 0.9
    assert auc_after_training(built(ETA, bare_kinds(), top_k=30, **OFF), liked_group, steps=50) < 0.7


def faint_items() -> VectorTables:
    """Item 6 s + n: what matters, s of nine, is fainter in its text than what does not, n of six, which is its category too."""
    matter, other = np.arange(54) // 6, np.arange(54) % 6
    return planted_tables(np.concatenate([np.eye(9)[matter], 2 * np.eye(6)[other]], 1), other)


def faint_match(rng: np.random.Generator) -> Batch:
    """Positive if the history has the target's s, which four of eight are; ten of thirty behaviours have its n and none its s."""
    owned = np.stack([rng.permutation(8) for _ in range(ROWS)])
    other = np.stack([rng.permutation(6) for _ in range(ROWS)])
    matter = np.concatenate([np.full((ROWS, 10), 8), np.tile(owned[:, :4], 5)], 1)
    noise = np.concatenate([np.repeat(other[:, :1], 10, 1), np.tile(other[:, 1:], 4)], 1)
    order = np.stack([rng.permutation(30) for _ in range(ROWS)])
    position = rng.integers(0, 8, (ROWS, TARGETS))
    target = 6 * np.take_along_axis(owned, position, 1) + other[:, :1]
    return planted_batch(np.take_along_axis(6 * matter + noise, order, 1), target, position < 4)


def test_sim_soft_learns_what_to_search_for_and_search_by_category_or_likeness_does_not() -> None:
    """Embeddings are fixed: ETA could otherwise bend them until what matters is alike, SIM-soft need not."""
    fixed = {"freeze_psu": True, "learn_transform": False, "top_k": 5, **OFF}
    assert auc_after_training(built(SIMSoft, faint_items(), **fixed), faint_match, steps=200) > 0.9
    assert auc_after_training(built(ETA, faint_items(), **fixed), faint_match, steps=120) < 0.7
    assert auc_after_training(built(SIMHard, faint_items(), **fixed), faint_match, steps=50) < 0.7


def bought_long_ago(rng: np.random.Generator) -> Batch:
    """Positive if the item is in the history, of which the newest ten behaviours are never asked for."""
    item = np.stack([rng.permutation(60) for _ in range(ROWS)])
    known = rng.random((ROWS, TARGETS)) < 0.5
    position = np.where(known, rng.integers(0, 20, known.shape), rng.integers(30, 60, known.shape))
    return planted_batch(item[:, :30], np.take_along_axis(item, position, 1), known)


def test_eta_finds_an_old_purchase_and_the_newest_behaviours_do_not_show_it() -> None:
    tables = random_items(60)
    assert auc_after_training(built(ETA, tables, top_k=5, **OFF), bought_long_ago, steps=150) > 0.9
    assert auc_after_training(built(SIMHard, tables, top_k=5, **OFF), bought_long_ago, steps=50) < 0.7
