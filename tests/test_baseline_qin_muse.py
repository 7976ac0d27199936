"""QIN and MUSE: what they keep equals brute force over the paper's similarities, what they answer its loops in float64."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from seminar.attention import TargetAttention
from seminar.baselines.base import Seen
from seminar.baselines.muse import MUSE
from seminar.baselines.qin import QIN
from seminar.channels import Pairs
from seminar.config import BaselineConfig
from tests.baseline_world import perturbed, seen_of
from tests.worlds import seeded, small_config

LENGTHS = [9, 14, 0, 3]


def searched() -> Seen:
    """Random histories in which a pair's query channel is its query's, as in real batches."""
    seen = seen_of(LENGTHS)
    query = torch.arange(len(seen.pairs.unit_NMd)) % 3 - 1
    of_query = torch.nn.functional.normalize(torch.randn(3, 16, generator=seeded(5)), dim=-1)
    unit, present = seen.pairs.unit_NMd.clone(), seen.pairs.present_NM.clone()
    unit[:, 0], present[:, 0] = torch.where(query[:, None] >= 0, of_query[query], 0.0), query >= 0
    return replace(seen, pairs=Pairs(unit, present))


def content(seen: Seen, row: int) -> Tensor | None:
    """Text and image side by side, of length 1; none where both are missing."""
    unit, present = seen.pairs.unit_NMd[row, 1:3].double(), seen.pairs.present_NM[row, 1:3]
    return (unit * present[:, None]).flatten() / present.sum().sqrt() if present.any() else None


def relevance(seen: Seen, target: int, behaviour: int) -> float:
    """Cosine of contents; by attributes, far behind, where one has none."""
    first, second = content(seen, target), content(seen, behaviour)
    if first is not None and second is not None:
        return float(first @ second)
    return float(seen.pairs.unit_NMd[target, 3].double() @ seen.pairs.unit_NMd[behaviour, 3].double()) - 3


def newest_best(positions: list[int], score: Callable[[int], float], k: int) -> list[int]:
    # Repeats of a pair are equal but for rounding.
    return sorted(sorted(positions, key=lambda p: (round(score(p), 5), p))[-k:])


def attended(
    attention: TargetAttention, query: Tensor, key: Tensor, adjust: Callable[[int, Tensor], Tensor], share: Tensor | float = 1.0
) -> Tensor:
    """Multi-head attention as papers write it; adjust(h, logits) are the head's final logits, share weighs the values."""
    heads = []
    for h in range(attention.num_heads):
        wq, wk, wv = (w[h].double() for w in (attention.wq, attention.wk, attention.wv))
        logit = adjust(h, (key @ wk) @ (query @ wq + attention.bq[h].double()) / attention.dim**0.5)
        heads.append((logit.softmax(0) * share) @ (key @ wv))
    return torch.cat(heads) @ attention.wo.double()


def bucket(hours: Tensor) -> Tensor:
    return (hours.double() + 1).log2().floor().long().clamp_max(15)


@torch.no_grad()
def test_muse_attends_with_similarity_to_the_most_similar_content() -> None:
    unit, seen = perturbed(MUSE(small_config(top_k=4), seeded())), searched()
    found, gamma, past_content = unit(seen), unit.gamma.double(), 0
    for b, length in enumerate(LENGTHS):
        for t in range(seen.target_BT.shape[1]):
            target, row = int(seen.target_BT[b, t]), seen.history_BL[b].tolist()
            kept = newest_best(list(range(length)), lambda p: relevance(seen, target, row[p]), 4)  # noqa: B023
            assert [p for p in found.kept_BTK[b, t].tolist() if p >= 0] == kept
            past_content += sum(relevance(seen, target, row[p]) < -1 for p in kept)
            cosine = torch.tensor([max(relevance(seen, target, row[p]), -1) for p in kept], dtype=torch.float64)
            cosine[cosine == -1] = 0
            age = unit.age_bias[bucket(seen.hours_BL[b, kept])].double()
            expected = unit.null.double()
            if kept:
                expected = attended(
                    unit.attention,
                    seen.embedding_Pd[target].double(),
                    seen.embedding_Pd[[row[p] for p in kept]].double(),
                    lambda h, a: gamma[h, 0] * a + gamma[h, 1] * cosine + gamma[h, 2] * a * cosine + age[:, h],  # noqa: B023
                )
            torch.testing.assert_close(found.interest_BTd[b, t].double(), expected, rtol=1e-4, atol=1e-5)
    assert past_content > 0


def test_muse_counts_text_and_image_similarities_apart() -> None:
    unit, seen = MUSE(small_config(top_k=4, simtier_bins=6), seeded()), searched()
    found = unit(seen)
    assert found.extra_BTF.shape[-1] == unit.num_extra == 12
    counts = torch.zeros(*seen.target_BT.shape, 2, 6)
    for b, t, slot in torch.nonzero(found.kept_BTK >= 0).tolist():
        target, row = seen.target_BT[b, t], seen.history_BL[b, found.kept_BTK[b, t, slot]]
        for m in range(2):
            if seen.pairs.present_NM[target, 1 + m] and seen.pairs.present_NM[row, 1 + m]:
                cosine = float(seen.pairs.unit_NMd[target, 1 + m] @ seen.pairs.unit_NMd[row, 1 + m])
                counts[b, t, m, min(int((cosine + 1) * 3), 5)] += 1
    torch.testing.assert_close(found.extra_BTF, counts.log1p().flatten(2))


@pytest.mark.parametrize("k1", [3, 6, 100])
@torch.no_grad()
def test_qin_searches_for_the_query_then_the_target_and_fuses_fields(k1: int) -> None:
    unit = perturbed(QIN(small_config(top_k=3, baseline=BaselineConfig(query_top_k=k1)), seeded()))
    seen = searched()
    found, unit_P, present = unit(seen), seen.pairs.unit_NMd.double(), seen.pairs.present_NM
    filtered = 0
    for b, length in enumerate(LENGTHS):
        for t in torch.nonzero(seen.mask_BT[b]).flatten().tolist():
            target, row, near = int(seen.target_BT[b, t]), seen.history_BL[b].tolist(), list(range(length))
            if present[target, 0]:
                probe = unit_P[target, 0].repeat(2) / 2**0.5
                score = [-3.0 if (c := content(seen, row[p])) is None else float(probe @ c) for p in near]
                near = newest_best(near, lambda p: score[p], k1)  # noqa: B023
            kept = newest_best(near, lambda p: relevance(seen, target, row[p]), 3)  # noqa: B023
            filtered += kept != newest_best(list(range(length)), lambda p: relevance(seen, target, row[p]), 3)  # noqa: B023
            assert [p for p in found.kept_BTK[b, t].tolist() if p >= 0] == kept
            expected = torch.zeros(16, dtype=torch.float64) if kept else unit.null.double()
            for field, attention in enumerate((unit.ids, unit.content)):
                scale = unit.scale.double()

                def vector(r: int, field: int = field, scale: Tensor = scale) -> Tensor:
                    if field == 0:
                        return unit_P[r, 3]
                    c = content(seen, r)
                    return torch.zeros(16).double() if c is None else (c.view(2, 16) * scale[:, None]).sum(0)

                having = [p for p in kept if (present[row[p], 3] if field == 0 else content(seen, row[p]) is not None)]
                if not having:
                    continue
                age = bucket(seen.hours_BL[b, having])
                query, asked = seen.query_BL[b, having], seen.query_BT[b, t]
                state = torch.where(query < 0, 0, torch.where(query == asked, 2, 1))
                gate = (unit.age_gate[age] + unit.query_gate[state]).double().sigmoid()
                bias = unit.age_bias[field][age].double()
                expected = expected + attended(
                    attention,
                    vector(target),
                    torch.stack([vector(row[p]) for p in having]),
                    lambda h, a: a + bias[:, h],  # noqa: B023
                    gate if field == 0 else 1 - gate,
                )
            torch.testing.assert_close(found.interest_BTd[b, t].double(), expected, rtol=1e-4, atol=1e-5)
    assert (filtered > 0) == (k1 < 14)
