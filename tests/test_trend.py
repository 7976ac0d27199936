"""Popularity as of the request: an oracle by loops, what may not be seen, and the way from the log to served scores."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file

from seminar.artifacts import Artifact, Store
from seminar.baselines.base import Baseline
from seminar.baselines.sim_hard import SIMHard
from seminar.batching import Batch, Request, collate
from seminar.bundle import Bundle
from seminar.channels import VectorTables
from seminar.config import DataConfig, PrepareConfig
from seminar.data.prepare import prepare_locally
from seminar.datasets import open_source
from seminar.errors import ArtifactError
from seminar.heads import CatalogueStats
from seminar.ranker import load_ranker
from seminar.schema import CTR, MS_PER_WEEK
from seminar.scorer import ScoringHistory, Targets, TwoStageScorer
from seminar.sequences import read_histories
from seminar.trend import NUM_TREND, TAU_WEEKS, decayed_counts, trend_features
from tests.baseline_world import auc_after_training, built, planted_batch, planted_tables
from tests.bundles import make_bundle, make_vectors
from tests.conftest import START_MS, write_events
from tests.worlds import batch_of, seeded, small_config, vector_tables

START_WEEK = START_MS // MS_PER_WEEK


def oracle(counts: dict[int, int], week: int) -> np.ndarray:
    """The sums themselves, in float64."""
    past = [(week - w, n) for w, n in counts.items() if w < week]
    decayed = [sum(n * np.exp(-ago / tau) for ago, n in past) for tau in TAU_WEEKS]
    return np.log1p([*decayed, sum(n for _, n in past)]) / 4


def features(items: list[dict[int, int]], item_BT: torch.Tensor, week_B: torch.Tensor) -> np.ndarray:
    """Through the tables that are kept, from counts by week an item."""
    offsets = np.concatenate([[0], np.cumsum([len(counts) for counts in items])]).astype(np.int64)
    week = np.array([w for counts in items for w in sorted(counts)], np.int32)
    count = np.array([counts[w] for counts in items for w in sorted(counts)], np.int32)
    return trend_features(*decayed_counts(offsets, week, count), item_BT, week_B).numpy()


@pytest.mark.parametrize("first_week", [-30, 0, 2600])
def test_features_equal_the_sums_over_earlier_weeks(first_week: int) -> None:
    rng = np.random.default_rng(first_week + 30)
    sizes = [0, 1, 12, 0, 30, 3, 0]
    draw = [rng.choice(60, size, replace=False) + first_week for size in sizes]
    items = [{int(w): int(rng.integers(1, 10_000)) for w in weeks} for weeks in draw]
    item_BT, week_B = torch.from_numpy(rng.integers(0, len(items), (80, 9))), torch.arange(-10, 70) + first_week
    expected = [[oracle(items[item], week) for item in row] for row, week in zip(item_BT.tolist(), week_B.tolist(), strict=True)]
    np.testing.assert_allclose(features(items, item_BT, week_B), expected, rtol=2e-6, atol=1e-7)


def test_features_of_a_catalogue_that_training_never_saw_are_zero() -> None:
    got = features([{}, {}], torch.tensor([[0, 1]]), torch.tensor([2600]))
    np.testing.assert_array_equal(got, np.zeros((1, 2, NUM_TREND)))


def test_an_item_without_counts_takes_none_of_its_neighbours() -> None:
    items = [{2599: 7}, {}, {2590: 5}]
    got = features(items, torch.tensor([[1, 0, 2]]), torch.tensor([2600]))[0]
    np.testing.assert_array_equal(got[0], 0)
    assert (got[1:] > 0).any(1).all()


def test_the_requests_own_week_and_later_ones_change_nothing() -> None:
    past = {2595: 4, 2598: 2}
    item, week = torch.tensor([[0]]), torch.tensor([2599])
    seen = features([past], item, week)
    np.testing.assert_array_equal(features([past | {2599: 50, 2600: 9}], item, week), seen)
    assert (features([past | {2598: 3}], item, week) > seen).all()


def test_a_request_counts_by_its_own_week() -> None:
    tables = vector_tables()
    batch = batch_of([3, 2], tables)
    assert batch.week_B.tolist() == [2486, 2486], "24 August 2017"
    later = replace(batch, week_B=batch.week_B + 1)
    stats = CatalogueStats.of(tables)
    before, after = (trend_features(stats.week_key, stats.week_sum, b.item_BT, b.week_B) for b in (batch, later))
    counts = {
        item: dict(zip(tables.week[a:b].tolist(), tables.week_count[a:b].tolist(), strict=True))
        for item, (a, b) in enumerate(zip(tables.week_offsets[:-1], tables.week_offsets[1:], strict=True))
    }
    for got, shift in ((before, 0), (after, 1)):
        week = int(batch.week_B[0]) + shift
        expected = [[oracle(counts[item], week) for item in row] for row in batch.item_BT.tolist()]
        np.testing.assert_allclose(got.numpy(), expected, rtol=2e-6, atol=1e-7)


def prepared(tables: dict[str, pa.Table], folder: Path, config: PrepareConfig) -> Artifact:
    folder.mkdir()
    for name in ("items", "queries", "users"):
        pq.write_table(tables[name], folder / f"{name}.parquet")
    write_events(folder, tables["events"], 2)
    data = DataConfig(source="tables", path=folder)
    return prepare_locally(open_source(data), data, config, Store(folder / "store"))


def weeks_of(pairs: Artifact) -> dict[str, dict[int, int]]:
    rows = pq.read_table(pairs.file("items.parquet")).to_pylist()
    return {row["item_id"]: dict(zip(row["week"], row["week_count"], strict=True)) for row in rows}


def in_training(pairs: Artifact) -> dict[str, dict[int, int]]:
    """Counted one behaviour at a time from the sequences."""
    ids = pq.read_table(pairs.file("items.parquet"))["item_id"].to_pylist()
    counts: dict[str, dict[int, int]] = {name: {} for name in ids}
    for path in sorted((pairs.path / "shards").iterdir()):
        users = read_histories(pq.read_table(path))
        for row in range(len(users)):
            span = slice(users.span(row).start, users.span(row).start + int(users.train_end[row]))
            for item, time in zip(users.item[span].tolist(), users.time_ms[span].tolist(), strict=True):
                week = time // MS_PER_WEEK
                counts[ids[item]][week] = counts[ids[item]].get(week, 0) + 1
    return counts


def test_counts_by_week_are_those_of_training_whatever_the_number_of_shards(
    tiny_tables: dict[str, pa.Table], tmp_path: Path
) -> None:
    one, many = (prepared(tiny_tables, tmp_path / str(n), PrepareConfig(num_shards=n, chunk_length=16)) for n in (1, 7))
    items = pq.read_table(one.file("items.parquet"))
    assert items.equals(pq.read_table(many.file("items.parquet")))
    assert weeks_of(one) == in_training(many)
    assert items["train_count"].to_pylist() == [sum(counts) for counts in items["week_count"].to_pylist()]
    assert all(weeks == sorted(weeks) for weeks in items["week"].to_pylist())
    assert len({week for weeks in items["week"].to_pylist() for week in weeks}) > 2


def test_a_held_out_purchase_changes_no_feature(tiny_tables: dict[str, pa.Table], tmp_path: Path) -> None:
    """A user's last two requests, which are validation and test, move to an item that nobody takes otherwise."""
    rows = tiny_tables["events"].to_pylist()
    held_out = sorted({row["time_ms"] for row in rows if row["user_id"] == "u08"})[-2:]
    late = [row["user_id"] == "u08" and row["time_ms"] in held_out for row in rows]
    moved = [row | {"item_id": "i-untouched"} if is_late else row for row, is_late in zip(rows, late, strict=True)]
    assert len({row["time_ms"] for row in moved if row["item_id"] == "i-untouched" and row["label"]}) == 2
    changed = tiny_tables | {"events": pa.Table.from_pylist(moved, schema=tiny_tables["events"].schema)}
    config = PrepareConfig(num_shards=2, chunk_length=16)
    before, after = (prepared(tables, tmp_path / name, config) for name, tables in (("a", tiny_tables), ("b", changed)))
    assert weeks_of(before) == weeks_of(after)
    stats = [CatalogueStats.of(VectorTables.load(make_vectors(Store(tmp_path / "store"), pairs))) for pairs in (before, after)]
    item_BT = torch.arange(len(stats[0].train_count))[None].repeat(5, 1)
    week_B = START_WEEK + torch.arange(5)
    first, second = (trend_features(s.week_key, s.week_sum, item_BT, week_B) for s in stats)
    assert first.any()
    assert torch.equal(first, second)


def test_a_continued_catalogue_counts_anew(tiny_dataset: DataConfig, tiny_pairs: Artifact, tiny_store: Store) -> None:
    config = PrepareConfig(num_shards=3, chunk_length=16)
    again = prepare_locally(open_source(tiny_dataset), tiny_dataset, config, tiny_store, tiny_pairs)
    assert weeks_of(again) == weeks_of(tiny_pairs)


@pytest.fixture(scope="module")
def vectors(tiny_pairs: Artifact, tiny_store: Store) -> Artifact:
    return make_vectors(tiny_store, tiny_pairs)


def test_vectors_and_bundle_keep_the_counts(tiny_pairs: Artifact, tiny_store: Store, vectors: Artifact) -> None:
    tables = VectorTables.load(vectors)
    expected = list(weeks_of(tiny_pairs).values())
    bounds = zip(tables.week_offsets[:-1], tables.week_offsets[1:], strict=True)
    got = [dict(zip(tables.week[a:b].tolist(), tables.week_count[a:b].tolist(), strict=True)) for a, b in bounds]
    assert got == expected
    saved = load_file(make_bundle(tiny_store, tiny_pairs, vectors).file("tables.safetensors"))
    stats = CatalogueStats.of(tables)
    assert torch.equal(saved["week_key"], stats.week_key)
    assert torch.equal(saved["week_sum"], stats.week_sum)


def test_served_scores_equal_offline_ones_in_every_week(tiny_pairs: Artifact, tiny_store: Store, vectors: Artifact) -> None:
    bundle = Bundle.load(make_bundle(tiny_store, tiny_pairs, vectors).path)
    refs = bundle.manifest.inputs
    ranker = load_ranker(tiny_store.open("model", refs["model"].version), vectors)
    users = read_histories(pq.read_table(tiny_pairs.file("shards/part-00000.parquet")))
    row = int(users.lengths.argmax())
    span, item_T = users.span(row), np.arange(30)
    past = ScoringHistory(users.item[span].astype(np.int64), users.query[span].astype(np.int64), users.time_ms[span])
    none, label = np.full(30, -1), np.zeros(30, np.float32)
    for week in (0, 1, 3, 6, 60):
        targets = Targets(item_T, none, CTR, START_MS + week * MS_PER_WEEK)
        request = Request(row, span.stop - span.start, targets.time_ms, item_T, none, label, np.full(30, CTR))
        offline = torch.sigmoid(ranker.score(collate(users, [request], 1000)))[0].numpy()
        served = TwoStageScorer(bundle, "exact").score(past, targets).probability_T
        np.testing.assert_allclose(served, offline, rtol=0, atol=1e-5)


def test_artefacts_of_another_format_are_refused_by_name(
    tiny_pairs: Artifact, tiny_store: Store, vectors: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_bundle(tiny_store, tiny_pairs, vectors).path
    monkeypatch.setattr("seminar.artifacts.FORMAT", 3)
    with pytest.raises(ArtifactError, match="got format 2, expected format 3; rebuild it"):
        Bundle.load(path)
    with pytest.raises(ArtifactError, match="got format 2, expected format 3; rebuild it"):
        tiny_store.open("pairs", tiny_pairs.version)


def test_switched_off_they_take_no_width_and_change_nothing() -> None:
    batch = batch_of([12, 5], vector_tables())
    off, on = (built(SIMHard, trend_features=flag).eval() for flag in (False, True))
    widths = [unit.state_dict()["heads.head.0.weight"].shape[1] for unit in (off, on)]
    assert widths[1] - widths[0] == NUM_TREND
    late = replace(batch, week_B=batch.week_B + 2)
    assert torch.equal(off.score(batch), off.score(late))
    assert not torch.equal(on.score(batch), on.score(late))


WEEKS, ITEMS = 30, 40
HOT = np.random.default_rng(5).permuted(np.arange(ITEMS * WEEKS).reshape(ITEMS, WEEKS) % 2, axis=1)


def seasonal() -> VectorTables:
    """Every item is hot in half of its weeks, which ones differ: over all weeks all are equally popular."""
    counts = np.append(np.where(HOT == 1, 30, 2).ravel(), 1)
    tables = planted_tables(np.eye(ITEMS), np.arange(ITEMS) % 4)
    return replace(
        tables,
        train_count=np.append(np.full(ITEMS, counts[:-1].sum() // ITEMS), 1),
        week_offsets=np.append(np.arange(ITEMS + 1) * WEEKS, ITEMS * WEEKS + 1),
        week=np.append(np.tile(np.arange(WEEKS), ITEMS), 0).astype(np.int32),
        week_count=counts.astype(np.int32),
    )


def hot_last_week(rng: np.random.Generator) -> Batch:
    """Positive if the target was hot in the week before; histories are of random items."""
    week = rng.integers(8, WEEKS + 1, 32)
    target = rng.integers(0, ITEMS, (32, 8))
    batch = planted_batch(rng.integers(0, ITEMS, (32, 10)), target, HOT[target, week[:, None] - 1])
    return replace(batch, week_B=torch.from_numpy(week))


def test_what_is_popular_now_is_learned_from_the_trend_and_from_nothing_else() -> None:
    def model(trend: bool) -> Baseline:
        config = small_config(trend_features=trend)
        return Baseline.build(SIMHard(config, seeded()), config, seasonal(), seeded())

    assert auc_after_training(model(True), hot_last_week, steps=150) > 0.9
    assert auc_after_training(model(False), hot_last_week, steps=150) < 0.7
