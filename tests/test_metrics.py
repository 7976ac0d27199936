"""Metrics and intervals against scikit-learn, torchmetrics, ir-measures, brute force and answers known by hand."""

import itertools
import math

import ir_measures
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import log_loss as sklearn_log_loss
from sklearn.metrics import roc_auc_score
from torchmetrics.functional.retrieval import retrieval_normalized_dcg, retrieval_reciprocal_rank

from seminar.errors import InfeasibleMetrics
from seminar.evaluate.intervals import interval, ratio_of_totals, replicate, run_shares
from seminar.evaluate.metrics import auc, check_feasible, gauc, log_loss, rank_counts, ranking_metrics, weighted_auc

FEW_LEVELS = st.lists(st.integers(0, 6), min_size=2, max_size=60)


def metrics_of(scores: list[float], positive: int = 0) -> dict[str, float]:
    above, tied = rank_counts(np.array(scores, float), positive)
    counts = (np.array([x]) for x in (above, tied, len(scores) - 1))
    return {name: float(value[0]) for name, value in ranking_metrics(*counts).items()}


def by_all_orders(scores: list[int], positive: int) -> dict[str, float]:
    """Expected metrics over every order of equal candidates, one order at a time."""
    totals: dict[str, float] = {}
    orders = list(itertools.permutations(range(len(scores))))
    for order in orders:
        rank = sorted(order, key=lambda i: -scores[i]).index(positive) + 1
        found = {"MRR": 1 / rank, "AUC": (len(scores) - rank) / (len(scores) - 1)}
        for k in (1, 5, 10, 50):
            found |= {f"HIT@{k}": float(rank <= k), f"NDCG@{k}": (rank <= k) / math.log2(rank + 1)}
        for name, value in found.items():
            totals[name] = totals.get(name, 0) + value / len(orders)
    return totals


def test_rank_three_gives_the_figures_of_rank_three() -> None:
    metrics = metrics_of([0.5, 0.9, 0.7, 0.1])
    assert metrics["HIT@1"] == 0
    assert metrics["HIT@5"] == 1
    assert metrics["NDCG@5"] == pytest.approx(0.5)
    assert metrics["MRR"] == pytest.approx(1 / 3)
    assert metrics["AUC"] == pytest.approx(1 / 3)


@given(st.lists(st.integers(0, 3), min_size=2, max_size=6), st.integers(0, 5))
def test_ties_give_the_expectation_over_all_orders(scores: list[int], positive: int) -> None:
    positive %= len(scores)
    assert metrics_of(scores, positive) == pytest.approx(by_all_orders(scores, positive))


def test_constant_scorer_gets_chance_ndcg() -> None:
    metrics = metrics_of([0.0] * 100)
    assert metrics["AUC"] == 0.5
    assert metrics["HIT@10"] == pytest.approx(0.1)
    assert metrics["NDCG@10"] == pytest.approx(sum(1 / math.log2(r + 1) for r in range(1, 11)) / 100)
    assert metrics["MRR"] == pytest.approx(sum(1 / r for r in range(1, 101)) / 100)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=80), st.floats(0, 3))
def test_a_better_score_never_lowers_a_metric(scores: list[float], lift: float) -> None:
    before, after = metrics_of(scores), metrics_of([scores[0] + lift, *scores[1:]])
    assert all(after[name] >= before[name] - 1e-12 for name in before)


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=80))
def test_metrics_of_any_scores_are_feasible(scores: list[float]) -> None:
    check_feasible(metrics_of(scores))


def test_ranking_metrics_agree_with_torchmetrics_and_ir_measures() -> None:
    rng = np.random.default_rng(0)
    for size in (2, 7, 100):
        scores = rng.permutation(size).astype(float)
        positive = int(rng.integers(size))
        ours = metrics_of(scores.tolist(), positive)
        target = torch.zeros(size, dtype=torch.long)
        target[positive] = 1
        predicted = torch.from_numpy(scores)
        assert ours["MRR"] == pytest.approx(float(retrieval_reciprocal_rank(predicted, target)), abs=1e-6)
        qrels = [ir_measures.Qrel("q", str(positive), 1)]
        run = [ir_measures.ScoredDoc("q", str(i), float(s)) for i, s in enumerate(scores)]
        for k in (1, 5, 10, 50):
            assert ours[f"NDCG@{k}"] == pytest.approx(
                float(retrieval_normalized_dcg(predicted, target, top_k=min(k, size))), abs=1e-6
            )
            oracle = ir_measures.calc_aggregate([ir_measures.nDCG @ k, ir_measures.Success @ k], qrels, run)
            assert ours[f"NDCG@{k}"] == pytest.approx(oracle[ir_measures.nDCG @ k], abs=1e-6)
            assert ours[f"HIT@{k}"] == oracle[ir_measures.Success @ k]


def test_reciprocal_rank_stays_exact_in_a_large_catalogue() -> None:
    counts = (np.array([x]) for x in (3_000_000, 2_000, 80_000_000))
    expected = math.fsum(1 / r for r in range(3_000_001, 3_002_002)) / 2001
    assert ranking_metrics(*counts)["MRR"][0] == pytest.approx(expected, rel=1e-6)


def test_nan_scores_are_refused_and_not_ranked_first() -> None:
    with pytest.raises(InfeasibleMetrics, match="1 NaN of 3"):
        rank_counts(np.array([np.nan, 0.1, 0.2]), 0)


@given(FEW_LEVELS, st.data())
def test_auc_with_ties_is_that_of_scikit_learn(scores: list[int], data: st.DataObject) -> None:
    label = np.array(data.draw(st.lists(st.integers(0, 1), min_size=len(scores), max_size=len(scores))))
    ours = auc(np.array(scores), label)
    if 0 < label.sum() < len(label):
        assert ours == pytest.approx(roc_auc_score(label, scores))
    else:
        assert math.isnan(ours)


def test_weighted_auc_equals_auc_of_repeated_rows() -> None:
    rng = np.random.default_rng(1)
    score, label, weight = rng.integers(0, 9, 50), rng.integers(0, 2, 50), rng.integers(0, 4, 50)
    repeated = auc(np.repeat(score, weight), np.repeat(label, weight))
    assert weighted_auc(score, label)(weight[None])[0] == pytest.approx(repeated)


def test_gauc_is_the_impression_weighted_mean_and_skips_groups_of_one_class() -> None:
    rng = np.random.default_rng(2)
    score, label, group = rng.integers(0, 5, 400), rng.integers(0, 2, 400), rng.integers(0, 40, 400)
    label[group == 3] = 1
    label[group == 8] = 0
    total = weight = skipped = 0.0
    for g in range(40):
        own = group == g
        if 0 < label[own].sum() < own.sum():
            total, weight = total + own.sum() * roc_auc_score(label[own], score[own]), weight + own.sum()
        elif own.any():
            skipped += 1
    assert gauc(score, label, group) == (pytest.approx(total / weight), skipped)
    assert skipped >= 2


def test_log_loss_is_that_of_scikit_learn_and_does_not_overflow() -> None:
    rng = np.random.default_rng(3)
    logit, label = rng.normal(size=200) * 4, rng.integers(0, 2, 200)
    assert log_loss(logit, label).mean() == pytest.approx(sklearn_log_loss(label, 1 / (1 + np.exp(-logit))))
    assert log_loss(np.array([1000.0, -1000.0]), np.array([0, 1])).tolist() == [1000.0, 1000.0]


@pytest.mark.parametrize(
    ("metrics", "sentence"),
    [
        ({"HIT@1": 0.3, "NDCG@1": 0.2}, "NDCG@1"),
        ({"HIT@5": 0.3, "NDCG@5": 0.31}, "NDCG@5"),
        ({"HIT@1": 0.1, "HIT@5": 0.5, "NDCG@5": 0.1 + 0.4 / math.log2(6) - 0.01}, "NDCG@5"),
        ({"HIT@1": 0.1, "HIT@5": 0.5, "NDCG@5": 0.1 + 0.4 / math.log2(3) + 0.01}, "NDCG@5"),
        ({"HIT@5": 0.5, "HIT@10": 0.4}, "at least HIT@5"),
        ({"HIT@1": 0.5, "MRR": 0.49}, "MRR"),
        ({"HIT@1": 0.5, "MRR": 0.76}, "MRR"),
        ({"AUC": 1.2}, "AUC"),
    ],
)
def test_impossible_figures_are_refused_with_the_reason(metrics: dict[str, float], sentence: str) -> None:
    with pytest.raises(InfeasibleMetrics, match=sentence):
        check_feasible(metrics)


def test_published_ndcg_above_hit_is_caught() -> None:
    # The kind of row the KuaiSAR table of the paper holds: NDCG@5 above HIT@5.
    with pytest.raises(InfeasibleMetrics, match="NDCG@5"):
        check_feasible({"HIT@1": 0.25, "HIT@5": 0.52, "NDCG@5": 0.55}, "a published row")


def test_bootstrap_interval_of_a_mean_matches_the_normal_one() -> None:
    rng = np.random.default_rng(4)
    value = rng.normal(size=(4000, 1))
    drawn = replicate([ratio_of_totals(value, np.ones_like(value))], 4000, np.random.default_rng(5), 2000)[0]
    low, high = interval(drawn)[:, 0]
    half = 1.96 / math.sqrt(4000)
    assert low == pytest.approx(value.mean() - half, abs=0.1 * half)
    assert high == pytest.approx(value.mean() + half, abs=0.1 * half)


def test_bootstrap_resamples_users_and_not_rows() -> None:
    # One user with 300 equal rows, 99 with one row each: rows are not independent, so the interval must be wide.
    total, count = np.ones((100, 1)), np.ones((100, 1))
    total[0], count[0] = 0, 300
    low, high = interval(replicate([ratio_of_totals(total, count)], 100, np.random.default_rng(6))[0])[:, 0]
    assert high == 1.0, "a third of the draws leave the large user out"
    assert low < 0.2


def test_differences_of_two_statistics_are_paired() -> None:
    value = np.random.default_rng(7).normal(size=(500, 1))
    one, other = (ratio_of_totals(v, np.ones_like(v)) for v in (value, value + 0.01))
    first, second = replicate([one, other], 500, np.random.default_rng(8))
    assert interval(second - first)[:, 0] == pytest.approx([0.01, 0.01])


def test_block_size_does_not_change_the_number_of_replicates(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seminar.evaluate.intervals._BLOCK_CELLS", 70)
    statistic = ratio_of_totals(np.ones((10, 2)), np.ones((10, 2)))
    assert replicate([statistic], 10, np.random.default_rng(9), 25)[0].shape == (25, 2)


def test_interval_leaves_out_replicates_without_a_value() -> None:
    assert interval(np.array([[1.0, np.nan], [np.nan, np.nan], [1.0, np.nan]])).tolist()[0] == [
        1.0,
        pytest.approx(np.nan, nan_ok=True),
    ]


def test_run_shares_draw_runs_with_replacement() -> None:
    share = run_shares(3, 2000, np.random.default_rng(10))
    assert share.sum(1) == pytest.approx(np.ones(2000))
    # The mean of 3 values drawn from 3 has (S - 1) / S of their sample variance over S: here values -1, 0, 1.
    assert (share @ np.array([-1.0, 0.0, 1.0])).var() == pytest.approx(2 / 9, rel=0.1)
