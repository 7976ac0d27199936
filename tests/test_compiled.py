"""The compiled scorer gives the torch ranker's scores, for every model that it takes and any history and targets."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seminar.artifacts import Artifact, Store
from seminar.bundle import Bundle
from seminar.config import ModelConfig
from seminar.schema import CTR, PSR
from seminar.scorer import ScoringHistory, Targets, TwoStageScorer
from tests.bundles import MODEL, make_bundle, make_vectors

NOW_MS = 1_700_000_000_000
MODELS = {
    "plain": {},
    "behaviour": {"gate": "behaviour", "query_fit": True},
    "wide": {"dim": 48, "num_heads": 6, "top_k": 30, "hidden": (32,), "recent": 7, "taste": 9},
    "bare": {
        "cross_features": False, "trend_features": False, "simtier": False, "semantic_attention": False, "time_buckets": 0,
        "taste": 0, "recent": 0,
    },
    "few channels": {"channels": ("text", "attributes"), "gate": "behaviour", "simtier": False, "hidden": (32, 16, 8)},
    "one head": {"num_heads": 1, "channels": ("query", "image"), "semantic_attention": False, "learn_transform": False},
}  # fmt: skip


@pytest.fixture(scope="module")
def vectors(tiny_pairs: Artifact, tiny_store: Store) -> Artifact:
    return make_vectors(tiny_store, tiny_pairs)


@pytest.fixture(scope="module", params=MODELS)
def bundle(request: pytest.FixtureRequest, tiny_pairs: Artifact, tiny_store: Store, vectors: Artifact) -> Bundle:
    config = ModelConfig.model_validate({**MODEL.model_dump(), **MODELS[request.param]})
    return Bundle.load(make_bundle(tiny_store, tiny_pairs, vectors, config=config).path)


def some_history(rng: np.random.Generator, bundle: Bundle, length: int) -> ScoringHistory:
    items, queries = len(bundle.item_ids), len(bundle.query_ids)
    days = np.sort(rng.integers(0, rng.choice([1, 30, 4000]) * 86_400_000, length))[::-1]
    return ScoringHistory(rng.integers(0, items, length), rng.integers(-1, queries, length), NOW_MS - days)


def some_targets(rng: np.random.Generator, bundle: Bundle, count: int, unseen: bool) -> Targets:
    queries, new = len(bundle.query_ids), 3 if unseen else 0
    vector = rng.normal(size=(new, bundle.config.dim)).astype(np.float32)
    vector /= np.linalg.norm(vector, axis=1, keepdims=True)
    query = rng.integers(-1, queries + new, count)
    item = rng.integers(0, len(bundle.item_ids), count)
    return Targets(item, query, int(rng.choice([CTR, PSR])), NOW_MS + int(rng.integers(0, 10**10)), vector if unseen else None)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**32 - 1),
    length=st.sampled_from([0, 1, 4, 17, 90, 400]),
    count=st.sampled_from([1, 3, 50, 300]),
    unseen=st.booleans(),
)
def test_scores_equal_those_of_the_torch_ranker(bundle: Bundle, seed: int, length: int, count: int, unseen: bool) -> None:
    rng = np.random.default_rng(seed)
    history, targets = some_history(rng, bundle, length), some_targets(rng, bundle, count, unseen)
    compiled, torch_alone = TwoStageScorer(bundle, "auto"), TwoStageScorer(bundle, "exact", compiled=False)
    found = compiled.find(history, targets)
    assert found is not None, "it is the compiled scorer that is tested"
    expected = torch_alone.score(history, targets).probability_T
    np.testing.assert_allclose(compiled.rank_found(found).probability_T, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(compiled.score(compiled.ready(history), targets).probability_T, expected, rtol=0, atol=1e-5)


def test_histories_of_many_pairs_merge_candidates_again(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in ("ready", "scorer"):
        monkeypatch.setattr(f"seminar.compiled.{module}.FLOATS", 50)
    rng = np.random.default_rng(0)
    history, targets = some_history(rng, bundle, 700), some_targets(rng, bundle, 30, unseen=True)
    scorer = TwoStageScorer(bundle)
    ready = scorer.ready(history)
    assert ready.ready is not None
    assert ready.ready.key_Pd is None
    assert scorer.find(ready, targets) is not None
    expected = TwoStageScorer(bundle, "exact", compiled=False).score(history, targets).probability_T
    np.testing.assert_allclose(scorer.score(ready, targets).probability_T, expected, rtol=0, atol=1e-5)


def test_histories_full_of_repeats_keep_what_torch_keeps(bundle: Bundle) -> None:
    """Few pairs, each many times: of a pair that does not fit whole the newest are kept."""
    rng = np.random.default_rng(4)
    few = some_history(rng, bundle, 9)
    which = rng.integers(0, 9, 500)
    history = ScoringHistory(few.item_L[which], few.query_L[which], NOW_MS - np.arange(500)[::-1] * 3_600_000)
    targets, compiled, torch_alone = (
        some_targets(rng, bundle, 40, unseen=False),
        TwoStageScorer(bundle),
        TwoStageScorer(bundle, "exact"),
    )
    found, expected = compiled.find(history, targets), torch_alone.retrieve(history, targets)
    assert found is not None
    np.testing.assert_array_equal(np.sort(found.position_TK), np.sort(expected.position_TK))
    np.testing.assert_allclose(
        compiled.rank_found(found).probability_T, torch_alone.rank(targets, expected).probability_T, rtol=0, atol=1e-5
    )


def test_of_equal_keys_those_with_the_newest_behaviours_are_fetched(
    tiny_pairs: Artifact, tiny_store: Store, vectors: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More pairs have one key than are fetched: without the query channel one item under many queries."""
    config = ModelConfig.model_validate({**MODEL.model_dump(), "channels": ("text", "attributes"), "top_k": 4})
    bundle = Bundle.load(make_bundle(tiny_store, tiny_pairs, vectors, config=config).path)
    monkeypatch.setattr("seminar.compiled.scorer.SLACK", 0)
    query = np.arange(len(bundle.query_ids))
    assert len(query) > config.top_k
    # All queries once, then the first ones again: newest last.
    query_L = np.concatenate([query, query[:2]])
    item_L, time_ms_L = np.full(len(query_L), 7), NOW_MS - np.arange(len(query_L))[::-1] * 3_600_000
    history, targets = ScoringHistory(item_L, query_L, time_ms_L), some_targets(np.random.default_rng(2), bundle, 9, unseen=False)
    found = TwoStageScorer(bundle, "int8", overfetch=1.0).find(history, targets)
    assert found is not None
    newest = np.arange(len(query_L) - config.top_k, len(query_L))
    np.testing.assert_array_equal(found.position_TK, np.tile(newest, (9, 1)))
