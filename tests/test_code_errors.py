import sys
from typing import Any

import numpy as np
import pytest

from seminar.codes.codebook import Stamp, encode_block
from seminar.codes.codebook_fit import fit
from seminar.codes.error_report import BUCKETS, ErrorByFrequency, losses, sentence
from seminar.config import CodebookConfig
from seminar.errors import ConfigError
from tests.test_codebook import unit_vectors

STAMP = Stamp("books-1", "f" * 64)
SMALL = CodebookConfig(num_subquantizers=4, num_centroids=16, iterations=6, num_shards=1)


def test_errors_by_frequency_equal_a_count_by_hand_and_add_up() -> None:
    count = np.array([0, 1, 2, 9, 10, 99, 100, 7, 0])
    present = np.array([True] * 8 + [False])
    error = np.arange(9, dtype=np.float32)
    found = ErrorByFrequency.of(count, present, error).summary()
    assert {name: (part["vectors"], part["distortion"]) for name, part in found.items()} == {
        "never": (1, 0),
        "once": (1, 1),
        "2-9": (3, (2 + 3 + 7) / 3),
        "10-99": (2, 4.5),
        "100+": (1, 6),
    }
    parts = [ErrorByFrequency.of(count[s], present[s], error[s]) for s in (slice(0, 4), slice(4, 4), slice(4, 9))]
    assert (parts[0] + parts[1] + parts[2]).summary() == found
    assert ErrorByFrequency.of(count[:1], present[:1], error[:1]).summary()["once"] == {"vectors": 0, "distortion": None}


def test_losses_are_those_of_decoded_vectors_and_add_up_over_blocks() -> None:
    books, _ = fit([unit_vectors(400, seed=m) for m in range(4)], SMALL, STAMP)
    old, _ = fit([unit_vectors(400, seed=m) for m in range(4)], SMALL.model_copy(update={"seed": 1}), STAMP)
    unit = np.stack([unit_vectors(60, seed=9 + m) for m in range(3)], 1)
    present = np.random.default_rng(0).random((60, 3)) < 0.7
    count = np.random.default_rng(1).integers(0, 200, 60)

    def measured(rows: slice, first_new: int) -> list[Any]:
        error = encode_block(books, (1, 2, 3), unit[rows], present[rows])[1]
        return losses(books, old, (1, 2, 3), unit[rows], present[rows], error, first_new, count[rows])

    whole = measured(slice(0, 60), 50)
    for column, (first, second) in enumerate(zip(measured(slice(0, 20), 50), measured(slice(20, 60), 30), strict=True)):
        both, here = first + second, present[:, column]
        found, expected = both.summary(), whole[column].summary()
        assert found["drift"]["all"] == pytest.approx(expected["drift"]["all"])
        assert found["drift"]["new"]["points"] == here[50:].sum()
        decoded = books.decode(column + 1, books.encode(column + 1, unit[here, column]))
        error = ((decoded - unit[here, column]) ** 2).sum(1)
        assert found["catalogue_distortion"] == pytest.approx(error.mean(), rel=1e-4)
        often = count[here] >= 100
        assert found["by_frequency"]["100+"]["distortion"] == pytest.approx(error[often].mean(), rel=1e-4)
        assert sum(found["by_frequency"][name]["vectors"] for name in BUCKETS) == here.sum()


def test_the_report_says_in_words_what_codes_lose() -> None:
    never = {"vectors": 5, "distortion": 0.04}
    report: dict[str, Any] = {
        "vectors": 9,
        "lossless": False,
        "distinct": 9,
        "catalogue_distortion": 0.036,
        "dead": 0,
        "duplicates": 0,
        "by_frequency": {"never": never, "once": {"vectors": 0, "distortion": None}},
        "drift": {},
    }
    assert sentence("text", report) == (
        "text: codes lose 3.60 % of a vector's squared length (items taken in training never 4.00 %)"
    )
    warm = report | {"by_frequency": {}, "drift": {"all": {"changed": 0.012}}, "dead": 2}
    assert sentence("query", warm) == (
        "query: codes lose 3.60 % of a vector's squared length; 2 dead and 0 duplicate centroids; 98.8 % of codes as before"
    )
    assert sentence("image", report | {"lossless": True}).endswith(
        "9 distinct vectors have a centroid each, so codes lose nothing"
    )
    assert sentence("image", report | {"vectors": 0}) == "image: no item has it"


def test_faiss_trains_codebooks_as_good_as_the_exact_ones() -> None:
    pytest.importorskip("faiss")
    vectors = [unit_vectors(3000, clusters=200), unit_vectors(10)]
    exact, _ = fit(vectors, SMALL, STAMP)
    books, reports = fit(vectors, SMALL.model_copy(update={"trainer": "faiss"}), STAMP)
    unseen = unit_vectors(2000, seed=1, clusters=200)
    assert books.quantise(0, unseen)[1].mean() < 1.02 * exact.quantise(0, unseen)[1].mean()
    assert reports[0].distortion == pytest.approx(books.quantise(0, vectors[0])[1].mean(), rel=1e-5)
    assert reports[1].lossless


def test_a_warm_start_is_exact_whatever_the_trainer() -> None:
    vectors = [unit_vectors(900)]
    stale, _ = fit(vectors, SMALL, STAMP)
    grown = [np.concatenate([vectors[0], unit_vectors(40, seed=3)])]
    made = [fit(grown, SMALL.model_copy(update={"trainer": t}), STAMP, warm=stale)[0] for t in ("exact", "faiss")]
    assert made[0].centroid_MSCw.tobytes() == made[1].centroid_MSCw.tobytes()


def test_a_trainer_that_is_not_installed_is_told_in_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ConfigError, match=r"codebooks.trainer.*faiss.*extra `cpu`"):
        fit([unit_vectors(300)], SMALL.model_copy(update={"trainer": "faiss"}), STAMP)
