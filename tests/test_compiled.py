"""The compiled scorer gives the torch ranker's scores, for every model that it takes and any history and targets."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from seminar.artifacts import Artifact, Store
from seminar.bundle import Bundle
from seminar.config import ModelConfig
from seminar.history_search import key_space
from seminar.retrieval.key_store import open_shared
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


def test_long_histories_go_by_kept_packed_keys_and_merge_candidates_again(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("scorer", "compiled.ready", "compiled.scorer"):
        monkeypatch.setattr(f"seminar.{module}.FLOATS", 50)
    rng = np.random.default_rng(0)
    history, targets = some_history(rng, bundle, 700), some_targets(rng, bundle, 30, unseen=True)
    keys = open_shared(tmp_path, key_space(bundle), bundle.version, max_gib=0.1)
    scorer = TwoStageScorer(bundle, key_store=keys)
    ready = scorer.ready(replace(history, user_id="u"))
    assert ready.ready is not None
    assert ready.ready.key_Ld is None
    assert scorer.find(ready, targets) is not None
    expected = TwoStageScorer(bundle, "exact", compiled=False).score(history, targets).probability_T
    np.testing.assert_allclose(scorer.score(ready, targets).probability_T, expected, rtol=0, atol=1e-5)
