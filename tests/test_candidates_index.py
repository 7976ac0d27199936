"""Finding candidates: indexes against brute force, neighbours against a dense form, what is proposed, and how it is ranked."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy import ndarray
from torch import Tensor

from seminar.batching import Batch
from seminar.candidates import full_ranking, index, neighbours
from seminar.candidates.full_ranking import NEW_ONLY, QueryCounts, by_history, by_popularity, by_query, by_tower, rank_catalogue
from seminar.candidates.index import ItemIndex, recall
from seminar.candidates.mmsrec import MMSRec
from seminar.candidates.neighbours import ItemNeighbours
from seminar.candidates.proposer import FILES, SOURCES, Past, Proposer, QueryItems, taken_before
from seminar.candidates.tower import item_vectors
from seminar.candidates.two_stage import TWO_STAGE, by_proposer, most_popular, rank_candidates
from seminar.channels import VectorTables
from seminar.config import IndexConfig, RetrieverConfig
from seminar.errors import ConfigError, InfeasibleMetrics
from seminar.evaluate.evaluation import FULL
from seminar.evaluate.negatives import ItemPool
from seminar.evaluate.protocol import HeldOut
from seminar.schema import NONE
from seminar.sequences import Histories
from tests.worlds import histories, seeded, vector_tables

KINDS = ("flat", "hnsw", "ivf_pq")
# Cells of 4 sqrt(800), and centroids of a code, from fewer points than faiss would like.
TRAINED = {"neighbours": 32, "build_effort": 128, "effort": 128, "code_bytes": 9}


def vectors(count: int, width: int = 18, seed: int = 0) -> ndarray:
    """Vectors in clusters, some of them three times as long as others."""
    draw, centre = np.random.default_rng(seed), np.random.default_rng(99).standard_normal((40, width))
    x = centre[draw.integers(40, size=count)] + draw.standard_normal((count, width))
    return (x * draw.uniform(0.5, 1.5, (count, 1))).astype(np.float32)


def brute(item_Id: ndarray, user_Nd: ndarray, n: int) -> ndarray:
    return np.argsort(-(user_Nd.astype(np.float64) @ item_Id.T), axis=1)[:, :n]


@pytest.mark.parametrize(("kind", "least", "error"), [("flat", 1.0, 1e-4), ("hnsw", 0.98, 1e-4), ("ivf_pq", 0.9, 0.02)])
@pytest.mark.parametrize("width", [18, 13])
def test_search_equals_brute_force_over_vectors_of_different_lengths(kind: str, least: float, error: float, width: int) -> None:
    item, user = vectors(800, width), vectors(50, width, seed=1)
    made = ItemIndex.build(item, IndexConfig.model_validate({"kind": kind, **TRAINED}))
    row, score = made.search(user, 20)
    assert (made.kind, made.num_items) == (kind, 800)
    exact = brute(item, user, 20)
    # Long items are among the best of nearly everybody: distance alone would not find them.
    assert np.linalg.norm(item[exact], axis=2).mean() > 1.2 * np.linalg.norm(item, axis=1).mean()
    assert np.mean([len(set(a) & set(b)) / 20 for a, b in zip(row.tolist(), exact.tolist(), strict=True)]) >= least
    assert recall(item, user, row).mean() >= least
    product = np.take_along_axis(user.astype(np.float64) @ item.T, row, 1)
    np.testing.assert_allclose(score, product, atol=error)
    assert (np.diff(score, axis=1) <= 1e-6).all()


def test_recall_counts_rows_that_exact_search_could_have_returned() -> None:
    item = np.float32([[1, 0], [2, 0], [2, 0], [2, 0], [0, 5]])
    user = np.float32([[1, 0], [0, 1], [1, 0]])
    # Two of rows 1, 2, 3, which are alike; row -1 is what a search that ended early fills up with.
    assert recall(item, user, np.array([[3, 1], [4, 0], [0, 2]])).tolist() == [1, 1, 0.5]
    assert recall(item, user, np.array([[3, -1], [4, -1], [-1, -1]])).tolist() == [0.5, 0.5, 0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_index_finds_the_same(kind: str, tmp_path: Path) -> None:
    item, user = vectors(800), vectors(20, seed=1)
    made = ItemIndex.build(item, IndexConfig.model_validate({"kind": kind, **TRAINED}))
    made.save(tmp_path / "index.faiss")
    loaded = ItemIndex.load(tmp_path / "index.faiss", json.loads(json.dumps(made.facts)))
    assert loaded.facts == made.facts
    for got, expected in zip(loaded.search(user, 7), made.search(user, 7), strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_search_for_more_than_the_catalogue_finds_all_of_it(kind: str) -> None:
    made = ItemIndex.build(vectors(300), IndexConfig.model_validate({"kind": kind, **TRAINED, "effort": 80}))
    row, score = made.search(vectors(3, seed=1), 1000)
    assert row.shape == score.shape == (3, 300)
    assert all(sorted(found) == list(range(300)) for found in row.tolist())


def test_the_size_of_the_catalogue_chooses_the_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    assert index._kind(IndexConfig(), 50_000) == "flat"
    assert index._kind(IndexConfig(), 5_000_000) == "hnsw"
    monkeypatch.setattr(index, "FLAT_ITEMS", 100)
    monkeypatch.setattr(index, "HNSW_ITEMS", 300)
    kinds = [ItemIndex.build(vectors(size), IndexConfig(code_bytes=9)).kind for size in (0, 100, 101, 300, 301)]
    assert kinds == ["flat", "flat", "hnsw", "hnsw", "ivf_pq"]
    assert ItemIndex.build(vectors(301), IndexConfig(kind="flat")).kind == "flat"


def test_too_few_items_for_codes_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"index.kind ivf_pq: got 255 items, expected at least 256.*choose flat or hnsw"):
        ItemIndex.build(vectors(255), IndexConfig(kind="ivf_pq", code_bytes=9))


@pytest.mark.parametrize(("kept", "shrinkage"), [(5, 0.0), (30, 0.0), (30, 3.0)])
def test_item_neighbours_equal_a_dense_plain_form(kept: int, shrinkage: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(neighbours, "_BLOCK", 7)
    draw = np.random.default_rng(0)
    user, item = draw.integers(25, size=160), draw.integers(28, size=160)  # two items that nobody took, repeats
    found = ItemNeighbours.fit(user, item, 30, kept, shrinkage)
    taken = np.zeros((25, 30))
    taken[user, item] = 1
    norm = np.linalg.norm(taken, axis=0)
    by = np.outer(norm, norm) + shrinkage
    cosine = np.divide(taken.T @ taken, by, out=np.zeros((30, 30)), where=by > 0)
    similarity = found.similarity.toarray()
    for row in range(30):
        best = np.sort(cosine[row])[::-1][:kept]
        np.testing.assert_allclose(np.sort(similarity[row])[::-1][:kept], best, atol=1e-6)
        named = similarity[row] > 0
        assert named.sum() <= kept
        np.testing.assert_allclose(similarity[row, named], cosine[row, named], atol=1e-6)
    if kept == 30:
        np.testing.assert_allclose(similarity, cosine, atol=1e-6)
    past = [np.array([3, 5, 3, 29]), np.empty(0, np.int64), np.array([7])]
    expected = [sum((similarity[i] for i in set(items.tolist())), np.zeros(30)) for items in past]
    np.testing.assert_allclose(found.scores(past), expected, atol=1e-6)


def test_items_of_a_query_are_those_taken_most_often_under_it() -> None:
    draw = np.random.default_rng(1)
    pair = np.unique(draw.integers(0, [6, 12], (50, 2)), axis=0)
    pair = draw.permutation(pair[pair[:, 0] != 4])
    count = draw.integers(1, 4, len(pair))
    found = QueryItems.count(pair[:, 0], pair[:, 1], count, 7, 3)
    ties = 0
    for query in range(7):
        own = sorted((-c, i) for (q, i), c in zip(pair.tolist(), count.tolist(), strict=True) if q == query)
        assert found.of(query).tolist() == [i for _, i in own[:3]]
        ties += len(own) > 3 and own[2][0] == own[3][0]
    assert ties
    for unknown in (NONE, 4, 6, 7, 100):
        assert found.of(unknown).tolist() == []
    assert QueryItems.count(pair[:, 0], pair[:, 1], count, 7, 0).item.tolist() == []


def test_what_was_taken_before_comes_by_how_often_then_by_how_recently() -> None:
    assert taken_before(np.array([4, 9, 4, 7, 2, 9, 5])).tolist() == [9, 4, 5, 2, 7]
    assert taken_before(np.empty(0, np.int64)).tolist() == []
    items = np.random.default_rng(2).integers(20, size=60)
    count, last = Counter(items.tolist()), {int(i): p for p, i in enumerate(items)}
    assert taken_before(items).tolist() == sorted(count, key=lambda i: (-count[i], -last[i]))


def mmsrec(tables: VectorTables, **changes: Any) -> MMSRec:
    """A tower moved away from its initialisation."""
    small = {"dim": 16, "num_heads": 2, "num_layers": 1, "num_token_rows": 64, "window": 12, "dropout": 0.0}
    tower = MMSRec(RetrieverConfig.model_validate({**small, **changes}), tables, seeded())
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=seeded(parameter.numel())))
    return tower.eval()


@pytest.fixture(scope="module")
def tower() -> MMSRec:
    return mmsrec(vector_tables())


@pytest.fixture(scope="module")
def proposer(tower: MMSRec) -> Proposer:
    """Queries 0, 1, ... name the items 7 q, 7 q + 1, ...; of query 5 nobody took anything."""
    query, item = np.repeat(np.arange(5), 6), (7 * np.repeat(np.arange(5), 6) + np.tile(np.arange(6), 5)) % 40
    taken = QueryItems.count(query, item, np.tile(np.arange(6, 0, -1), 5), 6, 50)
    return Proposer.of(tower, ItemIndex.build(item_vectors(tower), IndexConfig()), taken)


ITEMS = np.array([11, 3, 25, 3, 8, 30, 25, 3, 39, 2])
QUERIES = np.array([NONE, 1, NONE, 1, NONE, 5, NONE, NONE, 1, NONE])
PAST = Past(ITEMS, QUERIES, np.array([0, 0, 1, 2, 2, 2, 4, 5, 5, 5]))


@pytest.mark.parametrize("count", [1, 3, 8, 20, 40, 100])
@pytest.mark.parametrize("query", [NONE, 1, 5])
@pytest.mark.parametrize("sources", [SOURCES, ("retrieved",), ("history",), ("history", "query"), ("query", "retrieved")])
def test_proposals_equal_a_plain_form(
    tower: MMSRec, proposer: Proposer, count: int, query: int, sources: tuple[str, ...]
) -> None:
    found = proposer.propose(PAST, query, count, sources=sources)
    score = (proposer.user(PAST, query) @ item_vectors(tower).T)[0]
    named = {
        "history": {NONE: [3, 25, 2, 39, 30, 8, 11], 1: [3, 39, 8, 11], 5: [30]}[query][: count // 2],
        "query": list(range(7, 13))[: count // 4] if query == 1 else [],
        "retrieved": np.argsort(-score)[:count].tolist(),
    }
    expected = list(dict.fromkeys(i for source in sources for i in named[source]))[:count]
    held = {**named, "history": PAST.item_L.tolist(), "query": list(range(7, 13)) if query == 1 else []}
    assert found.item_C.tolist() == expected
    assert found.origin_CS.tolist() == [[s in sources and i in held[s] for s in SOURCES] for i in expected]
    if "retrieved" in sources:
        assert len(expected) == min(count, 40)
    retrieved = found.origin_CS[:, SOURCES.index("retrieved")]
    np.testing.assert_allclose(found.score_C[retrieved], score[found.item_C[retrieved]], atol=1e-4)
    assert np.isnan(found.score_C[~retrieved]).all()


def test_a_user_without_a_past_gets_proposals(proposer: Proposer) -> None:
    nothing = Past(*(np.empty(0, np.int64) for _ in range(3)))
    found = proposer.propose(nothing, 1, 8)
    assert found.item_C.tolist()[:2] == [7, 8]
    assert len(found.item_C) == 8
    assert np.isfinite(found.score_C[2:]).all()
    other = proposer.propose(nothing, 2, 8, sources=("retrieved",))
    assert not np.allclose(other.score_C, proposer.propose(nothing, 1, 8, sources=("retrieved",)).score_C)


def test_a_query_outside_the_catalogue_is_asked_by_its_text(proposer: Proposer) -> None:
    text = vector_tables().query[[4, 2]].astype(np.float32)
    unseen = proposer.query_vectors(text)
    for known, row in ((4, 6), (2, 7)):
        np.testing.assert_allclose(proposer.user(PAST, row, unseen), proposer.user(PAST, known), atol=1e-5)
        np.testing.assert_allclose(proposer.user(PAST, known, unseen), proposer.user(PAST, known), atol=1e-6)
    asked, known = proposer.propose(PAST, 7, 8, unseen), proposer.propose(PAST, 2, 8, sources=("retrieved",))
    assert asked.item_C.tolist() == known.item_C.tolist()


def test_a_tower_without_queries_takes_no_notice_of_one() -> None:
    deaf = mmsrec(vector_tables(), query=False)
    made = Proposer.of(
        deaf, ItemIndex.build(item_vectors(deaf), IndexConfig()), QueryItems(np.zeros(7, np.int64), PAST.item_L[:0])
    )
    np.testing.assert_array_equal(made.user(PAST, 3), made.user(PAST, NONE))


def test_a_saved_proposer_proposes_the_same(proposer: Proposer, tmp_path: Path) -> None:
    proposer.save(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FILES)
    loaded = Proposer.load(tmp_path)
    assert loaded.config == proposer.config
    text = vector_tables().query[:1].astype(np.float32)
    np.testing.assert_array_equal(loaded.query_vectors(text), proposer.query_vectors(text))
    for query, unseen in ((NONE, None), (1, None), (6, proposer.query_vectors(text))):
        got, expected = (made.propose(PAST, query, 20, unseen) for made in (loaded, proposer))
        for name, value in vars(expected).items():
            np.testing.assert_array_equal(vars(got)[name], value)


def world() -> tuple[Histories, ItemPool, list[HeldOut]]:
    """Users of requests of two behaviours, all of them held out; some take one of the four unseen items."""
    tables = vector_tables()
    users = histories([9, 6, 0, 7], tables)
    users.item[:4] = [37, 38, 5, 5]
    pairs = []
    for row in range(len(users)):
        for start, end in pairwise(users.request_starts(row).tolist()):
            pairs += [HeldOut(row, row, position, start, end) for position in range(start, end)]
    return users, ItemPool(tables.category_index, tables.train_count), pairs


def plain_counts(score_I: ndarray, positive: int, together: set[int], among: Sequence[int]) -> dict[str, int]:
    """By counting, one item after another."""
    counts = {"above": 0, "tied": 0, "others": 0}
    for item in among:
        if item not in together:
            counts["others"] += 1
            counts["above"] += int(score_I[item] > score_I[positive])
            counts["tied"] += int(score_I[item] == score_I[positive])
    return counts


def facts(users: Histories, pair: HeldOut) -> tuple[int, set[int]]:
    first = int(users.offsets[pair.row])
    return int(users.item[first + pair.position]), set(users.item[first + pair.start : first + pair.end].tolist())


def test_ranking_the_catalogue_equals_a_plain_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(full_ranking, "BLOCK", 5)
    users, pool, pairs = world()

    def score_of(pair: HeldOut) -> ndarray:
        return np.random.default_rng([pair.row, pair.position]).integers(6, size=40).astype(np.float32)

    scorers = {
        "ties": lambda users, pairs: np.stack([score_of(pair) for pair in pairs]),
        "falling": lambda users, pairs: np.tile(-np.arange(40.0), (len(pairs), 1)),
    }
    rows = {
        (r["user_id"], r["position"], r["protocol"], r["scorer"]): r for r in ranked(rank_catalogue(users, pool, pairs, scorers))
    }
    expected, new = 0, [i for i in range(40) if pool.train_count[i] == 0]
    for pair in pairs:
        positive, together = facts(users, pair)
        for name in scorers:
            score_I = score_of(pair) if name == "ties" else -np.arange(40.0)
            for protocol, among in ((FULL, range(40)), (NEW_ONLY, new)):
                if protocol == NEW_ONLY and positive not in new:
                    continue
                row = rows[users.user_id[pair.row], pair.position, protocol, name]
                counts = plain_counts(score_I, positive, together, among)
                assert {key: row[key] for key in counts} == counts
                assert row["unseen"] == (positive in new)
                expected += 1
    assert len(rows) == expected
    assert sum(protocol == NEW_ONLY for _, _, protocol, _ in rows) >= 4
    # Two unseen items in one request: neither is in the other's way.
    assert rows["u0", 0, NEW_ONLY, "falling"]["others"] == 2


def ranked(rows: Any) -> list[dict[str, Any]]:
    return rows.ranked.to_pylist()


def test_query_floors_equal_a_plain_loop() -> None:
    users, pool, pairs = world()
    counts = QueryCounts.fit(users.query, users.item, 6)
    pair_of = list(zip(users.query.tolist(), users.item.tolist(), strict=True))
    asked = {query for query, _ in pair_of if query != NONE}
    assert len(asked) > 1
    popular, own = (by_query(pool, counts, own=mine)(users, pairs) for mine in (False, True))
    for pair, popular_I, own_I in zip(pairs, popular, own, strict=True):
        first = int(users.offsets[pair.row])
        query, past = int(users.query[first + pair.position]), users.item[first : first + pair.start].tolist()
        under = [0 if query == NONE else pair_of.count((query, item)) for item in range(40)]
        mine = [past.count(item) if query == NONE or under[item] else 0 for item in range(40)]
        plain = [(under[item], pool.train_count[item]) for item in range(40)]
        assert np.lexsort(np.array(plain).T[::-1]).tolist() == np.argsort(popular_I, kind="stable").tolist()
        plain = [(mine[item], *plain[item]) for item in range(40)]
        assert np.lexsort(np.array(plain).T[::-1]).tolist() == np.argsort(own_I, kind="stable").tolist()
    assert counts.of(NONE)[0].tolist() == counts.of(99)[0].tolist() == []


def test_a_score_that_is_no_number_is_refused_and_not_ranked_first() -> None:
    users, pool, pairs = world()
    with pytest.raises(InfeasibleMetrics, match="NaN"):
        rank_catalogue(users, pool, pairs, {"diverged": lambda users, pairs: np.full((len(pairs), 40), np.nan)})


def test_floors_equal_a_plain_loop() -> None:
    users, pool, pairs = world()
    popular, before = by_popularity(pool)(users, pairs), by_history(pool)(users, pairs)
    for pair, popular_I, before_I in zip(pairs, popular, before, strict=True):
        first = int(users.offsets[pair.row])
        taken = users.item[first : first + pair.start].tolist()
        keys = [(taken.count(item), pool.train_count[item]) for item in range(40)]
        for left, right in ((left, right) for left in range(40) for right in range(40)):
            assert (popular_I[left] > popular_I[right]) == (pool.train_count[left] > pool.train_count[right])
            assert (before_I[left] > before_I[right]) == (keys[left] > keys[right])


def test_counts_of_two_stages_equal_a_plain_loop() -> None:
    users, pool, pairs = world()

    def proposed(users: Histories, pair: HeldOut) -> ndarray:
        draw = np.random.default_rng([pair.row, pair.position])
        return draw.permutation(40)[: draw.integers(0, 30)]

    def rank(batch: Batch) -> Tensor:
        return (batch.item_BT % 5).float()

    table = rank_candidates(users, pool, pairs, {"ranked": (proposed, rank), "alone": (proposed, None)}, 100)
    rows = {(r["user_id"], r["position"], r["scorer"]): r for r in ranked(table)}
    assert {r["protocol"] for r in rows.values()} == {TWO_STAGE}
    missed = 0
    for pair in pairs:
        positive, together = facts(users, pair)
        items = proposed(users, pair)
        for name in ("ranked", "alone"):
            score_I = np.full(40, -np.inf)  # all that was not proposed, behind and alike
            score_I[items] = items % 5 if name == "ranked" else -np.arange(len(items))
            row = rows[users.user_id[pair.row], pair.position, name]
            counts = plain_counts(score_I, positive, together, range(40))
            assert {key: row[key] for key in counts} == counts
        missed += positive not in items
    assert len(rows) == 2 * len(pairs)
    assert 3 < missed < len(pairs) - 3


def test_the_first_stage_alone_ranks_as_the_tower_does(tower: MMSRec, proposer: Proposer) -> None:
    users, pool, pairs = world()
    alone = {"alone": (by_proposer(proposer, 40, ("retrieved",)), None), "popular": (most_popular(pool, 10), None)}
    two = {(r["user_id"], r["position"], r["scorer"]): r for r in ranked(rank_candidates(users, pool, pairs, alone, 100))}
    full = ranked(rank_catalogue(users, pool, pairs, {"alone": by_tower(tower), "popular": by_popularity(pool)}))
    counts = ("above", "tied", "others")
    for row in full:
        if row["protocol"] == FULL and (row["scorer"] == "alone" or row["above"] < 5):
            expected = two[row["user_id"], row["position"], row["scorer"]]
            assert [row[c] for c in counts] == [expected[c] for c in counts]
    assert sum(row["protocol"] == FULL for row in full) == len(two)


def test_what_is_proposed_for_a_held_out_behaviour_sees_nothing_of_its_request(proposer: Proposer) -> None:
    users, _, pairs = world()
    propose = by_proposer(proposer, 10, SOURCES)
    for pair in pairs:
        first = int(users.offsets[pair.row])
        later = np.arange(len(users.item)) >= first + pair.start
        asked = np.arange(len(users.item)) == first + pair.position
        changed = replace(
            users,
            item=np.where(later, 17, users.item).astype(np.int32),
            query=np.where(later & ~asked, 3, users.query).astype(np.int32),
        )
        np.testing.assert_array_equal(propose(changed, pair), propose(users, pair))
