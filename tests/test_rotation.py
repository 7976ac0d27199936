from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from seminar.codes.codebook import CatalogueCodes, Codebooks, Stamp, load_codes, save_codes
from seminar.codes.codebook_fit import fit, in_process
from seminar.codes.kmeans import SCALE, split_spaces
from seminar.codes.rotation import (
    balanced_rotation,
    cross_moment,
    is_identity,
    learn_rotation,
    procrustes,
    rotate,
    rotated_statistics,
    second_moment,
)
from seminar.config import CodebookConfig

STAMP = Stamp("books-1", "f" * 64)
OPQ = CodebookConfig(num_subquantizers=4, num_centroids=16, iterations=6, num_shards=1, rotation="opq")


def correlated(count: int, seed: int = 0, dim: int = 16) -> np.ndarray:
    """Unit vectors whose sub-spaces depend on each other and whose directions differ in size."""
    draw, mixing = np.random.default_rng(seed), np.random.default_rng(50).standard_normal((dim, dim))
    vectors = (draw.standard_normal((count, dim)) * np.exp(-np.arange(dim) / 4)) @ np.linalg.qr(mixing)[0]
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)


def random_rotation(dim: int = 16, seed: int = 0) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((dim, dim)))[0].astype(np.float32)


@pytest.mark.parametrize("num_shards", [3, 7, 40])
def test_rotated_codebooks_are_bitwise_equal_for_any_number_of_shards(num_shards: int) -> None:
    vectors = [np.concatenate([correlated(600, seed=m), correlated(600, seed=m)[:11]]) for m in range(2)]
    whole, reports = fit(vectors, OPQ, STAMP)
    sharded, sharded_reports = fit(vectors, OPQ.model_copy(update={"num_shards": num_shards}), STAMP)
    assert whole.rotation_Mdd.tobytes() == sharded.rotation_Mdd.tobytes()
    assert whole.centroid_MSCw.tobytes() == sharded.centroid_MSCw.tobytes()
    assert reports == sharded_reports
    assert reports[0].rotated


def test_rotation_lowers_the_error_where_sub_spaces_depend_on_each_other() -> None:
    train, unseen = correlated(3000), correlated(2000, seed=1)
    plain, _ = fit([train], OPQ.model_copy(update={"rotation": "none"}), STAMP)
    rotated, _ = fit([train], OPQ, STAMP)
    assert rotated.quantise(0, unseen)[1].mean() < 0.5 * plain.quantise(0, unseen)[1].mean()


def test_more_rounds_never_raise_the_error() -> None:
    vectors = correlated(1500)
    losses = []
    for rounds in (0, 1, 2, 4, 8):
        rotation, centroid = learn_rotation(in_process(vectors, 3), vectors, np.arange(16), 4, rounds)
        losses.append(rotated_statistics(vectors, rotation, centroid).error)
    assert all(later <= earlier * (1 + 1e-6) for earlier, later in pairwise(losses))
    assert losses[-1] < losses[0]


def test_learnt_rotations_are_orthogonal_and_errors_are_those_of_decoded_vectors() -> None:
    books, (report,) = fit([correlated(900)], OPQ, STAMP)
    rotation = books.rotation_Mdd[0].astype(np.float64)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(16), atol=1e-6)
    vectors = correlated(300, seed=2)
    code, error = books.quantise(0, vectors)
    np.testing.assert_allclose(error, ((books.decode(0, code) - vectors) ** 2).sum(1), atol=1e-5)
    assert report.distortion == pytest.approx(
        ((books.decode(0, books.encode(0, correlated(900))) - correlated(900)) ** 2).sum(1).mean(), rel=1e-4
    )


def test_scoring_rotated_vectors_against_centroids_is_scoring_decoded_keys() -> None:
    books, _ = fit([correlated(400, seed=m) for m in range(4)], OPQ, STAMP)
    probe = np.random.default_rng(0).standard_normal((5, 4, 16)).astype(np.float32)
    turned = books.rotated(probe)
    for channel in range(4):
        code = books.encode(channel, correlated(50, seed=channel))
        centroid = books.centroid_MSCw[channel][np.arange(4), code].reshape(50, 16)
        expected = probe[:, channel].astype(np.float64) @ books.decode(channel, code).T.astype(np.float64)
        np.testing.assert_allclose(turned[:, channel] @ centroid.T, expected, atol=1e-5)


def test_without_rotation_nothing_is_changed_by_a_bit() -> None:
    books, _ = fit([correlated(400, seed=m) for m in range(4)], OPQ.model_copy(update={"rotation": "none"}), STAMP)
    probe = np.random.default_rng(0).standard_normal((5, 4, 16)).astype(np.float32)
    assert all(map(is_identity, books.rotation_Mdd))
    assert books.rotated(probe).tobytes() == probe.tobytes()


def test_lossless_channels_are_not_rotated() -> None:
    vectors = correlated(10)
    books, (report,) = fit([vectors], OPQ, STAMP)
    assert (report.lossless, report.rotated) == (True, False)
    assert books.decode(0, books.encode(0, vectors)).tobytes() == vectors.tobytes()


def test_a_warm_start_keeps_the_rotation_it_finds() -> None:
    for before, after in (("opq", "none"), ("none", "opq"), ("opq", "opq")):
        stale, _ = fit([correlated(700)], OPQ.model_copy(update={"rotation": before}), STAMP)
        grown = np.concatenate([correlated(700), correlated(20, seed=4)])
        warm, (report,) = fit([grown], OPQ.model_copy(update={"rotation": after}), STAMP, warm=stale)
        assert warm.rotation_Mdd.tobytes() == stale.rotation_Mdd.tobytes()
        assert report.rotated == (before == "opq")


def test_a_rotated_code_does_not_depend_on_the_other_vectors() -> None:
    books, _ = fit([correlated(700)], OPQ, STAMP)
    vectors = correlated(600, seed=5)
    together = books.encode(0, vectors)
    np.testing.assert_array_equal(np.concatenate([books.encode(0, vectors[i : i + 1]) for i in range(30)]), together[:30])
    np.testing.assert_array_equal(books.encode(0, vectors[::-1]), together[::-1])


def test_rotating_is_a_matrix_product() -> None:
    vectors, rotation = correlated(333), random_rotation()
    np.testing.assert_allclose(rotate(vectors, rotation), vectors.astype(np.float64) @ rotation, atol=1e-6)


def test_moments_equal_float64_sums() -> None:
    vectors, rotation = correlated(500), random_rotation()
    centroid = split_spaces(rotate(vectors[:16], rotation), 4).swapaxes(0, 1).copy()
    books = Codebooks(centroid[None], np.array([16]), rotation[None], STAMP)
    quantised = books.decode(0, books.encode(0, vectors)).astype(np.float64) @ rotation
    np.testing.assert_allclose(cross_moment(vectors, rotation, centroid) / SCALE, vectors.T @ quantised, atol=2e-3)
    np.testing.assert_allclose(second_moment(vectors) / SCALE, vectors.T.astype(np.float64) @ vectors, atol=2e-3)


@pytest.mark.parametrize("rank", [16, 5])
def test_procrustes_equals_the_singular_value_decomposition(rank: int) -> None:
    draw = np.random.default_rng(1)
    cross = draw.standard_normal((16, rank)) @ draw.standard_normal((rank, 16))
    found = procrustes(np.rint(cross * SCALE).astype(np.int64), random_rotation(), 1).astype(np.float64)
    left, size, right = np.linalg.svd(cross)
    np.testing.assert_allclose(found @ found.T, np.eye(16), atol=1e-6)
    assert (found * cross).sum() == pytest.approx(size.sum(), rel=1e-6)
    if rank == 16:
        np.testing.assert_allclose(found, left @ right, atol=1e-4)


def test_balanced_rotation_shares_out_the_principal_directions() -> None:
    vectors = correlated(4000)
    turned = rotate(vectors, balanced_rotation(second_moment(vectors), 4)).astype(np.float64)
    moment = turned.T @ turned
    np.testing.assert_allclose(moment - np.diag(np.diag(moment)), 0, atol=1e-3 * moment.max())
    product = np.log(np.diag(moment)).reshape(4, 4).sum(1)
    unbalanced = np.log(np.sort(np.diag(moment)).reshape(4, 4)).sum(1)
    assert np.ptp(product) < 0.2 * np.ptp(unbalanced)


def test_rotations_survive_a_round_trip_and_a_file_without_any_has_none(tmp_path: Path) -> None:
    for rotation in ("opq", "none"):
        books, _ = fit([correlated(400, seed=m) for m in range(4)], OPQ.model_copy(update={"rotation": rotation}), STAMP)
        item = np.stack([books.encode(m, correlated(30, seed=m)) for m in (1, 2, 3)], 1)
        codes = CatalogueCodes(item, books.encode(0, correlated(9)), np.ones((30, 3), bool), np.ones(9, bool), STAMP)
        save_codes(tmp_path / rotation, books, codes)
        assert load_codes(tmp_path / rotation)[0].rotation_Mdd.tobytes() == books.rotation_Mdd.tobytes()
    assert (tmp_path / "none").stat().st_size < (tmp_path / "opq").stat().st_size
