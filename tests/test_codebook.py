import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_tensors

from seminar.artifacts import Artifact, Store
from seminar.channels import VectorTables, unit_tables
from seminar.codes.codebook import CatalogueCodes, Codebooks, Drift, Stamp, drift, encode_block, load_codes, save_codes
from seminar.codes.codebook_fit import fit
from seminar.codes.distinct import sampling_order
from seminar.codes.kmeans import MAX_POINTS, SCALE, merge, split_spaces, statistics, update
from seminar.codes.nearest import assign
from seminar.config import CodebookConfig, Settings
from seminar.errors import ArtifactError, ConfigError, DataError, VersionMismatch
from seminar.ranker import Ranker, load_ranker
from seminar.schema import CHANNELS
from tests.worlds import seeded, small_config, vector_tables
from workflows import fit_codebooks

STAMP = Stamp("books-1", "f" * 64)
SMALL = CodebookConfig(num_subquantizers=4, num_centroids=16, iterations=6, num_shards=1)


def unit_vectors(count: int, dim: int = 16, seed: int = 0, clusters: int = 12) -> np.ndarray:
    """Unit vectors around a few centres."""
    draw = np.random.default_rng(seed)
    centre = np.random.default_rng(99).standard_normal((clusters, dim))
    vectors = centre[draw.integers(0, clusters, count)] + 0.5 * draw.standard_normal((count, dim))
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def config(**changes: object) -> CodebookConfig:
    return SMALL.model_copy(update=changes)


@pytest.fixture(scope="module")
def fitted() -> Codebooks:
    return fit([unit_vectors(700, seed=channel) for channel in range(4)], SMALL, STAMP)[0]


@pytest.mark.parametrize(("num_shards", "size"), [(3, 800), (7, 800), (40, 20)])
def test_codebooks_are_bitwise_equal_for_any_number_of_shards(num_shards: int, size: int) -> None:
    # The points fill neither a tile nor a shard; repeats make ties; 40 shards of 31 points leave some empty.
    vectors = [np.concatenate([unit_vectors(size, seed=m), unit_vectors(size, seed=m)[:11]]) for m in range(3)]
    whole, reports = fit(vectors, config(num_shards=1), STAMP)
    sharded, sharded_reports = fit(vectors, config(num_shards=num_shards), STAMP)
    assert whole.centroid_MSCw.tobytes() == sharded.centroid_MSCw.tobytes()
    assert reports == sharded_reports


@given(cuts=st.lists(st.integers(0, 300), max_size=6), seed=st.integers(0, 5))
@settings(max_examples=25, deadline=None)
def test_statistics_of_any_cut_add_up_exactly(cuts: list[int], seed: int) -> None:
    points = split_spaces(unit_vectors(300, seed=seed), 4)
    centroid = points[:9].swapaxes(0, 1).copy()
    whole = statistics(points, centroid)
    parts = merge(statistics(part, centroid) for part in np.split(points, sorted(cuts)))
    for name, value in vars(whole).items():
        assert value.tobytes() == vars(parts)[name].tobytes(), name


def test_statistics_equal_float64_sums() -> None:
    points = split_spaces(unit_vectors(500), 4)
    centroid = points[:9].swapaxes(0, 1).copy()
    code, distance = assign(points, centroid)
    found = statistics(points, centroid)
    for space in range(4):
        for c in range(9):
            mine = code[:, space] == c
            assert found.count_SC[space, c] == mine.sum()
            np.testing.assert_allclose(found.sum_SCw[space, c] / SCALE, points[mine, space].sum(0, dtype=np.float64), atol=1e-8)
            assert found.error_SC[space, c] / SCALE == pytest.approx(distance[mine, space].sum(dtype=np.float64), abs=1e-8)
            assert found.farthest_distance_SC[space, c] == distance[mine, space].max(initial=-1)


def test_fixed_point_sums_cannot_overflow() -> None:
    assert MAX_POINTS * 4.1 * SCALE < 2**63


@pytest.mark.parametrize("count", [31, 4, 1, 256])
def test_nearest_centroid_is_fused_float32_arithmetic_in_order(count: int) -> None:
    points = split_spaces(unit_vectors(300), 4)
    centroid = split_spaces(unit_vectors(count, seed=1), 4).swapaxes(0, 1).copy()
    code, distance = assign(points, centroid)
    expected = np.zeros((300, 4, count), np.float32)
    for k in range(4):
        # The product of two float32 is exact in float64: rounded once, like a fused operation.
        difference = (points[:, :, None, k] - centroid[None, :, :, k]).astype(np.float64)
        expected = (difference * difference + expected).astype(np.float32)
    np.testing.assert_array_equal(code, expected.argmin(-1))
    np.testing.assert_array_equal(distance, expected.min(-1))


def test_a_code_does_not_depend_on_the_other_vectors(fitted: Codebooks) -> None:
    vectors = unit_vectors(600, seed=5)
    together = fitted.encode(1, vectors)
    order = np.random.default_rng(0).permutation(600)
    np.testing.assert_array_equal(fitted.encode(1, vectors[order]), together[order])
    np.testing.assert_array_equal(np.concatenate([fitted.encode(1, vectors[i : i + 1]) for i in range(20)]), together[:20])


def test_equal_centroids_tie_to_the_lowest() -> None:
    centroid = np.tile(np.float32([0.5, 0.5]), (1, 5, 1))
    assert assign(np.zeros((3, 1, 2), np.float32), centroid)[0].tolist() == [[0], [0], [0]]


def test_an_empty_centroid_moves_to_the_worst_served_point() -> None:
    points = np.float32([[0.0], [0.1], [0.9], [1.0], [0.5]])[:, None]
    start = np.float32([[[0.0], [0.95], [-1.0]]])
    moved = update(start, statistics(points, start))
    np.testing.assert_allclose(moved[0, :, 0], [0.05, (0.9 + 1.0 + 0.5) / 3, 0.5], atol=1e-6)


def test_identical_points_are_never_split() -> None:
    points = np.full((50, 1, 2), 0.25, np.float32)
    start = np.float32([[[0.25, 0.25], [0.75, 0.75]]])
    np.testing.assert_array_equal(update(start, statistics(points, start)), start)


def test_the_earliest_of_equally_badly_served_points_wins_in_any_cut() -> None:
    points = np.float32([[0.0], [-0.25], [0.25], [-0.25], [0.25]])[:, None]
    start = np.float32([[[0.0]]])
    for cut in range(6):
        found = merge(statistics(part, start) for part in np.split(points, [cut]))
        assert found.farthest_SCw.tolist() == [[[-0.25]]]


def test_distortion_never_rises_with_more_iterations() -> None:
    vectors = [unit_vectors(1000, clusters=200)]
    loss = [fit(vectors, config(iterations=n), STAMP)[1][0].distortion for n in (1, 2, 4, 8, 16)]
    assert loss == sorted(loss, reverse=True)
    assert loss[-1] < 0.9 * loss[0]


def test_distortion_is_as_low_as_that_of_faiss() -> None:
    faiss = pytest.importorskip("faiss")
    vectors = unit_vectors(4000, clusters=100)
    books, (report,) = fit([vectors], config(num_centroids=64, iterations=15), STAMP)
    reference = faiss.ProductQuantizer(16, 4, 6)
    reference.cp.niter = 15
    reference.train(vectors)
    theirs = ((reference.decode(reference.compute_codes(vectors)) - vectors) ** 2).sum(1).mean()
    ours = ((books.decode(0, books.encode(0, vectors)) - vectors) ** 2).sum(1).mean()
    assert ours < 1.03 * theirs
    assert report.distortion == pytest.approx(ours, rel=1e-4)


def test_a_channel_with_few_distinct_vectors_is_lossless() -> None:
    distinct = unit_vectors(10)
    vectors = distinct[np.random.default_rng(3).integers(0, 10, 500)]
    books, (report,) = fit([vectors], SMALL, STAMP)
    assert (report.num_centroids, report.lossless, report.undertrained) == (10, True, False)
    assert books.decode(0, books.encode(0, vectors)).tobytes() == vectors.tobytes()


def test_a_lossless_channel_stays_lossless_through_a_warm_start_and_rounding() -> None:
    before, _ = fit([unit_vectors(10)], SMALL, STAMP)
    distinct = unit_vectors(14, seed=1)
    rounded = np.concatenate([distinct, np.nextafter(distinct, np.float32(2))])
    _, (report,) = fit([rounded], SMALL, STAMP, warm=before)
    assert (report.num_centroids, report.lossless) == (14, True)


def test_more_centroids_serve_unseen_vectors_better_even_below_39_points_each() -> None:
    train, unseen = unit_vectors(312, clusters=100), unit_vectors(2000, seed=1, clusters=100)
    loss = {}
    for count in (312 // 39, 128):
        books, (report,) = fit([train], config(num_centroids=count), STAMP)
        loss[count] = books.quantise(0, unseen)[1].mean()
        assert report.undertrained == (count == 128)
    assert loss[128] < 0.5 * loss[312 // 39]


def test_a_channel_without_vectors_has_no_codebook_and_refuses_to_encode() -> None:
    books, reports = fit([unit_vectors(200), np.empty((0, 16), np.float32)], SMALL, STAMP)
    assert books.num_centroids_M.tolist() == [16, 0]
    assert reports[1].points == reports[1].num_centroids == 0
    assert len(books.encode(1, np.empty((0, 16), np.float32))) == 0
    with pytest.raises(DataError, match="channel text"):
        books.encode(1, unit_vectors(3))


def test_dead_and_duplicate_centroids_are_reported() -> None:
    # Two distinct vectors that agree in all sub-spaces but the first.
    vectors = np.zeros((60, 16), np.float32)
    vectors[:, 15] = 0.6
    vectors[::2, 0], vectors[1::2, 1] = 0.8, 0.8
    _, (report,) = fit([vectors], SMALL, STAMP)
    assert (report.distinct, report.dead, report.duplicates, report.distortion) == (2, 3, 3, 0)


def test_a_warm_start_keeps_more_codes_than_a_cold_one(fitted: Codebooks) -> None:
    vectors = [np.concatenate([unit_vectors(700, seed=m), unit_vectors(60, seed=40 + m)]) for m in range(4)]
    warm, _ = fit(vectors, SMALL, STAMP, warm=fitted)
    cold, _ = fit(vectors, config(seed=1), STAMP)
    changed = [drift(fitted, books, 0, vectors[0]).summary()["changed"] for books in (warm, cold)]
    assert changed[0] < 0.5 < changed[1]


def test_a_warm_start_from_another_shape_is_refused(fitted: Codebooks) -> None:
    with pytest.raises(VersionMismatch, match=r"4 sub-spaces of dim 16.*8 of 16"):
        fit([unit_vectors(100)], config(num_subquantizers=8), STAMP, warm=fitted)


def test_drift_adds_up_over_blocks_and_knows_its_oracle(fitted: Codebooks) -> None:
    other, _ = fit([unit_vectors(700, seed=channel) for channel in range(4)], config(seed=5), STAMP)
    vectors = unit_vectors(90, seed=8)
    whole = drift(fitted, other, 2, vectors)
    parts = [drift(fitted, other, 2, part) for part in np.array_split(vectors, 4)]
    total = sum(parts, start=Drift(0, 0, 0, 0.0, 0.0))
    expected = [((books.decode(2, books.encode(2, vectors)) - vectors) ** 2).sum(1).mean() for books in (fitted, other)]
    assert total.summary() == pytest.approx(whole.summary())
    assert [whole.summary()[name] for name in ("distortion_old", "distortion_new")] == pytest.approx(expected, rel=1e-4)
    assert whole.summary()["changed"] == (fitted.encode(2, vectors) != other.encode(2, vectors)).mean()
    assert drift(fitted, fitted, 2, vectors).changed == 0


@pytest.mark.parametrize("rotation", ["none", "opq"])
def test_a_warm_start_stays_within_two_percent_of_the_stale_codebook(rotation: str) -> None:
    settings = config(num_centroids=64, rotation=rotation, iterations=10)
    old = unit_vectors(4000, clusters=100)
    draw = np.random.default_rng(7)
    new = unit_vectors(1, seed=3) + 0.3 * draw.standard_normal((200, 16)).astype(np.float32)
    new /= np.linalg.norm(new, axis=1, keepdims=True)
    stale, _ = fit([old], settings, STAMP)
    warm, (report,) = fit([np.concatenate([old, new])], settings, STAMP, warm=stale)
    on_old, on_new = (drift(stale, warm, 0, vectors).summary() for vectors in (old, new))
    assert on_old["changed"] < 0.02
    assert on_old["distortion_new"] < 1.02 * on_old["distortion_old"]
    # What is new is served better: the codebook does move where the catalogue did.
    assert on_new["distortion_new"] < 0.98 * on_new["distortion_old"]
    assert 0 < report.kept < report.num_centroids * 4
    cold, _ = fit([np.concatenate([old, new])], config(num_centroids=64, rotation=rotation, seed=1), STAMP)
    assert drift(stale, cold, 0, old).summary()["changed"] > 0.5


def test_a_warm_start_on_the_same_vectors_changes_no_code_and_gains_at_most_its_threshold() -> None:
    vectors = [unit_vectors(3000, clusters=100)]
    stale, (before,) = fit(vectors, config(iterations=3, num_centroids=64), STAMP)
    warm, (after,) = fit(vectors, config(iterations=1, num_centroids=64, warm_gain=0.99), STAMP, warm=stale)
    assert warm.centroid_MSCw.tobytes() == stale.centroid_MSCw.tobytes()
    assert (after.kept, after.distortion) == (64 * 4, before.distortion)


def test_a_centroid_moves_only_where_its_cluster_gains_enough() -> None:
    points = np.float32([[0.0], [0.4], [0.9], [0.8]])[:, None]
    start = np.float32([[[0.21], [0.7]]])
    found = statistics(points, start)
    # Means .2 and .85: gains 2 * .01**2 of .0802 and 2 * .15**2 of .05.
    np.testing.assert_allclose(update(start, found, 0.01)[0, :, 0], [0.21, 0.85], atol=1e-6)
    np.testing.assert_allclose(update(start, found, 0.95)[0, :, 0], [0.21, 0.7], atol=1e-6)
    np.testing.assert_allclose(update(start, found)[0, :, 0], [0.2, 0.85], atol=1e-6)


def test_a_lossless_channel_keeps_its_codes_when_vectors_are_added() -> None:
    old, new = unit_vectors(10), unit_vectors(4, seed=1)
    before, _ = fit([old], SMALL, STAMP)
    after, (report,) = fit([np.concatenate([new, old])], SMALL, STAMP, warm=before)
    assert report.lossless
    np.testing.assert_array_equal(before.encode(0, old), after.encode(0, old))
    assert after.decode(0, after.encode(0, new)).tobytes() == new.tobytes()


@pytest.mark.parametrize("num_centroids", [2, 16])
def test_four_bit_codes_need_no_more_than_four_bits(num_centroids: int, tmp_path: Path) -> None:
    books, _ = fit([unit_vectors(900, seed=m) for m in range(4)], config(num_centroids=num_centroids), STAMP)
    assert (books.code_bits, books.bytes_per_behaviour) == (4, 4 * 4 / 2)
    codes = catalogue_codes(books, STAMP)
    assert codes.item_code_I3S.max() == num_centroids - 1
    save_codes(tmp_path / "x", books, codes)
    assert load_codes(tmp_path / "x")[0].code_bits == 4
    assert Codebooks(np.zeros((4, 16, 17, 4), np.float32), books.num_centroids_M, books.rotation_Mdd, STAMP).code_bits == 8


def test_missing_vectors_are_never_read(fitted: Codebooks) -> None:
    unit = np.stack([unit_vectors(50, seed=m) for m in range(3)], 1)
    present = np.random.default_rng(0).random((50, 3)) < 0.5
    unit[~present] = np.nan
    code, error = encode_block(fitted, (1, 2, 3), unit, present)
    assert not code[~present].any()
    assert np.isfinite(error).all()
    assert not error[~present].any()
    np.testing.assert_array_equal(code[present[:, 1], 1], fitted.encode(2, unit[present[:, 1], 1]))


@pytest.mark.parametrize(("bad", "message"), [(np.nan, "norm nan in row 7"), (3.0, "channel query: got norm 3")])
def test_vectors_outside_the_unit_ball_are_refused(bad: float, message: str) -> None:
    vectors = unit_vectors(20)
    vectors[7] *= bad
    with pytest.raises(DataError, match=message):
        fit([vectors], SMALL, STAMP)


def test_sub_spaces_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"num_subquantizers \(5\).*16"):
        fit([unit_vectors(20)], config(num_subquantizers=5), STAMP)


def test_samples_are_deterministic_and_hardly_move_when_rows_are_added() -> None:
    order = sampling_order(5000, seed=3)
    np.testing.assert_array_equal(np.sort(order), np.arange(5000))
    np.testing.assert_array_equal(order, sampling_order(5000, seed=3))
    grown = sampling_order(5500, seed=3)
    np.testing.assert_array_equal(grown[grown < 5000], order)
    assert len(np.intersect1d(order[:1000], sampling_order(5000, seed=4)[:1000])) < 500


def catalogue_codes(books: Codebooks, stamp: Stamp) -> CatalogueCodes:
    item = np.stack([books.encode(m, unit_vectors(30, seed=m)) for m in (1, 2, 3)], 1)
    return CatalogueCodes(item, books.encode(0, unit_vectors(9)), np.ones((30, 3), bool), np.ones(9, bool), stamp)


def test_codes_survive_a_round_trip_and_equal_content_gives_equal_bytes(fitted: Codebooks, tmp_path: Path) -> None:
    codes = catalogue_codes(fitted, STAMP)
    for name in ("a", "b"):
        save_codes(tmp_path / name, fitted, codes)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    read_books, read = load_codes(tmp_path / "a")
    assert read_books.stamp == read.stamp == STAMP
    for before, after in ((fitted, read_books), (codes, read)):
        for name, value in vars(before).items():
            if name != "stamp":
                np.testing.assert_array_equal(vars(after)[name], value)


def test_codes_are_not_saved_with_other_codebooks(fitted: Codebooks, tmp_path: Path) -> None:
    with pytest.raises(VersionMismatch, match=r"books-2.*books-1"):
        save_codes(tmp_path / "x", fitted, catalogue_codes(fitted, Stamp("books-2", STAMP.psu_fingerprint)))


def trained(store: Store, num_queries: int = 6) -> tuple[Artifact, Artifact]:
    """A model and a vectors artefact of a small world with missing channels."""
    tables = vector_tables(num_items=90, num_queries=num_queries)
    pairs = store.publish(store.draft("pairs", {}, {}))
    draft = store.draft("vectors", {"pairs": pairs}, {"text_encoder": "none", "lineage": []})
    save_file(vars(tables), draft.path / "vectors.safetensors")
    vectors = store.publish(draft)
    model_config = small_config()
    draft = store.draft("model", {"pairs": pairs, "vectors": vectors}, {"model": model_config.model_dump()})
    save_tensors(Ranker.build(model_config, tables, seeded()).state_dict(), draft.path / "model.safetensors")
    return store.publish(draft), vectors


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fit_codebooks, "BLOCK", 32)


@pytest.mark.usefixtures("ray_session", "small_blocks")
def test_the_job_publishes_the_same_codes_for_any_number_of_shards(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, vectors = trained(store)
    job = Settings(workdir=store.root, codebooks=SMALL)
    made = fit_codebooks.run(job, store, current=False)
    channels = load_ranker(model, vectors).channels
    units = unit_tables(channels)
    books, codes = load_codes(made.file("codebooks.safetensors"))
    assert made.manifest.metrics["bytes_per_behaviour"] == 4 * 4 / 2
    assert books.stamp == Stamp(made.version, channels.fingerprint())
    assert made.manifest.config["psu_fingerprint"] == channels.fingerprint()
    np.testing.assert_array_equal(codes.item_present_I3, units.item_present.numpy())
    assert made.manifest.metrics["channels"]["image"]["lossless"]
    for column in range(3):
        present = codes.item_present_I3[:, column]
        decoded = books.decode(column + 1, codes.item_code_I3S[present, column])
        error = ((decoded - units.item_unit[present, column].numpy()) ** 2).sum(1).mean()
        assert made.manifest.metrics["channels"][("text", "image", "attributes")[column]][
            "catalogue_distortion"
        ] == pytest.approx(error, abs=1e-6)

        taken = VectorTables.load(vectors).train_count[present] > 0
        seen = made.manifest.metrics["channels"][CHANNELS[column + 1]]["by_frequency"]
        assert seen["never"]["vectors"] == (~taken).sum()
        assert sum(bucket["vectors"] for bucket in seen.values()) == present.sum()
    assert made.manifest.metrics["channels"]["query"]["by_frequency"] == {}
    said = capsys.readouterr().out
    assert "fit-codebooks: text: codes lose " in said
    assert "distinct vectors have a centroid each, so codes lose nothing" in said

    again = Store(tmp_path / "again")
    trained(again)
    sharded = fit_codebooks.run(Settings(workdir=again.root, codebooks=config(num_shards=3)), again, current=False)
    digests = {hashlib.sha256(a.file("codebooks.safetensors").read_bytes()).hexdigest() for a in (made, sharded)}
    assert len(digests) == 1


@pytest.mark.usefixtures("ray_session", "small_blocks")
def test_a_rerun_finds_the_finished_codebooks_and_a_warm_start_reports_drift(store: Store) -> None:
    trained(store)
    job = Settings(workdir=store.root, codebooks=SMALL)
    first = fit_codebooks.run(job, store, current=False)
    assert fit_codebooks.run(job, store, current=False).manifest == first.manifest
    warm = fit_codebooks.run(job, store, warm_from=first, current=False)
    assert warm.version != first.version
    assert set(store.versions("codebooks")) == {first.version, warm.version}
    with pytest.raises(ArtifactError, match="nothing published"):
        store.current("codebooks")
    for report in warm.manifest.metrics["channels"].values():
        assert report["drift"]["all"]["points"] == report["vectors"]
        assert report["drift"]["new"]["points"] == 0
        assert report["drift"]["all"]["changed"] < 0.4


@pytest.mark.usefixtures("ray_session")
def test_the_job_works_on_a_catalogue_without_queries(store: Store) -> None:
    trained(store, num_queries=0)
    made = fit_codebooks.run(Settings(workdir=store.root, codebooks=SMALL), store, current=False)
    books, codes = load_codes(made.file("codebooks.safetensors"))
    assert made.manifest.metrics["queries"] == len(codes.query_code_QS) == books.num_centroids_M[0] == 0


@pytest.mark.usefixtures("ray_session", "small_blocks")
def test_the_job_fits_a_channel_to_its_rows_of_smallest_hash(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    model, vectors = trained(store)
    fitted_to: list[np.ndarray] = []
    monkeypatch.setattr(fit_codebooks, "fit", lambda samples, *rest: fitted_to.extend(samples) or fit(samples, *rest))
    # 20 of ~70 texts are in the first blocks of 32 rows; there are fewer images than that, so all rows are asked for them.
    job = Settings(workdir=store.root, codebooks=config(sample_items=20))
    fit_codebooks.run(job, store, current=False)
    units = unit_tables(load_ranker(model, vectors).channels)
    order = sampling_order(90, seed=0)
    for column in range(3):
        present = units.item_present[:, column].numpy()
        chosen = np.sort(order[present[order]][:20])
        np.testing.assert_allclose(fitted_to[column + 1], units.item_unit[chosen, column].numpy(), atol=1e-6)


@pytest.mark.usefixtures("ray_session", "small_blocks")
def test_the_job_warm_starts_rotated_codebooks_of_four_bits(store: Store) -> None:
    trained(store)
    job = Settings(workdir=store.root, codebooks=config(rotation="opq", num_centroids=8, num_shards=2))
    first = fit_codebooks.run(job, store, current=False)
    warm = fit_codebooks.run(job, store, warm_from=first, current=False)
    before, after = (load_codes(made.file("codebooks.safetensors"))[0] for made in (first, warm))
    assert first.manifest.metrics["channels"]["text"]["rotated"]
    assert before.rotation_Mdd.tobytes() == after.rotation_Mdd.tobytes()
    assert warm.manifest.metrics["channels"]["text"]["drift"]["all"]["changed"] < 0.02
