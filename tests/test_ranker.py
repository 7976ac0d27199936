"""Channels, GSU, ESU and ranker: the algebra against float64 brute force, masks, and that everything trains."""

import math

import pytest
import torch

from seminar.channels import ChannelEncoder, encode_pairs, unit_tables
from seminar.config import FinetuneConfig
from seminar.esu import Similarity, sim_tiers
from seminar.gsu import keep_top_k
from seminar.heads import NUM_FIT, CatalogueStats, query_fit
from seminar.ranker import Ranker, rounded, serving_ranker
from seminar.retrieval.int8 import PackedKeys
from seminar.train.training import Optimisers, train_step
from tests.worlds import batch_of, seeded, small_config, vector_tables

GATES = ["constant", "target", "behaviour"]


def ranker(gate: str = "constant", **changes: object) -> Ranker:
    """A ranker away from its initialisation, so that no term is zero or the identity by accident."""
    unit = Ranker.build(small_config(gate=gate, **changes), vector_tables(), seeded())
    with torch.no_grad():
        for name, parameter in unit.named_parameters():
            if "ids" not in name and "tokens" not in name:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=seeded(len(name))))
    return unit.eval()


def paper_relevance(unit: Ranker, batch) -> torch.Tensor:
    """The paper's unmerged double sum, float64, one target and behaviour and head at a time."""
    gsu, attention = unit.gsu, unit.gsu.attention
    out = torch.full((*batch.item_BT.shape, batch.item_BL.shape[1]), math.nan, dtype=torch.float64)
    scale = gsu.gate.scale.double()

    def pair(item, query):
        p = encode_pairs(unit.channels, item[None], query[None])
        return p, p.unit_NMd[0].double(), p.present_NM[0]

    for b in range(len(batch.item_BL)):
        for t in range(int(batch.target_count_B[b])):
            target, x_t, has_t = pair(batch.item_BT[b, t], batch.query_BT[b, t])
            gate_t = gsu.gate.logits(target)[0].double()
            for position in range(int(batch.length_B[b])):
                behaviour, x_l, has_l = pair(batch.item_BL[b, position], batch.query_BL[b, position])
                gate_l = gate_t if gsu.gate.mode == "target" else gsu.gate.logits(behaviour)[0].double()
                weight_t = torch.where(has_t, gate_t.exp(), 0) / torch.where(has_t, gate_t.exp(), 0).sum().clamp_min(1e-300)
                weight_l = torch.where(has_l, gate_l.exp(), 0) / torch.where(has_l, gate_l.exp(), 0).sum().clamp_min(1e-300)
                total = 0.0
                for h in range(attention.num_heads):
                    wq, wk, bq = attention.wq[h].double(), attention.wk[h].double(), attention.bq[h].double()
                    for j in range(4):
                        key = weight_l[j] * scale[j] * x_l[j] @ gsu.transform[j].double() @ wk
                        for i in range(4):
                            query = weight_t[i] * scale[i] * x_t[i] @ gsu.transform[i].double() @ wq
                            total += float(query @ key) / math.sqrt(attention.dim)
                        total += float(bq @ key) / math.sqrt(attention.dim)
                out[b, t, position] = total
    return out


@pytest.mark.parametrize("gate", GATES)
def test_merged_and_folded_relevance_equals_the_papers_double_sum(gate: str) -> None:
    unit, batch = ranker(gate), batch_of([5, 3], vector_tables(), targets=3)
    with torch.no_grad():
        got = unit.relevance(unit.encode(batch)).double()
        expected = paper_relevance(unit, batch)
    valid = ~expected.isnan()
    assert valid.sum() == 3 * 5 + 2 * 3
    torch.testing.assert_close(got[valid], expected[valid], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("gate", GATES)
def test_probe_and_contributions_add_up_to_the_relevance(gate: str) -> None:
    unit, batch = ranker(gate), batch_of([9, 4], vector_tables())
    with torch.no_grad():
        encoded = unit.encode(batch)
        relevance = unit.relevance(encoded)
        kept = keep_top_k(relevance, batch.mask_BL, 5)
        parts = unit.contributions(encoded, kept).sum(-1)
        again = unit.kept_relevance(unit.rank(batch, encoded, kept, unit.cross(batch), unit.pooled(batch, encoded)).kept)
    expected = torch.where(kept >= 0, relevance.gather(2, kept.clamp_min(0)), 0.0)
    torch.testing.assert_close(parts, expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(torch.where(kept >= 0, again, 0.0), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("gate", GATES)
def test_every_parameter_gets_a_gradient(gate: str) -> None:
    unit = ranker(gate).train()
    unit.distillation = 0.5
    unit.loss(batch_of([30, 12, 0], vector_tables()))["total"].backward()
    for name, parameter in unit.named_parameters():
        assert parameter.grad is not None, name
        grad = parameter.grad.to_dense()
        assert torch.isfinite(grad).all(), name
        assert grad.abs().sum() > 0, name


@pytest.mark.parametrize("gate", GATES)
def test_state_dict_round_trip_gives_equal_scores(gate: str) -> None:
    first, batch = ranker(gate), batch_of([30, 12, 0], vector_tables())
    second = Ranker.build(small_config(gate=gate), vector_tables(), seeded(99)).eval()
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.score(batch), second.score(batch))


@pytest.mark.parametrize("gate", GATES)
def test_precomputed_tables_give_the_encoders_scores(gate: str) -> None:
    unit, batch = ranker(gate), batch_of([30, 12, 0], vector_tables())
    stats = CatalogueStats.of(vector_tables())
    served = serving_ranker(unit.config, unit_tables(unit.channels), stats, unit.state_dict())
    torch.testing.assert_close(served.score(batch), unit.score(batch), rtol=0, atol=1e-6)


@pytest.mark.parametrize("gate", GATES)
def test_padding_and_batch_mates_change_no_score(gate: str) -> None:
    unit = ranker(gate)
    together = unit.score(batch_of([30, 12, 0], vector_tables()))
    for row in range(3):
        batch = batch_of([30, 12, 0], vector_tables())
        length, count = int(batch.length_B[row]), int(batch.target_count_B[row])
        alone = type(batch)(
            **{
                name: (value[row : row + 1, : max(length, 1)] if name.endswith("BL") else value[row : row + 1, :count])
                if value.dim() == 2
                else value[row : row + 1]
                for name, value in vars(batch).items()
            }
        )
        torch.testing.assert_close(unit.score(alone)[0], together[row, :count], rtol=0, atol=1e-5)


def test_candidates_together_equal_candidates_one_by_one() -> None:
    unit, batch = ranker(), batch_of([20], vector_tables(), targets=7)
    together = unit.score(batch)[0]
    for t in range(7):
        one = type(batch)(
            **{k: v[:, t : t + 1] if k.endswith("BT") else v for k, v in vars(batch).items() if k != "target_count_B"},
            target_count_B=torch.tensor([1]),
        )
        torch.testing.assert_close(unit.score(one)[0, 0], together[t], rtol=0, atol=1e-5)


def test_user_without_history_gets_the_null_interest() -> None:
    unit, batch = ranker(), batch_of([0], vector_tables())
    with torch.no_grad():
        interest = unit(batch).interest
    assert torch.equal(interest.interest_BTd, unit.esu.null.expand_as(interest.interest_BTd))
    assert not interest.attention_BTHK.any()
    assert torch.isfinite(unit.score(batch)).all()


def test_items_without_any_channel_never_give_nan() -> None:
    tables = vector_tables()
    bare = type(tables)(**{**vars(tables), "text_row": tables.text_row * 0 - 1, "image_row": tables.image_row * 0 - 1})
    unit = Ranker.build(small_config(), bare, seeded()).train()
    losses = unit.loss(batch_of([20, 3], bare))
    losses["total"].backward()
    assert torch.isfinite(losses["total"])
    assert all(torch.isfinite(p.grad.to_dense()).all() for p in unit.parameters() if p.grad is not None)


def test_an_item_shown_as_new_has_neither_id_nor_popularity() -> None:
    """Shown as new, an item has the score of one that has neither; elsewhere, and outside training, both count."""
    unit, batch = ranker().train(), batch_of([20, 5], vector_tables())
    assert isinstance(unit.channels, ChannelEncoder)

    def score() -> torch.Tensor:
        with torch.no_grad():
            return unit(batch).logit_BTS

    known = score()
    unit.channels.show_as_new = 1.0
    as_new = score()
    with torch.no_grad():
        unit.channels.seen.zero_()
        unit.heads.train_count.zero_()
        unit.heads.week_sum.zero_()
    unit.channels.show_as_new = 0.0
    torch.testing.assert_close(as_new, score())
    assert not torch.allclose(as_new, known)
    unit.channels.show_as_new = 0.5
    encoded = unit.encode(batch)
    assert encoded.new_BT is not None
    assert 0 < int(encoded.new_BT.sum()) < encoded.new_BT.numel()
    assert unit.eval().encode(batch).new_BT is None


@pytest.mark.parametrize("gate", ["constant", "behaviour"])
def test_taste_pools_the_newest_behaviours_however_it_is_summed(gate: str) -> None:
    unit, batch = ranker(gate, taste=7), batch_of([20], vector_tables())
    with torch.no_grad():
        encoded = unit.encode(batch)
        pooled = unit.pooled(batch, encoded)
        weight = unit.taste.weights(batch.hours_BL, batch.mask_BL)
        pairs = encode_pairs(unit.channels, batch.item_BL[0, -7:], batch.query_BL[0, -7:])
        apart = unit.pooled_of_pairs(unit.gsu.gated(pairs), weight[0, :, -7:])
        key = encoded.merged_Pd[encoded.history_BL[0]].double()
    assert not weight[0, :, :-7].any()
    decayed = torch.exp(-batch.hours_BL[0, -7:].double() / 1344)
    expected = torch.stack([key[-7:].mean(0), (decayed[:, None] * key[-7:]).sum(0) / decayed.sum()])
    torch.testing.assert_close(pooled[0].double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(apart, pooled[0], rtol=1e-5, atol=1e-6)


def test_taste_knows_what_the_kept_behaviours_do_not() -> None:
    """Of two users alike in what resembles the target, the pools still tell them apart; without taste nothing does."""
    for taste, differs in ((7, True), (0, False)):
        unit, batch = ranker(taste=taste, top_k=2, recent=0, cross_features=False), batch_of([12], vector_tables())
        with torch.no_grad():
            encoded = unit.encode(batch)
            kept = keep_top_k(unit.relevance(encoded), batch.mask_BL, 2)
            pooled = unit.pooled(batch, encoded)
            cross = unit.cross(batch)
            one, other = (unit.rank(batch, encoded, kept, cross, pools).logit_BTS for pools in (pooled, 1 + 2 * pooled))
        assert bool((one != other).any()) is differs


def test_unseen_items_have_no_id_and_known_items_do() -> None:
    unit = ranker()
    before = unit.channels.unit_items(torch.tensor([38, 1]))[0].detach()
    with torch.no_grad():
        unit.channels.ids.weight.add_(1.0)
    after = unit.channels.unit_items(torch.tensor([38, 1]))[0].detach()
    assert torch.equal(before[0], after[0])
    assert not torch.equal(before[1], after[1])


def test_rounded_keys_are_those_that_are_served() -> None:
    key = torch.randn(300, 16, generator=seeded())
    packed = PackedKeys.of(key.numpy())
    served = packed.levels.centre_d + packed.levels.step * packed.level_LD()
    torch.testing.assert_close(rounded(key), torch.from_numpy(served).float(), rtol=0, atol=1e-5)
    assert (rounded(key) != key).any()


def test_quantised_search_is_for_training_alone() -> None:
    unit, batch = ranker(), batch_of([30], vector_tables())
    plain = unit.score(batch)
    unit.quantised_search = True
    assert torch.equal(unit.score(batch), plain)
    assert torch.isfinite(unit.train().loss(batch)["total"])


def test_hidden_channels_are_missing_in_training_alone_and_ids_stay() -> None:
    unit = ranker()
    items, queries = torch.arange(20), torch.zeros(20, dtype=torch.int64)
    present = encode_pairs(unit.channels, items, queries).present_NM
    unit.channels.hide_channels = 0.5
    assert torch.equal(encode_pairs(unit.channels, items, queries).present_NM, present)
    unit.train()
    shown = encode_pairs(unit.channels, items, queries).present_NM
    assert not (shown & ~present).any()
    assert torch.equal(shown[:, 3], present[:, 3])
    assert 0 < int(shown[:, :3].sum()) < int(present[:, :3].sum())


def test_top_k_never_returns_padding() -> None:
    relevance = torch.randn(2, 3, 6, generator=seeded()) - 50
    relevance[1, :, 2:] = 100.0
    mask = torch.tensor([[True] * 6, [True, True] + [False] * 4])
    kept = keep_top_k(relevance, mask, 4)
    assert (kept[0] >= 0).all()
    assert set(kept[1].flatten().tolist()) == {-1, 0, 1}


def test_of_equal_behaviours_the_newest_are_kept_whatever_the_padding() -> None:
    levels = torch.randint(0, 8, (2, 3, 200), generator=seeded()).float()
    for k in (1, 7, 50, 199, 200):
        kept = keep_top_k(levels, torch.ones(2, 200, dtype=torch.bool), k)
        padded = torch.nn.functional.pad(levels, (0, 300), value=99.0)
        mask = torch.arange(500).expand(2, -1) < 200
        assert torch.equal(keep_top_k(padded, mask, k), kept)
        for row, chosen in zip(levels.flatten(0, 1), kept.flatten(0, 1), strict=True):
            expected = sorted(range(200), key=lambda p: (float(row[p]), p))[-k:]
            assert sorted(chosen.tolist()) == sorted(expected)


def test_padding_targets_and_behaviours_change_no_loss() -> None:
    unit, batch = ranker(), batch_of([30, 12, 0], vector_tables())
    unit.distillation = 0.5
    sides = {"BL": 9, "BT": 20}
    wider = {
        name: torch.nn.functional.pad(value, (0, sides[name[-2:]])) if name[-2:] in sides else value
        for name, value in vars(batch).items()
    }
    narrow, wide = unit.loss(batch), unit.loss(type(batch)(**wider))
    assert float(narrow["distillation"]) > 0
    for name in narrow:
        torch.testing.assert_close(wide[name], narrow[name], rtol=1e-4, atol=1e-6, msg=name)


def test_a_hundred_candidates_cost_no_more_calls_than_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The history is encoded once a request and targets are scored together: the number of calls must not grow with them."""
    unit, calls = ranker(), {"encode": 0, "fold": 0}
    for owner, name in ((unit.channels, "columns"), (unit.gsu, "fold"), (unit.esu.attention, "fold")):
        plain = getattr(owner, name)

        def counted(*args: torch.Tensor, plain=plain, name=name) -> object:
            calls["fold" if name == "fold" else "encode"] += 1
            return plain(*args)

        monkeypatch.setattr(owner, name, counted)
    unit.score(batch_of([20], vector_tables(), targets=1))
    one = dict(calls)
    unit.score(batch_of([20], vector_tables(), targets=30))
    assert {name: calls[name] - one[name] for name in calls} == one == {"encode": 1, "fold": 2}


def test_a_frozen_psu_stays_and_the_rest_learns() -> None:
    unit = Ranker.build(small_config(freeze_psu=True), vector_tables(), seeded()).train()
    config = FinetuneConfig(lanes=1, steps=5, warmup_steps=0)
    optimisers, before = Optimisers(unit, config), unit.channels.fingerprint()
    moving = {name: p.detach().clone() for name, p in unit.named_parameters() if p.requires_grad}
    for step in range(3):
        train_step(unit, {0: batch_of([30, 12], vector_tables(), seed=step)}, optimisers, step=step, config=config)
    assert unit.channels.fingerprint() == before
    assert not any(name.startswith("channels.") for name in moving)
    assert not torch.equal(unit.gsu.transform, moving["gsu.transform"])


def test_sim_tiers_count_what_a_histogram_counts() -> None:
    g = seeded(4)
    similarity = torch.rand(1, 2, 9, 3, generator=g) * 2 - 1
    similarity[0, 0, 0] = 1.0
    shared, mask = torch.rand(1, 2, 9, 3, generator=g) < 0.8, torch.rand(1, 2, 9, generator=g) < 0.8
    got = sim_tiers(Similarity(similarity, shared & mask[..., None]), 8).expm1().reshape(1, 2, 3, 8)
    for t in range(2):
        for m in range(3):
            values = similarity[0, t, :, m][shared[0, t, :, m] & mask[0, t]]
            torch.testing.assert_close(got[0, t, m], torch.histc(values, 8, -1, 1))


def test_trained_ranker_learns_repeat_purchases_from_attention_alone() -> None:
    """Planted: a target is positive exactly when its item is in the history. Cross features are zero, so attention must do it."""
    tables = vector_tables()
    unit = Ranker.build(small_config(dropout=0.0), tables, seeded()).train()
    unit.cross = lambda batch: torch.zeros(*batch.item_BT.shape, 11)  # type: ignore[method-assign]
    sparse = [unit.channels.ids.weight, unit.channels.tokens.weight]
    dense = [p for p in unit.parameters() if all(p is not s for s in sparse)]
    optimisers = [torch.optim.Adam(dense, lr=0.01), torch.optim.Adagrad(sparse, lr=0.1)]

    def planted(seed: int):
        batch = batch_of([6] * 32, tables, targets=8, seed=seed)
        label = (batch.item_BT[:, :, None] == batch.item_BL[:, None]).any(-1).float()
        return type(batch)(**{**vars(batch), "label_BT": label})

    for step in range(200):
        for optimiser in optimisers:
            optimiser.zero_grad()
        unit.loss(planted(step % 20))["total"].backward()
        for optimiser in optimisers:
            optimiser.step()
    batch = planted(1000)
    scores = unit.eval().score(batch)
    positive, negative = scores[batch.mask_BT & (batch.label_BT > 0)], scores[batch.mask_BT & (batch.label_BT == 0)]
    assert (positive[:, None] > negative).float().mean() > 0.9


# --- whether an item answers the query


def test_query_fit_is_the_cosine_of_the_query_with_each_part_of_the_item() -> None:
    unit, batch = ranker(query_fit=True), batch_of([12, 5, 0], vector_tables())
    encoded = unit.encode(batch)
    got = query_fit(encoded)
    assert got.shape == (*batch.item_BT.shape, NUM_FIT)
    for row, targets in enumerate(batch.target_count_B.tolist()):
        for t in range(targets):
            pair = encode_pairs(unit.channels, batch.item_BT[row, t][None], batch.query_BT[row, t][None])
            vector, present = pair.unit_NMd[0].detach().double(), pair.present_NM[0]
            expected = [float(vector[0] @ vector[m]) if present[0] and present[m] else 0.0 for m in (1, 2, 3)]
            assert got[row, t].tolist() == pytest.approx(expected, abs=1e-6)
    assert got.any()


def test_without_query_fit_a_model_has_the_width_it_had() -> None:
    widths = [ranker(query_fit=flag).state_dict()["heads.head.0.weight"].shape[1] for flag in (False, True)]
    assert widths[1] - widths[0] == NUM_FIT
