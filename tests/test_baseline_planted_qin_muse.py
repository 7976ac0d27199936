"""Planted tasks that QIN or MUSE must solve by its own mechanism and a named simpler model cannot.

Items are their text vectors, frozen, without IDs; the recent branch and the cross features are off.
"""

from dataclasses import replace

import numpy as np
import torch

from seminar.baselines.base import Baseline
from seminar.baselines.eta import ETA
from seminar.baselines.muse import MUSE
from seminar.baselines.qin import QIN
from seminar.batching import Batch
from seminar.channels import VectorTables
from seminar.config import BaselineConfig
from tests.baseline_world import auc_after_training, built, planted_batch, planted_tables

ROWS, TARGETS = 16, 8
OFF = {"cross_features": False, "recent": 0}


def frozen(model: Baseline) -> Baseline:
    """Content vectors as they are: what the papers take from a pretrained encoder."""
    with torch.no_grad():
        for project in (model.channels.project_text, model.channels.project_query):
            project.copy_(torch.eye(*project.shape))
    model.channels.requires_grad_(False)
    return model


def topics() -> VectorTables:
    """Items of four groups and eight topics, liked, disliked or neutral; text shows all three; neutral ones have no topic."""
    group, topic, kind = np.arange(96) // 24, np.arange(96) // 3 % 8, np.arange(96) % 3
    of_topic = np.eye(8)[topic] * (kind < 2)[:, None]
    tables = planted_tables(np.concatenate([np.eye(4)[group], of_topic, np.eye(3)[kind]], 1), np.zeros(96))
    query = np.concatenate([np.zeros((8, 4)), np.eye(8), np.zeros((8, 3))], 1)
    return replace(tables, query=query.astype(np.float16), query_row=np.arange(8, dtype=np.int32))


def taste_a_topic(rng: np.random.Generator) -> Batch:
    """One behaviour of each group and topic, liked or not by chance. Positive if that of the query's topic is liked."""
    disliked = rng.integers(0, 2, (ROWS, 32))
    order = np.stack([rng.permutation(32) for _ in range(ROWS)])
    group, query = rng.integers(0, 4, (ROWS, TARGETS)), rng.integers(0, 8, (ROWS, TARGETS))
    label = np.take_along_axis(disliked, 8 * group + query, 1) == 0
    item = 3 * order + np.take_along_axis(disliked, order, 1)
    return planted_batch(item, 24 * group + 2, label, query_BT=query)


def test_qin_finds_what_query_and_target_ask_for_and_search_by_the_target_does_not() -> None:
    qin = built(QIN, topics(), top_k=1, baseline=BaselineConfig(query_top_k=4), **OFF)
    assert auc_after_training(frozen(qin), taste_a_topic, steps=100) > 0.9
    assert auc_after_training(frozen(built(MUSE, topics(), top_k=1, **OFF)), taste_a_topic, steps=100) < 0.7


def near_copies() -> VectorTables:
    """Sixty originals, and three copies of each a little apart."""
    rng = np.random.default_rng(0)
    original = rng.standard_normal((60, 1, 16)) / 4
    apart = np.arange(4)[:, None] > 0
    return planted_tables((original + apart * rng.standard_normal((60, 4, 16)) / 20).reshape(240, 16), np.zeros(240))


def how_often(rng: np.random.Generator) -> Batch:
    """Positive if the item was bought in three variants. A history holds four items in one variant each, or in all three.

    Softmax attention cannot tell the two apart: its weights have the same mean whatever the number of variants.
    """
    variants = np.arange(ROWS) % 2 * 2 + 1
    item = np.stack([rng.permutation(60) for _ in range(ROWS)])
    known = (rng.random((ROWS, TARGETS)) < 0.9) | (variants == 1)[:, None]
    column = np.where(known, rng.integers(0, 4, known.shape), rng.integers(4, 60, known.shape))
    history = np.concatenate([4 * item[:, :4] + variant for variant in (1, 2, 3)], 1)
    label = known & (variants == 3)[:, None]
    batch = planted_batch(history, 4 * np.take_along_axis(item, column, 1), label, 4 * variants)
    return replace(batch, hours_BL=torch.ones_like(batch.hours_BL))  # ages would tell the length


def test_muse_counts_similar_content_and_attention_over_everything_does_not() -> None:
    assert auc_after_training(frozen(built(MUSE, near_copies(), top_k=12, **OFF)), how_often, steps=100) > 0.9
    assert auc_after_training(frozen(built(ETA, near_copies(), top_k=12, **OFF)), how_often, steps=100) < 0.7
