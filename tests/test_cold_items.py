"""Items given by content: they score as the same item stored without ID and counts; known and cold ones go together."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from seminar.artifacts import Artifact, Store
from seminar.batching import Request, collate
from seminar.bundle import Bundle
from seminar.channels import ChannelEncoder
from seminar.content import Content
from seminar.ranker import Ranker, load_ranker
from seminar.schema import CTR, NONE, PSR
from seminar.scorer import ScoringHistory, Targets, TwoStageScorer
from tests.served_world import Service, World, open_service

LATER_MS = 1_700_000_000_000
USERS = ("u08", "u17", "u28", "nobody")


@pytest.fixture(scope="session")
def world(tiny_store: Store, tiny_pairs: Artifact) -> World:
    return World.of(tiny_store, tiny_pairs)


@pytest.fixture(scope="module")
def service(world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with open_service(world, tmp_path_factory.mktemp("cold")) as opened:
        yield opened


def content_of(items: pa.Table, item: str) -> dict[str, Any]:
    row = items.filter(pa.compute.equal(items["item_id"], item)).to_pylist()[0]
    return {name: row[name] for name in ("text", "category", "attributes") if row[name]}


def hidden(world: World, items: list[str]) -> Ranker:
    """The offline ranker of the first bundle with these items' IDs and counts hidden."""
    bundle = world.bundles[0]
    model, vectors = (world.store.open(kind, bundle.manifest.inputs[kind].version) for kind in ("model", "vectors"))
    ranker, rows = load_ranker(model, vectors), torch.from_numpy(Bundle.load(bundle.path).item_row(items))
    encoder, heads = ranker.channels, ranker.heads
    assert isinstance(encoder, ChannelEncoder)
    encoder.seen[rows] = False
    heads.train_count[rows] = 0
    heads.week_sum[torch.isin(heads.week_key // 2**32, rows)] = 0
    return ranker


def offline(world: World, ranker: Ranker, user: str, items: list[str], query: str | None) -> np.ndarray:
    bundle = Bundle.load(world.bundles[0].path)
    histories, row = world.user("u29" if user == "nobody" else user)
    request = Request(
        row=row,
        end=int(histories.lengths[row]),
        time_ms=LATER_MS,
        item_T=bundle.item_row(items),
        query_T=np.full(len(items), NONE if query is None else bundle.query_row([query])[0]),
        label_T=np.zeros(len(items), np.float32),
        task_T=np.full(len(items), CTR if query is None else PSR),
    )
    with torch.inference_mode():
        return torch.sigmoid(ranker.score(collate(histories, [request], 10**6))[0]).numpy()


def taken(world: World, user: str) -> set[int]:
    histories, row = world.user("u29" if user == "nobody" else user)
    return set(histories.item[histories.span(row)].tolist())


@pytest.mark.parametrize("query", [None, "q-tea"])
@pytest.mark.parametrize("user", USERS)
def test_item_by_content_scores_as_the_same_item_without_id_and_counts(
    world: World, service: Service, tiny_tables: dict[str, pa.Table], user: str, query: str | None
) -> None:
    ids, known = Bundle.load(world.bundles[0].path).item_ids, taken(world, user)
    described = set(tiny_tables["items"]["item_id"].to_pylist())
    items = [name for row, name in enumerate(ids) if row not in known and name in described][:12]
    asked = {} if query is None else {"query_id": query}
    targets = [{"item": content_of(tiny_tables["items"], item), **asked} for item in items]
    served = service.score(user_id=user, targets=targets, time_ms=LATER_MS)["scores"]
    assert np.allclose(served, offline(world, hidden(world, items), user, items, query), atol=1e-5)
    by_id = service.score(user_id=user, targets=[{"item_id": i, **asked} for i in items], time_ms=LATER_MS)["scores"]
    assert not np.allclose(served, by_id, atol=1e-3)


def test_item_that_nobody_took_scores_alike_by_id_and_by_content(service: Service, tiny_tables: dict[str, pa.Table]) -> None:
    content = content_of(tiny_tables["items"], "i-untouched")
    for user in USERS:
        targets = [{"item_id": "i-untouched"}, {"item": content}]
        by_id, by_content = service.score(user_id=user, targets=targets, time_ms=LATER_MS)["scores"]
        assert by_content == pytest.approx(by_id, abs=1e-5)


def test_known_and_cold_items_of_one_request_do_not_touch_each_other(service: Service, tiny_tables: dict[str, pa.Table]) -> None:
    content = [content_of(tiny_tables["items"], f"i{n:02d}") for n in (1, 2, 19)]
    known, cold = [{"item_id": f"i{n:02d}"} for n in range(20)], [{"item": one, "query": "black tea"} for one in content]
    for item in known:
        item["query"] = "black tea"
    alone = [service.score(user_id="u17", targets=part, time_ms=LATER_MS, task="psr")["scores"] for part in (known, cold)]
    mixed = [cold[0], *known[:10], cold[1], *known[10:], cold[2]]
    together = service.score(user_id="u17", targets=mixed, time_ms=LATER_MS, task="psr")["scores"]
    expected = [alone[1][0], *alone[0][:10], alone[1][1], *alone[0][10:], alone[1][2]]
    assert np.allclose(together, expected, atol=1e-5)


def test_what_the_catalogue_does_not_know_is_absent(service: Service) -> None:
    def score(**item: Any) -> float:
        return service.score(user_id="u17", targets=[{"item": item}], time_ms=LATER_MS)["scores"][0]

    tea = score(text="tea number 5", attributes=["brand=b0"])
    assert score(text="tea number 5", attributes=["brand=b0", "brand=unheard of", "colour=red"]) == tea
    assert score(text="tea number 5", attributes=["brand=b0"], category="unheard of") == tea
    assert score(text=" TEA  <b>number</b> 5", attributes=["brand=b0"] * 3) == tea
    assert score(text="tea number 5", attributes=["brand=b1"]) != tea
    assert score(text="tea number 5", attributes=["brand=b0"], category="tea") != tea


def test_cold_item_is_explained_like_any_other(service: Service) -> None:
    item = {"text": "tea number 5", "category": "tea"}
    body = {"user_id": "u17", "target": {"item": item, "query_id": "q-tea"}, "time_ms": LATER_MS}
    told = service.client.post("/v1/explain", json=body).json()
    assert told["target"] == {"item_id": None, "text": "tea number 5", "category": "tea", "query_id": "q-tea", "query": "tea"}
    scored = service.score(user_id="u17", targets=[body["target"]], time_ms=LATER_MS, explain=True)
    assert told["score"] == pytest.approx(scored["scores"][0], abs=1e-5)
    (same,) = scored["explanation"]
    assert (same["item_id"], same["text"]) == (None, "tea number 5")
    assert [b["item_id"] for b in same["behaviours"]] == [b["item_id"] for b in told["kept"]]
    assert told["gate"]["attributes"] > 0 == told["gate"]["image"]


@pytest.mark.parametrize(
    ("target", "what", "said"),
    [
        ({}, "targets[0]", "one of the two"),
        ({"item_id": "i01", "item": {"text": "tea"}}, "targets[0]", "one of the two"),
        ({"item": {}}, "targets[0].item", "a text"),
        ({"item": {"attributes": []}}, "targets[0].item", "a text"),
        ({"item": {"text": ""}}, "targets[0].item.text", ""),
        ({"item": {"txt": "tea"}}, "targets[0].item.txt", ""),
        ({"item": {"text": "tea", "image_vector": [1.0, 2.0]}}, "targets[0].item.image_vector", "0"),
        ({"item": {"text": "tea", "attributes": ["x=y"] * 101}}, "targets[0].item.attributes", "100"),
    ],
)
def test_content_that_is_none_is_told(service: Service, target: dict[str, Any], what: str, said: str) -> None:
    answer = service.client.post("/v1/score", json={"user_id": "u17", "targets": [target]})
    assert answer.status_code == 422, answer.text
    problem = answer.json()["errors"][0]
    assert problem["what"] == what
    assert said in problem["expected"]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999", "-1e400"])
def test_image_vector_of_no_numbers_is_refused(service: Service, number: str) -> None:
    content = f'{{"user_id": "u17", "targets": [{{"item": {{"image_vector": [0.5, {number}]}}}}]}}'
    answer = service.client.post("/v1/score", content=content, headers={"content-type": "application/json"})
    assert answer.status_code == 422, answer.text
    assert answer.json()["errors"][0]["what"].startswith("targets[0].item.image_vector")


def test_image_vectors_are_those_of_the_catalogue(world: World) -> None:
    """With a projection for images in place, a cold item's photograph is normalised and projected as the catalogue's are."""
    from dataclasses import replace

    contents = Bundle.load(world.bundles[0].path).item_contents
    generator = torch.Generator().manual_seed(3)
    contents = replace(contents, project_image=torch.randn(6, 16, generator=generator))
    vector = torch.randn(6, generator=generator).numpy()
    items = [Content(image=vector), Content(image=7 * vector), Content(text="tea"), Content(image=np.zeros(6))]
    unit, present = contents.encode(items, ("query", "text", "image", "attributes"), None)
    assert present.tolist() == [[False, True, False], [False, True, False], [False] * 3, [False] * 3]
    expected = torch.nn.functional.normalize(torch.from_numpy(vector)[None] @ contents.project_image)[0]
    assert torch.allclose(unit[0, 1], expected, atol=2e-3)
    assert torch.allclose(unit[0, 1], unit[1, 1], atol=1e-6)
    assert contents.encode(items, ("query", "text", "attributes"), None)[1].sum() == 0


def test_bundle_of_an_earlier_release_scores_and_refuses_cold_items(world: World, service: Service) -> None:
    files = service.engine.live.bundle.manifest.files
    content = files.pop("content.safetensors")
    try:
        answer = service.client.post("/v1/score", json={"user_id": "u17", "targets": [{"item": {"text": "tea"}}]})
        assert (answer.status_code, answer.json()["errors"][0]["what"]) == (409, "targets[0].item")
        assert service.score(user_id="u17", targets=[{"item_id": "i01"}])["scores"]
    finally:
        files["content.safetensors"] = content


def test_batch_answers_each_request_by_itself_and_by_one_bundle(world: World, service: Service) -> None:
    good = {"user_id": "u17", "targets": [{"item_id": "i01"}, {"item": {"text": "tea"}}], "time_ms": LATER_MS}
    requests = [
        good,
        {**good, "targets": []},
        {**good, "user_id": "nobody"},
        {**good, "targets": [{"item_id": "nothing"}]},
        "no request at all",
        {**good, "targets": [{"item_id": "i01"}] * 1001},
        {**good, "explain": True},
    ]
    told = service.client.post("/v1/score:batch", json={"requests": requests})
    assert told.status_code == 200, told.text
    results = told.json()["results"]
    assert [result["status"] for result in results] == [200, 422, 200, 422, 422, 413, 200]
    for request, result in zip(requests, results, strict=True):
        assert (result["response"] is None) == (result["status"] != 200) == (result["error"] is not None)
        if result["status"] == 200:
            assert isinstance(request, dict)
            assert result["response"]["scores"] == pytest.approx(service.score(**request)["scores"], abs=1e-6)
            assert result["response"]["bundle_version"] == told.json()["bundle_version"] == world.bundles[0].version
        else:
            assert all(all(problem.values()) for problem in result["error"]["errors"])
    assert results[1]["error"]["errors"][0]["what"] == "targets"
    for bad in ({"requests": []}, {"requests": [good] * 101}, {}, {"requests": good}):
        assert service.client.post("/v1/score:batch", json=bad).status_code == 422


def test_unseen_items_keep_a_whole_history_of_the_scorer(world: World) -> None:
    """The scorer itself, with more cold items than the catalogue has."""
    scorer = TwoStageScorer(Bundle.load(world.bundles[0].path))
    count = len(scorer.bundle.item_ids)
    items = [Content(text=f"tea number {n}", attributes=("brand=b0",)) for n in range(2 * count)]
    none = np.empty(0, np.int64)
    targets = Targets(
        count + np.arange(2 * count), np.full(2 * count, NONE), CTR, LATER_MS, unseen_items=scorer.unseen_items(items)
    )
    scores = scorer.score(ScoringHistory(none, none, none), targets).probability_T
    assert len(set(scores.round(6).tolist())) > count
    assert pq.read_metadata(scorer.bundle.path / "items.parquet").num_rows == count
