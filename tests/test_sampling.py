"""Lanes and what they draw: deterministic, complete, and blind to what is held out."""

import tracemalloc
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from seminar.artifacts import Artifact
from seminar.batching import Batch
from seminar.config import FinetuneConfig, PretrainConfig
from seminar.errors import ConfigError
from seminar.schema import CTR, PSR
from seminar.sequences import Exposures, Histories
from seminar.train.lanes import bucketed_order, group_shards, read_shards
from seminar.train.sampling import RequestSamples, WindowSamples, choose, finetune_lane, pretrain_lane, training_requests
from seminar.train.training_negatives import NegativeSampler, Owned
from tests.worlds import histories, vector_tables

TABLES = vector_tables()
LENGTHS = [10, 0, 7, 1, 24]


def world(**changes: object) -> Histories:
    """Five users whose last request or two are held out; two exposures in each of user 0's and user 4's requests 1 and 3."""
    users = histories(LENGTHS, TABLES)
    shown = Exposures(
        offsets=np.array([0, 4, 4, 4, 4, 8]),
        item=np.arange(8, dtype=np.int32) + 20,
        query=np.array([-1, 2, -1, 2, -1, 2, -1, 2], np.int32),
        request=np.array([1, 1, 3, 3] * 2, np.int32),
    )
    ends = np.array([8, 0, 4, 0, 20], np.int32)
    return replace(users, train_end=ends, exposures=shown, **changes)


def sampler(popularity_share: float = 0.0) -> NegativeSampler:
    return NegativeSampler(TABLES.category_index, TABLES.train_count, popularity_share)


def requests_of(users: Histories, **changes: object) -> RequestSamples:
    return RequestSamples(users, FinetuneConfig(**changes), sampler())


def shards(pairs: Artifact) -> list[Path]:
    return [pairs.file(name) for name in sorted(pairs.manifest.files) if name.startswith("shards/")]


def lane_of(pairs: Artifact, lane: int = 0, **changes: object):
    items = pq.read_table(pairs.file("items.parquet"))
    config = FinetuneConfig(**{"lanes": 2, "requests_per_lane": 3, **changes})
    return finetune_lane(shards(pairs), lane, config, items["category_index"].to_numpy(), items["train_count"].to_numpy())


def assert_same(one: object, other: object) -> None:
    for field in fields(one):
        assert torch.equal(getattr(one, field.name), getattr(other, field.name)), field.name


# --- what a request holds


def test_training_requests_are_those_that_begin_in_the_training_part() -> None:
    user, start, stop = training_requests(world(), min_history=2)
    spans = [(u, s - int(world().offsets[u]), e - s) for u, s, e in zip(user, start, stop, strict=True)]
    assert spans == [(0, 2, 2), (0, 4, 2), (0, 6, 2), (2, 2, 2), *((4, p, 2) for p in range(2, 20, 2))]


def test_newest_requests_keeps_each_users_last_ones() -> None:
    users = world()
    user, start, _ = training_requests(users, min_history=0, newest=2)
    assert list(zip(user.tolist(), (start - users.offsets[user]).tolist(), strict=True)) == [
        (0, 4),
        (0, 6),
        (2, 0),
        (2, 2),
        (4, 16),
        (4, 18),
    ]


def test_history_ends_where_the_request_begins() -> None:
    users = world()
    samples = requests_of(users, min_history=2, max_history=5)
    batch = samples.draw(np.arange(len(samples)), np.random.default_rng(0))
    user, start, _ = training_requests(users, min_history=2)
    assert batch.total_length_B.tolist() == (start - users.offsets[user]).tolist()
    for row, (s, length) in enumerate(zip(start, batch.length_B.tolist(), strict=True)):
        assert batch.item_BL[row, :length].tolist() == users.item[s - length : s].tolist()
        assert length <= 5


@pytest.mark.parametrize("outside", ["request", "history"])
def test_targets_are_the_requests_pairs_their_negatives_and_its_exposures(outside: str) -> None:
    users = world()
    sizes = {"positives_per_request": 8, "negatives_per_positive": 3, "exposures_per_request": 8}
    samples = requests_of(users, min_history=2, negatives_outside=outside, **sizes)
    batch = samples.draw(np.arange(len(samples)), np.random.default_rng(0))
    user, start, stop = training_requests(users, min_history=2)
    for row in range(len(start)):
        targets = list(
            zip(*(c[row][batch.mask_BT[row]].tolist() for c in (batch.item_BT, batch.query_BT, batch.label_BT)), strict=True)
        )
        bought = list(zip(users.item[start[row] : stop[row]].tolist(), users.query[start[row] : stop[row]].tolist(), strict=True))
        assert sorted(t[:2] for t in targets if t[2] == 1) == sorted(bought)
        shown = users.exposures.span(int(user[row]))
        own = users.exposures.request[shown] == users.request[start[row]]
        exposed = set(zip(users.exposures.item[shown][own].tolist(), users.exposures.query[shown][own].tolist(), strict=True))
        negatives = [t[:2] for t in targets if t[2] == 0]
        assert exposed <= set(negatives)
        owned = {item for item, _ in bought}
        if outside == "history":
            owned = set(users.item[users.offsets[user[row]] :][: users.train_end[user[row]]].tolist())
        sampled = [pair for pair in negatives if pair not in exposed]
        assert len(sampled) <= 3 * len(bought)
        for item, query in sampled:
            # The negative must be one that some positive of this request could have given: same category, same query, not owned.
            assert any(item % 4 == positive % 4 and query == asked for positive, asked in bought)
            assert item not in owned


def test_stochastic_length_shows_the_newest_behaviours_of_some_length_in_its_range() -> None:
    users = world()
    whole, cut = (requests_of(users, max_history=16, stochastic_length=value) for value in (0.0, 3.0))
    longest = int(np.argmax(whole.lengths))
    shown = [cut.draw(np.array([longest]), np.random.default_rng(seed)) for seed in range(40)]
    full = whole.draw(np.array([longest]), np.random.default_rng(0))
    lengths = {int(batch.length_B) for batch in shown}
    assert len(lengths) > 3
    assert 2 <= min(lengths) < max(lengths) <= 16
    for batch in shown:
        assert torch.equal(batch.item_BL[0], full.item_BL[0, -int(batch.length_B) :])
        assert torch.equal(batch.total_length_B, full.total_length_B)


def test_task_follows_the_query() -> None:
    samples = requests_of(world())
    batch = samples.draw(np.arange(len(samples)), np.random.default_rng(0))
    assert torch.equal(batch.task_BT[batch.mask_BT], torch.where(batch.query_BT >= 0, PSR, CTR)[batch.mask_BT])


def test_no_held_out_behaviour_can_change_a_batch() -> None:
    users = world()
    position = np.concatenate([np.arange(n) for n in LENGTHS])
    held_out = position >= np.repeat(users.train_end, LENGTHS)
    other = replace(users, item=np.where(held_out, (users.item + 4) % 40, users.item).astype(np.int32))
    index = np.arange(len(requests_of(users)))
    for seed in range(5):
        one, two = (requests_of(u).draw(index, np.random.default_rng(seed)) for u in (users, other))
        assert_same(one, two)


def test_numbers_of_targets_are_bounded_by_the_settings() -> None:
    samples = requests_of(world(), positives_per_request=1, negatives_per_positive=2, exposures_per_request=1)
    batch = samples.draw(np.arange(len(samples)), np.random.default_rng(0))
    assert int(batch.target_count_B.max()) <= 1 + 2 + 1
    assert batch.label_BT.sum(1).tolist() == [1.0] * len(samples)


def test_choose_gives_every_subset_the_same_chance() -> None:
    rng = np.random.default_rng(0)
    start, stop = np.array([5, 9, 20]), np.array([8, 9, 24])
    counts = np.zeros(30)
    for _ in range(3000):
        span, place = choose(start, stop, 2, rng)
        assert span.tolist() == [0, 0, 2, 2]
        assert len(set(place.tolist())) == 4
        counts[place] += 1
    assert counts[5:8] == pytest.approx(2000, rel=0.08)
    assert counts[20:24] == pytest.approx(1500, rel=0.08)
    assert counts.sum() == 12_000


# --- negatives


def draw_many(negatives: NegativeSampler, item: int, owned: Owned, count: int = 20_000) -> np.ndarray:
    return negatives.draw(np.full(count, item), np.zeros(count, np.int64), owned, np.random.default_rng(3))


def test_uniform_negatives_are_uniform_over_what_is_left_of_the_category() -> None:
    users = histories([12], TABLES)
    drawn = draw_many(sampler(), 6, Owned(users, 40))
    left = sorted(set(range(2, 40, 4)) - set(users.item.tolist()))
    found, counts = np.unique(drawn, return_counts=True)
    assert found.tolist() == left
    assert counts == pytest.approx(20_000 / len(left), rel=0.1)


def test_popular_negatives_follow_training_counts() -> None:
    drawn = draw_many(sampler(1.0), 6, Owned(histories([0], TABLES), 40), 50_000)
    members = np.arange(2, 40, 4)
    expected = TABLES.train_count[members] / TABLES.train_count[members].sum()
    assert np.bincount(drawn, minlength=40)[members] / 50_000 == pytest.approx(expected, abs=0.01)


def test_a_category_without_training_counts_still_gives_negatives() -> None:
    negatives = NegativeSampler(np.zeros(5, np.int32), np.zeros(5, np.int64), popularity_share=1.0)
    assert set(draw_many(negatives, 0, Owned(histories([0], TABLES), 5), 200)) == set(range(5))


def test_the_last_item_left_is_found_and_an_exhausted_category_gives_none() -> None:
    one_left = replace(histories([9], TABLES), item=np.arange(2, 38, 4, dtype=np.int32))
    assert set(draw_many(sampler(), 6, Owned(one_left, 40), 50)) == {38}
    none_left = replace(histories([10], TABLES), item=np.arange(2, 40, 4, dtype=np.int32))
    assert set(draw_many(sampler(), 6, Owned(none_left, 40), 50)) == {-1}


def test_items_without_a_category_are_their_own_category() -> None:
    category = np.array([-1, 0, -1, 0, -1], np.int32)
    negatives = NegativeSampler(category, np.ones(5, np.int64))
    assert set(draw_many(negatives, 0, Owned(histories([0], TABLES), 5), 100)) == {0, 2, 4}


def test_a_request_whose_category_is_exhausted_loses_its_negatives_only() -> None:
    everything = replace(histories([44], TABLES), item=np.tile(np.arange(40), 2)[:44].astype(np.int32))
    samples = requests_of(everything, newest_requests=1, negatives_outside="history")
    batch = samples.draw(np.arange(1), np.random.default_rng(0))
    assert batch.label_BT[0].tolist() == [1.0, 1.0]


def test_memory_does_not_grow_with_users_times_items() -> None:
    """The public code unions sets of users x items; here 20,000 users and a million items need what their behaviours need."""
    users, num_items = 20_000, 1_000_000
    many = replace(
        histories([3] * users, TABLES), item=np.random.default_rng(0).integers(0, num_items, 3 * users).astype(np.int32)
    )
    tracemalloc.start()
    negatives = NegativeSampler(np.zeros(num_items, np.int32), np.ones(num_items, np.int64))
    owner = np.random.default_rng(1).integers(0, users, 50_000)
    negatives.draw(np.zeros(50_000, np.int64), owner, Owned(many, num_items), np.random.default_rng(2))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6, "users x items bits would be 2.5 GB"


def test_negatives_beside_a_query_are_of_other_categories_and_half_of_them_the_users_own() -> None:
    users = histories([60, 40], TABLES)
    sizes = {"positives_per_request": 2, "negatives_per_positive": 200, "min_history": 20}
    samples = requests_of(users, negatives_beside_query=1.0, **sizes)
    user, start, stop = training_requests(users, min_history=20)
    own = total = 0
    batch = samples.draw(np.arange(len(samples)), np.random.default_rng(0))
    for row, (u, first, last) in enumerate(zip(user, start, stop, strict=True)):
        past, now = (users.item[a:b] for a, b in ((users.offsets[u], first), (first, last)))
        for item, query in zip(users.item[first:last], users.query[first:last], strict=True):
            of_it = (batch.label_BT[row] == 0) & batch.mask_BT[row] & (batch.query_BT[row] == int(query))
            drawn = batch.item_BT[row][of_it].numpy()
            assert not np.isin(drawn, now).any(), "nothing of the request is a negative"
            if query == -1:
                assert set(TABLES.category_index[drawn]) <= set(TABLES.category_index[now]), "without a query: its category"
            elif (users.query[first:last] == query).sum() == 1:
                assert len(drawn)
                assert (TABLES.category_index[drawn] != TABLES.category_index[item]).all()
                own, total = own + int(np.isin(drawn, past).sum()), total + len(drawn)
    # Of the items drawn by training counts some were taken before too.
    assert 0.5 < own / total < 0.95


def test_a_user_without_a_past_has_popular_items_beside_its_query() -> None:
    nobody = (np.empty(0, np.int32), np.zeros(20_000, np.int64), np.zeros(20_000, np.int64))
    owned, rng = Owned(histories([0], TABLES), 40), np.random.default_rng(0)
    drawn = sampler().draw_outside(np.full(20_000, 6), np.zeros(20_000, np.int64), owned, nobody, rng)
    members = np.flatnonzero(np.arange(40) % 4 != 2)
    expected = TABLES.train_count[members] / TABLES.train_count[members].sum()
    found = drawn[drawn >= 0]
    assert len(found) > 19_800
    assert np.bincount(found, minlength=40)[members] / len(found) == pytest.approx(expected, abs=0.01)


def test_one_category_alone_has_nothing_beside_a_query() -> None:
    negatives = NegativeSampler(np.zeros(5, np.int32), np.ones(5, np.int64))
    past = (np.array([3], np.int32), np.zeros(9, np.int64), np.ones(9, np.int64))
    owned = Owned(histories([0], TABLES), 5)
    drawn = negatives.draw_outside(np.zeros(9, np.int64), np.zeros(9, np.int64), owned, past, np.random.default_rng(0))
    assert (drawn == -1).all()


# --- windows


def test_windows_are_consecutive_behaviours_of_the_training_part() -> None:
    users = world()
    samples = WindowSamples(users, window=6)
    assert len(samples) == 2 + 1 + 4
    starts: set[int] = set()
    for seed in range(30):
        batch = samples.draw(np.arange(len(samples)), np.random.default_rng(seed))
        for row, length in enumerate(batch.length_B.tolist()):
            window = batch.item_BL[row, :length].numpy()
            user = [0, 0, 2, 4, 4, 4, 4][row]
            whole = users.item[users.span(user)][: users.train_end[user]]
            places = [s for s in range(len(whole) - length + 1) if np.array_equal(whole[s : s + length], window)]
            assert places, (row, window)
            assert length == min(6, len(whole))
            if user == 4:
                starts.update(places)
        assert (batch.request_BL[~batch.mask_BL] == -1).all()
    assert len(starts) > 8


def test_every_training_behaviour_is_in_windows_about_equally_often() -> None:
    users = replace(histories([100], TABLES), item=np.arange(100, dtype=np.int32))
    samples = WindowSamples(users, window=20)
    seen = np.zeros(100)
    for seed in range(400):
        batch = samples.draw(np.arange(len(samples)), np.random.default_rng(seed))
        np.add.at(seen, batch.item_BL[batch.mask_BL].numpy(), 1)
    assert seen.min() > 0.4 * seen.mean()
    assert seen.max() < 1.6 * seen.mean()


# --- lanes


def test_any_batch_is_the_same_whenever_and_however_it_is_asked_for(tiny_pairs: Artifact) -> None:
    first = lane_of(tiny_pairs)
    in_order = [first.batch(step) for step in range(3 * first.steps_per_epoch)]
    resumed = lane_of(tiny_pairs)
    for step in (2 * resumed.steps_per_epoch + 1, 0, resumed.steps_per_epoch - 1):
        assert_same(resumed.batch(step), in_order[step])


def test_lanes_epochs_and_seeds_differ(tiny_pairs: Artifact) -> None:
    lane = lane_of(tiny_pairs)
    epoch = lane.steps_per_epoch
    others = [lane.batch(epoch), lane_of(tiny_pairs, lane=1).batch(0), lane_of(tiny_pairs, seed=1).batch(0)]
    for other in others:
        assert not torch.equal(other.item_BT, lane.batch(0).item_BT)


@pytest.mark.parametrize("group_behaviours", [1, 10_000_000])
def test_an_epoch_visits_every_request_once(tiny_pairs: Artifact, group_behaviours: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seminar.train.lanes.GROUP_BEHAVIOURS", group_behaviours)
    seen: list[tuple[int, ...]] = []
    for number in (0, 1):
        lane = lane_of(tiny_pairs, number, requests_per_lane=1, negatives_per_positive=0, exposures_per_request=0)
        assert lane.num_samples == lane.steps_per_epoch
        seen += [_signature(lane.batch(step)) for step in range(lane.steps_per_epoch)]
    users = read_shards(shards(tiny_pairs))
    user, start, stop = training_requests(users, min_history=1)
    expected = [(*users.item[users.offsets[u] : s], -1, *users.item[s:e]) for u, s, e in zip(user, start, stop, strict=True)]
    assert sorted(seen) == sorted(tuple(map(int, row)) for row in expected)


def _signature(batch: Batch) -> tuple[int, ...]:
    assert len(batch.item_BL) == 1
    return (*batch.item_BL[batch.mask_BL].tolist(), -1, *batch.item_BT[batch.mask_BT].tolist())


def test_shards_are_held_in_groups_of_bounded_size(tiny_pairs: Artifact) -> None:
    files = shards(tiny_pairs)
    sizes = [len(read_shards([path]).item) for path in files]
    assert group_shards(files, 10_000_000) == [files]
    assert group_shards(files, 1) == [[path] for path in files]
    assert group_shards(files, sizes[0] + sizes[1])[0] == files[:2]


def test_a_lane_without_a_shard_is_one_clear_error(tiny_pairs: Artifact) -> None:
    with pytest.raises(ConfigError, match=r"lane 4.*shards = 4.*lower lanes to 4"):
        lane_of(tiny_pairs, lane=4, lanes=5)


def test_a_lane_with_nothing_to_train_on_is_one_clear_error(tiny_pairs: Artifact) -> None:
    with pytest.raises(ConfigError, match="nothing to train on"):
        lane_of(tiny_pairs, min_history=100_000)


def test_pretraining_lanes_see_training_behaviours_only(tiny_pairs: Artifact, tmp_path: Path) -> None:
    """Shards cut off at train_end give the same windows."""
    config = PretrainConfig(lanes=1, window=8, chunks_per_lane=4)
    whole = pretrain_lane(shards(tiny_pairs), 0, config)
    cut = []
    for number, path in enumerate(shards(tiny_pairs)):
        table = pq.read_table(path)
        rows = table.to_pylist()
        for row in rows:
            keep = max(row["train_end"] - row["start"], 0)
            for name in ("item", "query", "origin", "time_ms", "request"):
                row[name] = row[name][:keep]
        cut.append(tmp_path / f"part-{number:05d}.parquet")
        pq.write_table(pa.Table.from_pylist(rows, schema=table.schema), cut[-1])
    for step in range(whole.steps_per_epoch):
        assert_same(pretrain_lane(cut, 0, config).batch(step), whole.batch(step))


def test_batches_hold_samples_of_similar_length_and_every_sample_once() -> None:
    lengths = np.random.default_rng(0).integers(0, 1000, 1603)
    order = bucketed_order(lengths, 32, np.random.default_rng(1))
    assert np.array_equal(np.sort(order), np.arange(1603))
    batches = lengths[order[:1600]].reshape(-1, 32)
    assert np.mean(batches.max(1) - batches.min(1)) < 150, "of 1000 without bucketing"
    assert not np.array_equal(order, bucketed_order(lengths, 32, np.random.default_rng(2)))
