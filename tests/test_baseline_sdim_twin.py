"""SDIM and TWIN: each equals its paper's loops in float64, and solves what a simpler model cannot."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from seminar.baselines.eta import ETA
from seminar.baselines.sdim import SDIM
from seminar.baselines.sim_hard import SIMHard
from seminar.baselines.twin import TWIN
from seminar.batching import Batch
from seminar.channels import VectorTables
from seminar.config import BaselineConfig
from tests.baseline_world import auc_after_training, built, perturbed, planted_batch, planted_tables, seen_of
from tests.worlds import seeded, small_config

LENGTHS = [9, 14, 0, 3]
ROWS, TARGETS = 16, 8
OFF = {"cross_features": False, "recent": 0}


def bucket(hours: Tensor) -> Tensor:
    return (hours.double() + 1).log2().floor().long().clamp_max(15)


@pytest.mark.parametrize(("hashes", "width"), [(12, 2), (12, 3), (8, 8)], ids=["all buckets", "asked buckets", "rarely shared"])
def test_sdim_is_the_mean_of_normalised_sums_of_shared_buckets(hashes: int, width: int) -> None:
    config = small_config(baseline=BaselineConfig(sdim_hashes=hashes, sdim_width=width))
    unit, seen, nulls = perturbed(SDIM(config, seeded())), seen_of(LENGTHS), 0
    sign = seen.embedding_Pd @ unit.plane_dm > 0
    found = unit(seen)
    for b, length in enumerate(LENGTHS):
        for t in range(seen.target_BT.shape[1]):
            total, matches = torch.zeros(16, dtype=torch.float64), 0
            for group in sign.split(width, dim=1):
                inside = torch.zeros(16, dtype=torch.float64)
                for position in range(length):
                    row = seen.history_BL[b, position]
                    if torch.equal(group[row], group[seen.target_BT[b, t]]):
                        matches += 1
                        inside += seen.embedding_Pd[row].double() + unit.age[bucket(seen.hours_BL[b, position])].double()
                total += inside / inside.norm().clamp_min(1e-6) / (hashes // width)
            nulls += matches == 0
            torch.testing.assert_close(
                found.interest_BTd[b, t].double(), total if matches else unit.null.double(), rtol=1e-4, atol=1e-5
            )
    assert nulls >= 4
    assert width < 8 or nulls > 4


def test_sdims_collisions_follow_the_angle() -> None:
    unit = SDIM(small_config(dim=16, baseline=BaselineConfig(sdim_hashes=1020, sdim_width=3)), seeded())
    first, other = torch.zeros(16), torch.zeros(16)
    first[0], other[0], other[1] = 1.0, 0.5, 0.75**0.5
    shared = (unit.signature(first[None]) == unit.signature(other[None])).double().mean()
    assert float(shared) == pytest.approx((1 - 1 / 3) ** 3, abs=4 * (0.3 * 0.7 / 340) ** 0.5)


def test_sdims_hashes_travel_with_the_model_and_never_learn() -> None:
    first, second = SDIM(small_config(), seeded(1)), SDIM(small_config(), seeded(2))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.plane_dm, second.plane_dm)
    assert sorted(name for name, _ in first.named_parameters()) == ["age", "null"]


def test_twin_keeps_by_the_logits_that_its_attention_uses() -> None:
    unit, seen = perturbed(TWIN(small_config(top_k=4), seeded())), seen_of(LENGTHS)
    with torch.no_grad():
        unit.query_bias.mul_(5)
    attention, found = unit.attention, unit(seen)
    for b, length in enumerate(LENGTHS):
        for t in range(seen.target_BT.shape[1]):
            query = seen.embedding_Pd[seen.target_BT[b, t]].double()
            alpha, content = [], []
            for position in range(length):
                key, age = seen.embedding_Pd[seen.history_BL[b, position]].double(), bucket(seen.hours_BL[b, position])
                of_behaviour, of_request = int(seen.query_BL[b, position]), int(seen.query_BT[b, t])
                state = 0 if of_behaviour < 0 else 2 if of_behaviour == of_request else 1
                product = [
                    (query @ attention.wq[h].double() + attention.bq[h].double()) @ (key @ attention.wk[h].double()) / 4
                    for h in range(4)
                ]
                alpha.append(torch.stack(product) + unit.age_bias[age].double() + unit.query_bias[state].double())
                content.append(key + unit.age_value[age].double() + unit.query_value[state].double())
            kept = sorted(sorted(range(length), key=lambda p: (round(alpha[p].sum().item(), 5), p))[-4:])
            assert [p for p in found.kept_BTK[b, t].tolist() if p >= 0] == kept
            expected = unit.null.double()
            if kept:
                weight, value = torch.stack([alpha[p] for p in kept]).softmax(0), torch.stack([content[p] for p in kept])
                heads = [weight[:, h] @ (value @ attention.wv[h].double()) for h in range(4)]
                expected = torch.cat(heads) @ attention.wo.double()
            torch.testing.assert_close(found.interest_BTd[b, t].double(), expected, rtol=1e-4, atol=1e-5)


def test_twin_without_the_query_channel_knows_no_queries() -> None:
    seen = seen_of(LENGTHS)
    unit = perturbed(TWIN(small_config(top_k=4, channels=("text", "image", "attributes")), seeded()))
    other = replace(seen, query_BL=torch.full_like(seen.query_BL, -1))
    assert torch.equal(unit(seen).interest_BTd, unit(other).interest_BTd)


def liked_items() -> VectorTables:
    """Of each of six groups one liked item, one disliked and one neutral: 3 g, 3 g + 1, 3 g + 2. Text shows group and kind."""
    group, kind = np.arange(18) // 3, np.arange(18) % 3
    return planted_tables(np.concatenate([2 * np.eye(6)[group], np.eye(3)[kind]], 1), group)


def far_groups() -> VectorTables:
    """The same with three groups that point away from one another, so that two groups share few buckets."""
    group, kind = np.arange(9) // 3, np.arange(9) % 3
    return planted_tables(np.concatenate([2 * np.eye(3)[group] - 2 / 3, np.eye(3)[kind]], 1), group)


def old_taste(rng: np.random.Generator) -> Batch:
    """Of each group eight old behaviours of one kind, then two of either kind. Positive if the old ones are liked ones."""
    disliked = rng.integers(0, 2, (ROWS, 3))
    group = np.tile(np.arange(3), 8)
    item = np.concatenate([3 * group + disliked[:, group], np.tile(3 * group[:12] + np.repeat([0, 1, 0, 1], 3), (ROWS, 1))], 1)
    target = rng.integers(0, 3, (ROWS, TARGETS))
    return planted_batch(item, 3 * target + 2, np.take_along_axis(disliked, target, 1) == 0)


def test_sdim_counts_more_behaviours_than_any_top_k_keeps() -> None:
    """The embeddings stand still: of nine items a step of theirs moves whole buckets, which a long training would average out."""
    models = (built(SDIM, far_groups(), learn_transform=False, **OFF), built(SIMHard, far_groups(), top_k=4, **OFF))
    for model in models:
        model.channels.requires_grad_(False)
    assert auc_after_training(models[0], old_taste, steps=200) > 0.9
    assert auc_after_training(models[1], old_taste, steps=200) < 0.7


def asked_before(rng: np.random.Generator) -> Batch:
    """Of each group eight behaviours, liked or not by chance. Positive if the one that the request's query led to is liked."""
    order = np.stack([rng.permutation(48) for _ in range(ROWS)])
    group, disliked = order % 6, rng.integers(0, 2, (ROWS, 48))
    query = np.where(order < 6, 0, rng.integers(1, 4, (ROWS, 48)))
    asked = np.take_along_axis(disliked, np.argsort(order, 1)[:, :6], 1)
    target = rng.integers(0, 6, (ROWS, TARGETS))
    batch = planted_batch(
        3 * group + disliked, 3 * target + 2, np.take_along_axis(asked, target, 1) == 0, query_BT=np.zeros_like(target)
    )
    return replace(batch, query_BL=torch.from_numpy(query))


def test_twins_search_learns_a_cross_feature_from_its_attention_and_search_or_attention_without_it_fails() -> None:
    assert auc_after_training(built(TWIN, liked_items(), top_k=4, **OFF), asked_before, steps=120) > 0.9
    assert auc_after_training(built(SIMHard, liked_items(), top_k=4, **OFF), asked_before, steps=120) < 0.7
    assert auc_after_training(built(ETA, liked_items(), top_k=48, **OFF), asked_before, steps=120) < 0.7
