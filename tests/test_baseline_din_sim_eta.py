"""DIN, SIM-hard, SIM-soft, ETA: each equals its paper's loops in float64, and solves what a simpler model cannot."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

import seminar.baselines.din as din_module
from seminar.baselines.base import Seen
from seminar.baselines.din import DIN
from seminar.baselines.eta import ETA
from seminar.baselines.parts import IntervalAttention
from seminar.baselines.sim_hard import SIMHard
from seminar.baselines.sim_soft import SIMSoft
from seminar.baselines.simhash import SimHash, pack
from seminar.config import BaselineConfig
from tests.baseline_world import perturbed, seen_of
from tests.worlds import seeded, small_config

LENGTHS = [9, 14, 0, 3]


def attended(attention: torch.nn.Module, query: Tensor, key: Tensor) -> Tensor:
    """Multi-head attention as papers write it: project keys, softmax, project values, concatenate, project."""
    heads = []
    for h in range(attention.num_heads):
        wq, wk, wv = (w[h].double() for w in (attention.wq, attention.wk, attention.wv))
        logit = (key @ wk) @ (query @ wq + attention.bq[h].double()) / attention.dim**0.5
        heads.append(logit.softmax(0) @ (key @ wv))
    return torch.cat(heads) @ attention.wo.double()


def with_age(esu: IntervalAttention | DIN, seen: Seen, b: int, kept: list[int]) -> Tensor:
    bucket = (seen.hours_BL[b, kept].double() + 1).log2().floor().long().clamp_max(15)
    return seen.embedding_Pd[seen.history_BL[b, kept]].double() + esu.age[bucket].double()


def check(unit: torch.nn.Module, seen: Seen, expected) -> None:
    """expected(b, t, positions): the paper's interest, or the kept positions with it; none for the null interest."""
    with torch.no_grad():
        found = unit(seen)
        null = unit.null if hasattr(unit, "null") else unit.esu.null
        for b, length in enumerate(LENGTHS):
            for t in range(seen.target_BT.shape[1]):
                kept, interest = expected(b, t, list(range(length)))
                if found.kept_BTK is not None:
                    assert [p for p in found.kept_BTK[b, t].tolist() if p >= 0] == sorted(kept)
                want = null.double() if interest is None else interest
                torch.testing.assert_close(found.interest_BTd[b, t].double(), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("limits", [None, (1, 1), (1, 500)], ids=["whole", "target by target", "blocks"])
def test_din_equals_the_activation_unit_on_concatenated_vectors(limits, monkeypatch: pytest.MonkeyPatch) -> None:
    unit, seen = perturbed(DIN(small_config(), seeded())), seen_of(LENGTHS)
    if limits:
        monkeypatch.setattr(din_module, "KEPT", limits[0])
        monkeypatch.setattr(din_module, "BLOCK", limits[1])
    of_difference = torch.randn(16, 36, generator=seeded(1)).double()
    layer = torch.cat(
        [unit.of_key - of_difference, unit.of_target + of_difference, of_difference, unit.of_product.double()]
    ).detach()

    def expected(b: int, t: int, positions: list[int]) -> tuple[list[int], Tensor | None]:
        query, total = seen.embedding_Pd[seen.target_BT[b, t]].double(), torch.zeros(16, dtype=torch.float64)
        for position in positions:
            key = with_age(unit, seen, b, [position])[0]
            hidden = torch.cat([key, query, key - query, key * query]) @ layer + unit.bias.double()
            weight = functional.prelu(hidden[None], unit.slope.double())[0] @ unit.out.double() + unit.out_bias.double()
            total += weight * key
        return positions, total if positions else None

    check(unit, seen, expected)


def test_din_has_the_same_gradients_when_activations_are_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    unit, gradients = perturbed(DIN(small_config(), seeded())), []
    for kept, block in ((1 << 26, 1 << 24), (1, 500)):
        monkeypatch.setattr(din_module, "KEPT", kept)
        monkeypatch.setattr(din_module, "BLOCK", block)
        unit.zero_grad()
        seen = replace(seen_of(LENGTHS), embedding_Pd=seen_of(LENGTHS).embedding_Pd.requires_grad_())
        unit(seen).interest_BTd.square().sum().backward()
        gradients.append([seen.embedding_Pd.grad, *(p.grad.clone() for p in unit.parameters())])
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)


def test_sim_hard_attends_to_the_newest_of_the_category_with_their_ages() -> None:
    unit, seen = perturbed(SIMHard(small_config(top_k=2), seeded())), seen_of(LENGTHS)

    def expected(b: int, t: int, positions: list[int]) -> tuple[list[int], Tensor | None]:
        category = int(seen.category_BT[b, t])
        kept = [p for p in positions if category >= 0 and int(seen.category_BL[b, p]) == category][-2:]
        query = seen.embedding_Pd[seen.target_BT[b, t]].double()
        return kept, attended(unit.esu.attention, query, with_age(unit.esu, seen, b, kept)) if kept else None

    check(unit, seen, expected)


def test_sim_soft_keeps_the_largest_learned_products() -> None:
    unit, seen = perturbed(SIMSoft(small_config(top_k=3), seeded())), seen_of(LENGTHS)

    def expected(b: int, t: int, positions: list[int]) -> tuple[list[int], Tensor | None]:
        query = seen.embedding_Pd[seen.target_BT[b, t]].double()
        relevance = [
            float((query @ unit.of_target.double()) @ (seen.embedding_Pd[seen.history_BL[b, p]].double() @ unit.of_key.double()))
            for p in positions
        ]
        # Repeats of a pair are equal but for rounding; of equals the newest are kept.
        kept = sorted(positions, key=lambda p: (round(relevance[p], 5), p))[-3:]
        return kept, attended(unit.esu.attention, query, with_age(unit.esu, seen, b, sorted(kept))) if kept else None

    check(unit, seen, expected)


def test_sim_softs_click_loss_is_the_cross_entropy_of_its_own_prediction() -> None:
    unit, seen = perturbed(SIMSoft(small_config(baseline=BaselineConfig(auxiliary_weight=0.5)), seeded())), seen_of(LENGTHS)
    losses = []
    for b, length in enumerate(LENGTHS):
        for t in torch.nonzero(seen.mask_BT[b]).flatten().tolist():
            query, pooled = seen.embedding_Pd[seen.target_BT[b, t]].double(), torch.zeros(16, dtype=torch.float64)
            for position in range(length):
                key = seen.embedding_Pd[seen.history_BL[b, position]].double()
                pooled += (query @ unit.of_target.double()) @ (key @ unit.of_key.double()) * key / length**0.5
            hidden = torch.cat([pooled, query, pooled * query]) @ unit.hidden.double() + unit.hidden_bias.double()
            probability = (hidden.relu() @ unit.click.double() + unit.click_bias.double()).sigmoid()
            losses.append(functional.binary_cross_entropy(probability, seen.label_BT[b, t].double()))
    torch.testing.assert_close(unit.train()(seen).losses["search"].double(), torch.stack(losses).mean() / 2, rtol=1e-4, atol=1e-6)
    assert not unit.eval()(seen).losses


def test_sim_softs_search_learns_from_its_own_loss_alone() -> None:
    unit, seen = SIMSoft(small_config(), seeded()).train(), seen_of(LENGTHS)
    found = unit(seen)
    found.interest_BTd.sum().backward(retain_graph=True)
    assert unit.of_key.grad is None
    found.losses["search"].backward()
    assert unit.of_key.grad.abs().sum() > 0
    assert unit.of_target.grad.abs().sum() > 0


@pytest.mark.parametrize("bits", [40, 128, 200])
def test_eta_attends_to_the_smallest_hamming_distances(bits: int) -> None:
    unit = perturbed(ETA(small_config(top_k=3, baseline=BaselineConfig(hash_bits=bits)), seeded()))
    seen = seen_of(LENGTHS)
    signature = seen.embedding_Pd @ unit.simhash.plane_db > 0

    def expected(b: int, t: int, positions: list[int]) -> tuple[list[int], Tensor | None]:
        mine = signature[seen.target_BT[b, t]]
        distance = [int((signature[seen.history_BL[b, p]] != mine).sum()) for p in positions]
        kept = sorted(positions, key=lambda p: (distance[p], -p))[:3]
        query = seen.embedding_Pd[seen.target_BT[b, t]].double()
        return kept, attended(unit.esu.attention, query, with_age(unit.esu, seen, b, sorted(kept))) if kept else None

    check(unit, seen, expected)


def test_packed_words_differ_in_as_many_bits_as_the_signs() -> None:
    sign = torch.rand(20, 100, generator=seeded()) < 0.5
    word = pack(sign)
    assert word.shape == (20, 2)
    apart = np.unpackbits((word[:, None] ^ word).view(np.uint8), axis=-1).sum(-1)
    assert np.array_equal(apart, (sign[:, None] != sign).sum(-1).numpy())


def test_planes_travel_with_the_model_and_never_learn() -> None:
    unit = SimHash(16, 64, seeded())
    assert list(unit.state_dict()) == ["plane_db"]
    assert not list(unit.parameters())
