"""Held-out pairs, candidates, impressions, floors, and rows that do not depend on how the work was spread."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from seminar.artifacts import Artifact
from seminar.batching import Batch, Request
from seminar.config import EvaluateConfig
from seminar.errors import InfeasibleMetrics
from seminar.evaluate.evaluation import FULL, SAMPLED, Rows, evaluate_histories, score_requests
from seminar.evaluate.metrics import ranking_metrics
from seminar.evaluate.negatives import ItemPool, draw_negatives
from seminar.evaluate.protocol import (
    IN_HISTORY,
    POPULARITY,
    HeldOut,
    floors,
    held_out_pairs,
    impressions_request,
    in_user_sample,
    ranking_request,
)
from seminar.schema import CTR, PSR
from seminar.sequences import Exposures, Histories, read_histories

CONFIG = EvaluateConfig(num_negatives=5, full_ranking_users=0)


@pytest.fixture(scope="module")
def shards(tiny_pairs: Artifact) -> list[Histories]:
    return [read_histories(pq.read_table(path)) for path in sorted((tiny_pairs.path / "shards").glob("*.parquet"))]


@pytest.fixture(scope="module")
def whole(tiny_pairs: Artifact) -> Histories:
    shards = [pq.read_table(path) for path in sorted((tiny_pairs.path / "shards").glob("*.parquet"))]
    return read_histories(pa.concat_tables(shards))


@pytest.fixture(scope="module")
def pool(tiny_pairs: Artifact) -> ItemPool:
    return ItemPool.of(pq.read_table(tiny_pairs.file("items.parquet")))


def one_user(item: list[int], query: list[int], request: list[int], val_end: int, shown: dict[str, list[int]]) -> Histories:
    """A single user; train_end is val_end, times are hours since the epoch."""
    column = {name: np.array(values, np.int32) for name, values in shown.items()}
    return Histories(
        offsets=np.array([0, len(item)]),
        user_id=["u"],
        user_attributes=[[]],
        item=np.array(item, np.int32),
        query=np.array(query, np.int32),
        origin=np.where(np.array(query) >= 0, 1, 0).astype(np.int8),
        time_ms=np.array(request, np.int64) * 3_600_000,
        request=np.array(request, np.int32),
        train_end=np.array([val_end]),
        val_end=np.array([val_end]),
        exposures=Exposures(np.array([0, len(column["item"])]), column["item"], column["query"], column["request"]),
    )


NOTHING_SHOWN: dict[str, list[int]] = {"item": [], "query": [], "request": []}


def ranked(histories: Histories, pool: ItemPool, config: EvaluateConfig) -> list[tuple[HeldOut, Request, int]]:
    """Held-out pairs with their candidates and the positive's place; some users of the tiny log own a whole category."""
    drawn = [(held, ranking_request(histories, pool, held, config)) for held in held_out_pairs(histories, config)]
    kept = [(held, *request) for held, request in drawn if request is not None]
    assert 2 * len(kept) > len(drawn)
    return kept


def big_pool(num_items: int = 2000, num_categories: int = 3) -> ItemPool:
    return ItemPool(np.arange(num_items, dtype=np.int32) % num_categories, np.arange(num_items))


def test_held_out_pairs_come_from_the_split_and_see_only_what_was_before_their_request(whole: Histories) -> None:
    for split in ("test", "validation"):
        pairs = held_out_pairs(whole, CONFIG.model_copy(update={"split": split}))
        assert len({p.row for p in pairs}) == len(pairs) > 5
        for p in pairs:
            low, high = (
                (whole.val_end[p.row], whole.lengths[p.row])
                if split == "test"
                else (whole.train_end[p.row], whole.val_end[p.row])
            )
            assert low <= p.position < high
            request = whole.request[whole.span(p.row)]
            assert p.start <= p.position < p.end
            assert (request[p.start : p.end] == request[p.position]).all()
            assert p.start == 0 or request[p.start - 1] < request[p.position]


def test_every_held_out_pair_is_evaluated_when_asked(whole: Histories) -> None:
    pairs = held_out_pairs(whole, CONFIG.model_copy(update={"one_per_user": False}))
    assert Counter(p.row for p in pairs) == {r: n for r, n in enumerate(whole.lengths - whole.val_end) if n}


def test_every_candidate_carries_the_query_of_the_positive(whole: Histories, pool: ItemPool) -> None:
    tasks = set()
    for held, request, place in ranked(whole, pool, CONFIG):
        position = whole.offsets[held.row] + held.position
        assert set(request.query_T) == {whole.query[position]}
        assert set(request.task_T) == {PSR if whole.query[position] >= 0 else CTR}
        assert request.item_T[place] == whole.item[position]
        assert request.label_T.tolist() == [float(i == place) for i in range(len(request.item_T))]
        assert request.end == held.start
        assert request.time_ms == whole.time_ms[whole.offsets[held.row] + held.start]
        tasks |= set(request.task_T)
    assert tasks == {CTR, PSR}


@pytest.mark.parametrize("negatives", ["same_category", "uniform", "popularity"])
@pytest.mark.parametrize("exclude", ["history", "request"])
def test_negatives_are_distinct_and_outside_what_is_excluded(
    whole: Histories, pool: ItemPool, negatives: str, exclude: str
) -> None:
    config = CONFIG.model_copy(update={"negatives": negatives, "exclude": exclude})
    bought_before = 0
    for held, request, place in ranked(whole, pool, config):
        drawn = np.delete(request.item_T, place)
        own = whole.item[whole.span(held.row)]
        assert len(np.unique(drawn)) == len(drawn)
        assert not np.isin(drawn, own[held.start : held.end]).any()
        bought_before += np.isin(drawn, own).sum()
        if negatives == "same_category":
            assert (pool.category_index[drawn] == pool.category_index[request.item_T[place]]).all()
        if negatives == "popularity":
            assert (pool.train_count[drawn] > 0).all()
    assert (bought_before == 0) == (exclude == "history")


def test_a_small_category_gives_all_it_has_and_an_empty_one_is_skipped() -> None:
    pool = ItemPool(np.array([0, 0, 0, 0, 1, -1, -1], np.int32), np.ones(7, np.int64))
    rng = np.random.default_rng(0)
    config = EvaluateConfig(num_negatives=99)
    assert sorted(draw_negatives(pool, config, 0, np.array([0, 2]), rng)) == [1, 3]
    assert len(draw_negatives(pool, config, 4, np.array([4]), rng)) == 0, "alone in its category"
    assert len(draw_negatives(pool, config, 5, np.array([5]), rng)) == 0, "no category is not a category"
    history = one_user([0, 4], [-1, -1], [0, 1], 1, NOTHING_SHOWN)
    rows = evaluate_histories(history, pool, floors(pool), config)
    assert len(rows.ranked) == 0
    assert rows.skipped == {"pairs without a same_category negative": 1}


@pytest.mark.parametrize("negatives", ["same_category", "uniform"])
def test_unweighted_negatives_are_drawn_evenly(negatives: str) -> None:
    pool, config = big_pool(90, 3), EvaluateConfig(num_negatives=2, negatives=negatives)
    rng = np.random.default_rng(1)
    excluded = np.array([0, 3, 5])
    drawn = np.concatenate([draw_negatives(pool, config, 0, excluded, rng) for _ in range(3000)])
    counts = np.bincount(drawn, minlength=90)
    allowed = np.setdiff1d(np.arange(0, 90, 3) if negatives == "same_category" else np.arange(90), excluded)
    assert counts.sum() == counts[allowed].sum() == 6000
    expected = 6000 / len(allowed)
    assert ((counts[allowed] - expected) ** 2 / expected).sum() < 1.6 * len(allowed)


def test_popularity_negatives_follow_weighted_sampling_without_replacement() -> None:
    pool = ItemPool(np.zeros(4, np.int32), np.array([1, 2, 3, 0]))
    config = EvaluateConfig(num_negatives=2, negatives="popularity")
    rng = np.random.default_rng(2)
    pairs = Counter(tuple(sorted(draw_negatives(pool, config, 3, np.array([3]), rng).tolist())) for _ in range(5000))
    # P{0,1} = 1/6 * 2/5 + 2/6 * 1/4, and so on.
    expected = {
        (0, 1): 1 / 6 * 2 / 5 + 2 / 6 * 1 / 4,
        (0, 2): 1 / 6 * 3 / 5 + 3 / 6 * 1 / 3,
        (1, 2): 2 / 6 * 3 / 4 + 3 / 6 * 2 / 3,
    }
    for pair, chance in expected.items():
        assert pairs[pair] / 5000 == pytest.approx(chance, abs=0.025)


def test_rejection_and_the_exact_set_draw_alike() -> None:
    # 2000 items take the rejection path, in which an excluded half must be refused; 5 of 1000 left take the exact one.
    pool, config = big_pool(2000, 1), EvaluateConfig(num_negatives=20, negatives="uniform")
    rng = np.random.default_rng(3)
    drawn = draw_negatives(pool, config, 0, np.arange(0, 2000, 2), rng)
    assert len(set(drawn)) == 20
    assert (drawn % 2 == 1).all()
    assert sorted(draw_negatives(pool, config, 0, np.arange(1995), rng)) == [1995, 1996, 1997, 1998, 1999]


def test_places_of_the_positive_are_uniform() -> None:
    history, pool = one_user([7, 3], [-1, -1], [0, 1], 1, NOTHING_SHOWN), big_pool()
    held = held_out_pairs(history, CONFIG)[0]
    places = Counter(ranking_request(history, pool, held, CONFIG.model_copy(update={"seed": s}))[1] for s in range(1200))
    assert min(places[i] for i in range(6)) > 140


def test_impressions_keep_their_queries_and_taken_beats_shown() -> None:
    shown = {"item": [5, 9, 9, 2, 8], "query": [1, 1, 1, -1, 1], "request": [1, 1, 1, 1, 0]}
    history = one_user([4, 9, 5, 5], [1, 1, -1, -1], [0, 1, 1, 1], 1, shown)
    request = impressions_request(history, HeldOut(0, 0, 1, 1, 4))
    rows = {
        (q, i): label
        for q, i, label in zip(request.query_T.tolist(), request.item_T.tolist(), request.label_T.tolist(), strict=True)
    }
    assert rows == {(1, 9): 1.0, (-1, 5): 1.0, (1, 5): 0.0, (-1, 2): 0.0}
    assert len(request.item_T) == 4, "repeats of a query and item count once"
    assert request.end == 1


def test_floors_rank_by_popularity_and_by_the_visible_history_first() -> None:
    pool = ItemPool(np.zeros(5, np.int32), np.array([50, 40, 3, 2, 1]))
    history = one_user([3, 1, 2], [-1, -1, -1], [0, 1, 2], 2, NOTHING_SHOWN)
    request = Request(0, 1, 0, np.arange(5), np.full(5, -1), np.zeros(5, np.float32), np.zeros(5, np.int64))
    order = {name: np.argsort(-score_requests(history, [request], score, 100)[0]) for name, score in floors(pool).items()}
    assert order[POPULARITY].tolist() == [0, 1, 2, 3, 4]
    assert order[IN_HISTORY].tolist() == [3, 0, 1, 2, 4], "item 1 and 2 lie after the request's moment"


def test_floors_do_not_find_padding_in_a_history() -> None:
    pool = ItemPool(np.zeros(3, np.int32), np.array([5, 6, 7]))
    history = one_user([1, 1, 1], [-1, -1, -1], [0, 1, 2], 2, NOTHING_SHOWN)
    requests = [replace(_all_items(3), end=end) for end in (0, 3)]
    score = floors(pool)[IN_HISTORY]
    short, long = score_requests(history, requests, score, 100)
    assert short.max() < 1, "padding is item 0 and must not count"
    assert (long >= 1).tolist() == [False, True, False]


def _all_items(num_items: int) -> Request:
    return Request(
        0, 0, 0, np.arange(num_items), np.full(num_items, -1), np.zeros(num_items, np.float32), np.zeros(num_items, np.int64)
    )


def by_item(batch: Batch) -> torch.Tensor:
    """A scorer with distinct scores and an opinion on the history."""
    seen = torch.stack([torch.isin(t, h[m]) for t, h, m in zip(batch.item_BT, batch.item_BL, batch.mask_BL, strict=True)])
    return torch.sin(batch.item_BT.double() * 12.9) + seen + batch.task_BT


def test_rows_do_not_depend_on_shards_parts_or_order(shards: list[Histories], whole: Histories, pool: ItemPool) -> None:
    scorers = {"toy": by_item, **floors(pool)}
    together = evaluate_histories(whole, pool, scorers, CONFIG, full_share=0.5)
    parts = [
        evaluate_histories(shard, pool, scorers, CONFIG, 0.5, np.arange(part, len(shard), 3))
        for shard in reversed(shards)
        for part in range(3)
    ]
    apart = Rows.concat(parts)
    assert apart.ranked.equals(together.ranked)
    assert apart.impressions.equals(together.impressions)
    assert apart.skipped == together.skipped
    assert set(together.ranked["protocol"].to_pylist()) == {SAMPLED, FULL}


def test_rows_agree_with_ranking_one_request_at_a_time(whole: Histories, pool: ItemPool) -> None:
    rows = evaluate_histories(whole, pool, {"toy": by_item}, CONFIG, full_share=1.0).ranked.to_pylist()
    items = np.arange(pool.num_items)
    drawn = {held for held, _, _ in ranked(whole, pool, CONFIG)}
    for held in held_out_pairs(whole, CONFIG):
        first = whole.offsets[held.row]
        seen, target, query = (
            whole.item[first : first + held.start],
            whole.item[first + held.position],
            whole.query[first + held.position],
        )
        own = [row for row in rows if row["user_id"] == whole.user_id[held.row]]
        assert {row["protocol"] for row in own} == ({SAMPLED, FULL} if held in drawn else {FULL})
        full = next(row for row in own if row["protocol"] == FULL)
        score = np.sin(items * 12.9) + np.isin(items, seen) + (query >= 0)
        assert full["above"] == (score > score[target]).sum()
        assert full["others"] == pool.num_items - 1
        assert full["repeat"] == (target in seen)
        assert full["unseen"] == (pool.train_count[target] == 0)
        assert full["history_length"] == held.start
        assert full["query_origin"] == ("typed" if query >= 0 else "none")


def test_small_batches_give_the_same_scores(whole: Histories, pool: ItemPool, monkeypatch: pytest.MonkeyPatch) -> None:
    large = evaluate_histories(whole, pool, {"toy": by_item}, CONFIG, full_share=1.0)
    monkeypatch.setattr("seminar.evaluate.evaluation.CELLS", 400)
    small = evaluate_histories(whole, pool, {"toy": by_item}, CONFIG, full_share=1.0)
    assert small.ranked.equals(large.ranked)


def test_a_batch_never_exceeds_the_cells_unless_one_request_does(whole: Histories, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seminar.evaluate.evaluation.CELLS", 500)
    requests = [replace(_all_items(7), row=r, end=int(whole.lengths[r])) for r in range(len(whole))]
    sizes = []

    def watch(batch: Batch) -> torch.Tensor:
        sizes.append((len(batch.item_BL), batch.item_BL.shape[1] * batch.item_BT.shape[1] * len(batch.item_BL)))
        return by_item(batch)

    score_requests(whole, requests, watch, 1000)
    assert all(cells <= 500 or count == 1 for count, cells in sizes)
    assert max(count for count, _ in sizes) > 1


def test_a_scorer_that_returns_nan_is_refused(whole: Histories, pool: ItemPool) -> None:
    with pytest.raises(InfeasibleMetrics, match="NaN"):
        evaluate_histories(whole, pool, {"broken": lambda batch: by_item(batch) * float("nan")}, CONFIG)


def test_padding_targets_may_hold_anything(whole: Histories, pool: ItemPool) -> None:
    def padded(batch: Batch) -> torch.Tensor:
        return by_item(batch).masked_fill(~batch.mask_BT, float("nan"))

    config = CONFIG.model_copy(update={"num_negatives": 30})
    assert len(evaluate_histories(whole, pool, {"toy": padded}, config).ranked)


def test_a_sample_of_users_is_the_same_in_every_shard_and_near_its_share(whole: Histories, shards: list[Histories]) -> None:
    chosen = {u for u, kept in zip(whole.user_id, in_user_sample(whole, 7, 0.4), strict=True) if kept}
    by_shard = {u for shard in shards for u, kept in zip(shard.user_id, in_user_sample(shard, 7, 0.4), strict=True) if kept}
    assert by_shard == chosen
    assert in_user_sample(whole, 7, 1.0).all()
    assert not in_user_sample(whole, 7, 0.0).any()
    many = replace(whole, user_id=[f"user {i}" for i in range(20_000)])
    assert in_user_sample(many, 7, 0.4).mean() == pytest.approx(0.4, abs=0.015)
    assert (in_user_sample(many, 7, 0.4) != in_user_sample(many, 8, 0.4)).any()


def test_constant_scorer_gets_chance_in_the_whole_protocol(whole: Histories, pool: ItemPool) -> None:
    rows = evaluate_histories(whole, pool, {"constant": lambda batch: torch.zeros(batch.item_BT.shape)}, CONFIG).ranked
    metrics = ranking_metrics(*(rows[name].to_numpy() for name in ("above", "tied", "others")))
    assert (metrics["AUC"] == 0.5).all()
    assert metrics["HIT@1"] == pytest.approx(1 / (rows["others"].to_numpy() + 1))
