"""What tests of interest units share: random inputs for one unit alone, whole models away from their start, planted tasks."""

from collections.abc import Callable

import numpy as np
import torch

from seminar.baselines.base import Baseline, InterestUnit, Seen
from seminar.batching import Batch
from seminar.channels import Pairs, VectorTables
from seminar.config import ModelConfig
from seminar.schema import CTR
from tests.worlds import seeded, small_config, vector_tables, weekly

UnitClass = Callable[[ModelConfig, torch.Generator], InterestUnit]


def perturbed(model: torch.nn.Module) -> torch.nn.Module:
    """Away from its initialisation, so that no term is zero or the identity by accident; ID tables stay."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "ids" not in name and "tokens" not in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=seeded(len(name))))
    return model


def seen_of(lengths: list[int], targets: int = 4, dim: int = 16, num_pairs: int = 12, seed: int = 0) -> Seen:
    """Random histories over few pairs, so that pairs repeat; some channels and categories are missing, pair 0 has no channel.

    The last target of every second row is padding, as is what follows each history; both hold valid numbers of real pairs.
    """
    g, batch, length = seeded(seed), len(lengths), max(*lengths, 1)
    present = torch.rand(num_pairs, 4, generator=g) < 0.7
    present[0] = False
    unit = torch.nn.functional.normalize(torch.randn(num_pairs, 4, dim, generator=g), dim=-1) * present[..., None]
    category = torch.arange(num_pairs) % 5 - 1
    query = torch.arange(num_pairs) % 3 - 1
    history = torch.randint(0, num_pairs, (batch, length), generator=g)
    target = torch.randint(0, num_pairs, (batch, targets), generator=g)
    mask_BT = torch.ones(batch, targets, dtype=torch.bool)
    mask_BT[1::2, -1] = False
    return Seen(
        embedding_Pd=unit.mean(1) * 2,
        pairs=Pairs(unit, present),
        history_BL=history,
        target_BT=target,
        category_BL=category[history],
        category_BT=category[target],
        query_BL=query[history],
        query_BT=query[target],
        hours_BL=torch.rand(batch, length, generator=g).mul(9).exp().sort(1, descending=True).values,
        mask_BL=torch.arange(length) < torch.tensor(lengths)[:, None],
        mask_BT=mask_BT,
        label_BT=(torch.rand(batch, targets, generator=g) < 0.5).float(),
    )


def built(unit: UnitClass, tables: VectorTables | None = None, seed: int = 0, **changes: object) -> Baseline:
    """A fresh model around a unit."""
    config = small_config(**changes)
    return Baseline.build(unit(config, seeded(seed)), config, tables or vector_tables(), seeded(seed))


def planted_batch(
    item_BL: np.ndarray,
    item_BT: np.ndarray,
    label_BT: np.ndarray,
    length_B: np.ndarray | None = None,
    query_BT: np.ndarray | None = None,
    hours_apart: float = 1.0,
) -> Batch:
    """A batch of planted histories, this many hours between behaviours. By its features every user has one of the same length."""
    batch, length = item_BL.shape
    item_BT = torch.from_numpy(item_BT).long()
    return Batch(
        item_BL=torch.from_numpy(item_BL).long(),
        query_BL=torch.full((batch, length), -1),
        hours_BL=hours_apart * torch.arange(length, 0, -1).float().repeat(batch, 1),
        length_B=torch.full((batch,), length) if length_B is None else torch.from_numpy(length_B).long(),
        total_length_B=torch.full((batch,), length),
        item_BT=item_BT,
        query_BT=torch.full_like(item_BT, -1) if query_BT is None else torch.from_numpy(query_BT).long(),
        label_BT=torch.from_numpy(label_BT).float(),
        task_BT=torch.full_like(item_BT, CTR),
        target_count_B=torch.full((batch,), item_BT.shape[1]),
        hour_of_week_B=torch.zeros(batch, dtype=torch.long),
        week_B=torch.zeros(batch, dtype=torch.long),
    )


def planted_tables(text_IE: np.ndarray, category_I: np.ndarray) -> VectorTables:
    """Items that are what their text vectors say and nothing else: no images, no attributes, no IDs, no queries.

    One more item stands last, the only one that training counted: popularity needs a total.
    """
    num_items, width = len(text_IE), text_IE.shape[1]
    return VectorTables(
        text=text_IE.astype(np.float16),
        text_row=np.append(np.arange(num_items), -1).astype(np.int32),
        image=np.empty((0, width), np.float16),
        image_row=np.full(num_items + 1, -1, np.int32),
        query=np.empty((0, width), np.float16),
        query_row=np.empty(0, np.int32),
        attribute_hash=np.empty(0, np.int64),
        attribute_offsets=np.zeros(num_items + 2, np.int64),
        category_index=np.append(category_I, -1).astype(np.int32),
        train_count=np.append(np.zeros(num_items, np.int64), 1),
        **weekly(np.append(np.zeros(num_items, np.int64), 1)),
    )


def auc_after_training(model: Baseline, draw: Callable[[np.random.Generator], Batch], steps: int, rate: float = 0.01) -> float:
    """Train on planted batches, then the AUC over all targets of fresh ones."""
    rng = np.random.default_rng(0)
    sparse = [model.channels.ids.weight, model.channels.tokens.weight]
    dense = [p for p in model.parameters() if all(p is not s for s in sparse)]
    optimisers = [torch.optim.Adam(dense, lr=rate), torch.optim.Adagrad(sparse, lr=0.1)]
    model.train()
    for _ in range(steps):
        for optimiser in optimisers:
            optimiser.zero_grad()
        model.loss(draw(rng))["total"].backward()
        for optimiser in optimisers:
            optimiser.step()
    model.eval()
    tested = [(batch, model.score(batch)) for batch in (draw(rng) for _ in range(8))]
    score, label = torch.cat([s.flatten() for _, s in tested]), torch.cat([b.label_BT.flatten() for b, _ in tested])
    difference = score[label > 0][:, None] - score[label == 0]
    return float((difference > 0).double().mean() + (difference == 0).double().mean() / 2)
