"""Small planted worlds for model tests: real tables and batches with known answers, no files."""

import numpy as np
import torch

from seminar.batching import Batch, Request, collate
from seminar.channels import VectorTables
from seminar.config import ModelConfig
from seminar.schema import CTR, MS_PER_WEEK, PSR
from seminar.sequences import Exposures, Histories

START_MS = 1_500_000_000_000


def vector_tables(num_items: int = 40, num_queries: int = 6, seed: int = 0) -> VectorTables:
    """Every third item has no text, every second no image, every fifth no attributes; the last four were never seen."""
    rng = np.random.default_rng(seed)
    items = np.arange(num_items)

    def unit(rows: int, width: int) -> np.ndarray:
        x = rng.standard_normal((rows, width))
        return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float16)

    tokens = np.where(items % 5 == 0, 0, 2)
    return VectorTables(
        text=unit(num_items // 2, 24),
        text_row=np.where(items % 3 == 0, -1, items // 2).astype(np.int32),
        image=unit(7, 12),
        image_row=np.where(items % 2 == 0, -1, items % 7).astype(np.int32),
        query=unit(num_queries, 24),
        query_row=np.arange(num_queries, dtype=np.int32),
        attribute_hash=rng.integers(0, 2**62, tokens.sum()),
        attribute_offsets=np.concatenate([[0], np.cumsum(tokens)]),
        category_index=(items % 4).astype(np.int32),
        train_count=np.where(items >= num_items - 4, 0, items + 1),
        **weekly(np.where(items >= num_items - 4, 0, items + 1)),
    )


def weekly(train_count: np.ndarray) -> dict[str, np.ndarray]:
    """Counts by week that add up to these: one a week from four weeks before the users' first, the rest in the last of ten."""
    weeks = np.minimum(train_count, 10)
    offsets = np.concatenate([[0], np.cumsum(weeks)]).astype(np.int64)
    place = np.arange(offsets[-1]) - np.repeat(offsets[:-1], weeks)
    rest = np.repeat(train_count - weeks, weeks) * (place == 9)
    week = START_MS // MS_PER_WEEK - 4 + place
    return {"week_offsets": offsets, "week": week.astype(np.int32), "week_count": (1 + rest).astype(np.int32)}


def small_config(**changes: object) -> ModelConfig:
    return ModelConfig(
        dim=16, num_heads=4, id_dim=8, num_token_rows=64, top_k=5, recent=4, hidden=(32, 16), dropout=0.0
    ).model_copy(update=changes)


def histories(lengths: list[int], tables: VectorTables, seed: int = 1) -> Histories:
    """Users with these history lengths; requests of two behaviours; one query in three behaviours."""
    rng = np.random.default_rng(seed)
    total = sum(lengths)
    query = rng.integers(0, tables.num_queries, total)
    position = np.concatenate([np.arange(n) for n in lengths]) if total else np.empty(0, np.int64)
    empty = np.empty(0, np.int32)
    return Histories(
        offsets=np.concatenate([[0], np.cumsum(lengths)]),
        user_id=[f"u{i}" for i in range(len(lengths))],
        user_attributes=[[] for _ in lengths],
        item=rng.integers(0, tables.num_items, total).astype(np.int32),
        query=np.where(rng.random(total) < 0.3, query, -1).astype(np.int32),
        origin=np.zeros(total, np.int8),
        time_ms=(START_MS + position * 3_600_000).astype(np.int64),
        request=(position // 2).astype(np.int32),
        train_end=np.array(lengths, np.int32),
        val_end=np.array(lengths, np.int32),
        exposures=Exposures(np.zeros(len(lengths) + 1, np.int64), empty, empty, empty),
    )


def batch_of(lengths: list[int], tables: VectorTables, targets: int = 6, max_history: int = 1000, seed: int = 2) -> Batch:
    """One request a user against its whole history; tasks alternate, labels are random."""
    rng = np.random.default_rng(seed)
    users = histories(lengths, tables)
    requests = []
    for row, length in enumerate(lengths):
        count = targets - row % 2
        task = np.arange(count) % 2
        requests.append(
            Request(
                row=row,
                end=length,
                time_ms=START_MS + 1000 * 3_600_000,
                item_T=rng.integers(0, tables.num_items, count),
                query_T=np.where(task == PSR, rng.integers(0, tables.num_queries, count), -1),
                label_T=(rng.random(count) < 0.5).astype(np.float32),
                task_T=np.where(task == PSR, PSR, CTR),
            )
        )
    return collate(users, requests, max_history)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
