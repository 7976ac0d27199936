"""Bundle and two-stage scorer: offline scores, unseen queries, refusal of mixtures."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from seminar.artifacts import Artifact, Store
from seminar.batching import Request, collate
from seminar.bundle import Bundle, assemble
from seminar.config import CodebookConfig
from seminar.errors import ArtifactError, ConfigError, VersionMismatch
from seminar.history_search import key_space
from seminar.ranker import load_ranker
from seminar.retrieval.key_store import open_shared
from seminar.retrieval.regime import Method
from seminar.schema import CTR, PSR
from seminar.scorer import ScoringHistory, Targets, TwoStageScorer
from seminar.sequences import Histories, read_histories
from tests.bundles import MODEL, make_bundle, make_codebooks, make_model, make_vectors


@pytest.fixture(scope="module")
def history(tiny_pairs: Artifact) -> Histories:
    return read_histories(pq.read_table(tiny_pairs.file("shards/part-00000.parquet")))


@pytest.fixture(scope="module")
def vectors(tiny_pairs: Artifact, tiny_store: Store) -> Artifact:
    return make_vectors(tiny_store, tiny_pairs)


@pytest.fixture(scope="module", params=["constant", "target", "behaviour"])
def bundle(request: pytest.FixtureRequest, tiny_pairs: Artifact, tiny_store: Store, vectors: Artifact) -> Bundle:
    config = MODEL.model_copy(update={"gate": request.param, "query_fit": request.param == "behaviour"})
    return Bundle.load(make_bundle(tiny_store, tiny_pairs, vectors, config=config).path)


def offline(bundle: Bundle, store: Store, histories: Histories, row: int, targets: Targets) -> np.ndarray:
    """The trained ranker itself, encoder and all, on a padded batch."""
    refs = bundle.manifest.inputs
    ranker = load_ranker(store.open("model", refs["model"].version), store.open("vectors", refs["vectors"].version))
    count = len(targets.item_T)
    request = Request(
        row=row,
        end=int(histories.lengths[row]),
        time_ms=targets.time_ms,
        item_T=targets.item_T,
        query_T=targets.query_T,
        label_T=np.zeros(count, np.float32),
        task_T=np.full(count, targets.task),
    )
    return torch.sigmoid(ranker.score(collate(histories, [request], 100_000)))[0].numpy()


def scoring_history(histories: Histories, row: int) -> ScoringHistory:
    span = histories.span(row)
    return ScoringHistory(histories.item[span].astype(np.int64), histories.query[span].astype(np.int64), histories.time_ms[span])


def long_history(histories: Histories) -> ScoringHistory:
    """The longest history, several times over: longer than anything fetched whole."""
    past = scoring_history(histories, int(histories.lengths.argmax()))
    times = -(-60 // len(past.item_L))
    return ScoringHistory(np.tile(past.item_L, times), np.tile(past.query_L, times), np.repeat(past.time_ms_L, times))


def some_targets(task: int, num_queries: int) -> Targets:
    query = np.arange(12) % num_queries if task == PSR else np.full(12, -1)
    return Targets(np.arange(12), query, task, 1_700_000_000_000)


@pytest.mark.parametrize("task", [CTR, PSR])
def test_exact_scores_equal_the_offline_ranker(bundle: Bundle, tiny_store: Store, history: Histories, task: int) -> None:
    scorer, targets = TwoStageScorer(bundle, "exact"), some_targets(task, 5)
    for row in (int(history.lengths.argmax()), int(history.lengths.argmin())):
        got = scorer.score(scoring_history(history, row), targets).probability_T
        np.testing.assert_allclose(got, offline(bundle, tiny_store, history, row, targets), rtol=0, atol=1e-5)


@pytest.mark.parametrize("method", ["exact", "merged", "int8", "pq"])
def test_every_method_gives_the_scores_of_exact_retrieval(bundle: Bundle, history: Histories, method: Method) -> None:
    past, targets = long_history(history), some_targets(PSR, 5)
    if method == "merged" and bundle.config.gate == "target":
        with pytest.raises(ConfigError, match="'target'"):
            TwoStageScorer(bundle, method)
        return
    expected = TwoStageScorer(bundle, "exact").score(past, targets)
    got = TwoStageScorer(bundle, method, overfetch=3.0 if method == "int8" else 16.0).score(past, targets)
    assert got.choice.method == method
    np.testing.assert_allclose(got.probability_T, expected.probability_T, rtol=0, atol=1e-5)


def test_packed_keys_of_a_user_are_kept_and_used(bundle: Bundle, history: Histories, tmp_path: Path) -> None:
    past, targets = long_history(history), some_targets(CTR, 5)
    store = open_shared(tmp_path / "keys", key_space(bundle), bundle.version, max_gib=0.1)
    assert open_shared(tmp_path / "keys", key_space(bundle), bundle.version) is store
    # Codes of 16 centroids, which a gate of the target needs, are coarse: they re-score more.
    scorer = TwoStageScorer(bundle, overfetch=16.0, key_store=store)
    expected = TwoStageScorer(bundle, "exact").score(past, targets).probability_T
    for _ in range(2):
        scored = scorer.score(replace(past, user_id="u"), targets)
        kept = (scored.choice.method, scored.choice.reason) == ("int8", "packed keys of this history are kept")
        assert kept == (bundle.config.gate != "target"), "a target that weighs the channels needs them apart"
        np.testing.assert_allclose(scored.probability_T, expected, rtol=0, atol=1e-5)
    assert scorer.score(past, targets).choice.reason != "packed keys of this history are kept", "nobody is named"


def test_stores_of_older_bundles_but_one_are_deleted(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "history").mkdir()
    for version in ("a", "b", "c", "d"):
        open_shared(tmp_path, key_space(bundle), version, max_gib=0.1).close()
    assert {path.name for path in tmp_path.iterdir()} == {"history", "packed-keys"}, "what is not ours stays"
    left = {path.name for path in (tmp_path / "packed-keys").iterdir()}
    assert {"c", "d"} <= left
    assert "a" not in left


def test_user_without_history_is_scored(bundle: Bundle) -> None:
    empty = ScoringHistory(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.int64))
    methods: tuple[Method, ...] = ("exact", "int8", "pq")
    for retriever in methods:
        scored = TwoStageScorer(bundle, retriever).score(empty, some_targets(CTR, 5), explain=True)
        assert np.isfinite(scored.probability_T).all()
        assert scored.explanation is not None
        assert (scored.explanation.position_TK == -1).all()


def test_explanation_adds_up(bundle: Bundle, history: Histories) -> None:
    row = int(history.lengths.argmax())
    scored = TwoStageScorer(bundle, "exact").score(scoring_history(history, row), some_targets(PSR, 5), explain=True)
    why = scored.explanation
    assert why is not None
    kept = why.position_TK >= 0
    np.testing.assert_allclose(why.channel_TKM.sum(-1)[kept], why.relevance_TK[kept], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(why.attention_THK.sum(-1), 1, rtol=1e-5)
    assert why.position_TK.max() < history.lengths[row]


def test_unseen_query_text_scores_like_the_same_text_in_the_catalogue(bundle: Bundle, history: Histories) -> None:
    scorer, row = TwoStageScorer(bundle, "exact"), int(history.lengths.argmax())
    known = bundle.query_row_by_text(["  TEA "])
    assert known[0] >= 0
    items = np.arange(6)
    seen = Targets(items, np.full(6, known[0]), PSR, 1_700_000_000_000)
    unseen = Targets(items, np.full(6, len(bundle.query_ids)), PSR, 1_700_000_000_000, scorer.unseen_queries(["tea"]))
    past = scoring_history(history, row)
    np.testing.assert_allclose(scorer.score(past, unseen).probability_T, scorer.score(past, seen).probability_T, atol=1e-5)


def test_bundle_refuses_codes_of_another_model(tiny_pairs: Artifact, tiny_store: Store, vectors: Artifact) -> None:
    first, second = (make_model(tiny_store, tiny_pairs, vectors, seed=seed) for seed in (0, 1))
    with pytest.raises(VersionMismatch, match="run fit-codebooks"):
        assemble(tiny_store, second, make_codebooks(tiny_store, first, vectors), tiny_pairs, vectors)


def test_bundle_refuses_codes_swapped_on_disk(tiny_pairs: Artifact, store: Store, tiny_store: Store, vectors: Artifact) -> None:
    bundle = make_bundle(tiny_store, tiny_pairs, vectors)
    copied = shutil.copytree(bundle.path, store.root / "bundle")
    model = tiny_store.open("model", bundle.manifest.inputs["model"].version)
    other = make_codebooks(tiny_store, model, vectors, CodebookConfig(num_subquantizers=4, num_centroids=16, iterations=2))
    shutil.copy(other.file("codebooks.safetensors"), copied / "codebooks.safetensors")
    with pytest.raises(ArtifactError, match="sha256"):
        Bundle.load(copied)


def test_model_refuses_vectors_of_other_encoders(tiny_pairs: Artifact, tiny_store: Store, vectors: Artifact) -> None:
    model = make_model(tiny_store, tiny_pairs, vectors)
    upgraded = vectors.manifest.config | {"text_version": "9.9"}
    strange = type(vectors)(vectors.path, vectors.manifest.model_copy(update={"config": upgraded, "version": "upgraded"}))
    with pytest.raises(VersionMismatch, match="upgraded"):
        load_ranker(model, strange)


def test_model_refuses_other_vectors(tiny_pairs: Artifact, tiny_store: Store, vectors: Artifact) -> None:
    model = make_model(tiny_store, tiny_pairs, vectors)
    other = {"config": {"lineage": []}, "version": "other", "files": {}}
    strange = type(vectors)(vectors.path, vectors.manifest.model_copy(update=other))
    with pytest.raises(VersionMismatch, match="other"):
        load_ranker(model, strange)
