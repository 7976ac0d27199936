"""The whole system once, on real data: raw logs -> sequences -> models -> codes -> report -> served scores and recommendations.

Everything here is what a user runs job by job: the demo calls the jobs in order, then asks the running service like any client.
"""

import json
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from seminar.artifacts import Artifact, Store
from seminar.config import Settings
from seminar.evaluate.negatives import ItemPool
from seminar.evaluate.protocol import held_out_pairs, ranking_request
from seminar.schema import NONE
from seminar.sequences import read_histories
from serve.access import bearer
from serve.run import run as serve
from serve.run import until_interrupted
from workflows import (
    build_index,
    embed,
    evaluate,
    finetune,
    fit_codebooks,
    prepare,
    pretrain,
    pretrain_retriever,
    train_retriever,
)
from workflows.runtime import absolute, ray_session

NUM_STEPS = 10


@dataclass
class Steps:
    """Numbered headings, and how long each step took."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str, what: str) -> Iterator[None]:
        print(f"\n[{len(self.seconds) + 1}/{NUM_STEPS}] {name}: {what}", flush=True)
        began = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - began
        print(f"      done in {self.seconds[name]:.0f} s", flush=True)


@dataclass(frozen=True)
class Question:
    """A household's held-out purchase among others of its category, as a client would ask."""

    user_id: str
    item_ids: list[str]
    texts: list[str]
    query_id: str | None
    time_ms: int
    bought: int

    def body(self) -> dict[str, Any]:
        query = {} if self.query_id is None else {"query_id": self.query_id}
        targets = [{"item_id": item, **query} for item in self.item_ids]
        return {"user_id": self.user_id, "targets": targets, "time_ms": self.time_ms, "explain": True}


def run(settings: Settings, keep: bool = False, households: int | None = None) -> None:
    """Run every job, serve the result, score one household's candidates over HTTP and print why; `keep` leaves it running."""
    if households is not None:
        settings = settings.model_copy(update={"data": settings.data.model_copy(update={"max_users": households})})
    settings = absolute(settings)
    store, steps = Store(settings.workdir), Steps()
    limit = settings.data.max_users
    print("SEMINAR on Ray: lifelong multi-modal search and recommendation, end to end on this machine.")
    sample = "all users" if limit is None else f"a sample of {limit} users (--households N for another size)"
    print(f"Data: {settings.data.source}, {sample}.")
    with ray_session(settings.ray, dashboard=True):
        pairs, report = _learn(settings, store, steps)
        with steps.step("serve", "two-stage scorer (GSU over codes -> exact ESU) behind HTTP"):
            service = serve(settings, block=False)
        question = _question(pairs, settings)
        with steps.step("score", f"one household's candidates over {service.url}"):
            _ask(service.url, question)
        with steps.step("recommend", "the same household, out of the whole catalogue"):
            _recommend(service.url, question)
        _close(settings, steps, report, service.url)
        if keep:
            print("\nThe service stays up; Ctrl-C stops it.", flush=True)
            until_interrupted()
        # Leaving the session ends the service with it.


def _learn(settings: Settings, store: Store, steps: Steps) -> tuple[Artifact, Artifact]:
    with steps.step("prepare", "raw logs + promotions -> query-item pair sequences"):
        pairs = prepare.run(settings, store)
        m = pairs.manifest.metrics
        print(f"      {m['users']:,} users, {m['behaviours']:,} behaviours, {m['items']:,} items, queries {m['origins']}")
        print(f"      {sum(m['quarantined'].values()):,} rows in quarantine {m['quarantined']}")
    with steps.step("embed", "texts and photographs -> vectors; what is missing stays a mask"):
        print(f"      {_coverage(embed.run(settings, store))}")
    with steps.step("pretrain", "PSU: next pair, modality alignment, query-item relevance"):
        print(f"      {_losses(pretrain.run(settings, store))}")
    with steps.step("finetune", "GSU + ESU + CTR and PSR heads"):
        model = finetune.run(settings, store)
        print(f"      {_losses(model)}")
    with steps.step("fit-codebooks", "product quantisation of every channel, codes for the catalogue"):
        fit_codebooks.run(settings, store)
    with steps.step("retriever", "dual tower over content alone, and an index of the catalogue: who proposes what is ranked"):
        print(f"      {_losses(pretrain_retriever.run(settings, store))}")
        print(f"      {_losses(train_retriever.run(settings, store))}")
        build_index.run(settings, store)
    with steps.step("evaluate", "held-out baskets against floors that any model must clear"):
        report = evaluate.run(settings, store)
    return pairs, report


def _question(pairs: Artifact, settings: Settings) -> Question:
    """The held-out purchase with the longest history of the first shard that has a query."""
    items, queries = (pq.read_table(pairs.file(f"{name}.parquet")) for name in ("items", "queries"))
    histories = read_histories(pq.read_table(pairs.file("shards/part-00000.parquet")))
    config = settings.evaluate.model_copy(update={"num_negatives": 19})
    pool = ItemPool.of(items)
    asked = [found for held in held_out_pairs(histories, config) if (found := ranking_request(histories, pool, held, config))]
    searched = [found for found in asked if found[0].query_T[0] != NONE] or asked
    request, place = max(searched, key=lambda found: found[0].end)
    query = int(request.query_T[0])
    return Question(
        user_id=histories.user_id[request.row],
        item_ids=items["item_id"].take(request.item_T).to_pylist(),
        texts=items["text"].take(request.item_T).to_pylist(),
        query_id=None if query == NONE else queries["query_id"][query].as_py(),
        time_ms=request.time_ms,
        bought=int(place),
    )


def _ask(url: str, question: Question) -> None:
    answer = _post(f"{url}/v1/score", question.body())
    scores = np.array(answer["scores"])
    order = np.argsort(-scores, kind="stable")
    print(f"      household {question.user_id}, query {question.query_id!r}, {answer['history_used']:,} behaviours of history")
    times = answer["timings_ms"]
    print(f"      bundle {answer['bundle_version']}, GSU {times['retrieve']:.1f} ms, ESU {times['rank']:.1f} ms")
    for rank, target in enumerate(order[:5], 1):
        mark = "  <- bought" if target == question.bought else ""
        print(f"      {rank}. {scores[target]:.3f}  {question.texts[target]}{mark}")
    print(f"      the item really bought is number {int(np.flatnonzero(order == question.bought)[0]) + 1} of {len(scores)}")
    best = answer["explanation"][0]
    print("      why the first one: the behaviours the GSU kept that the ESU looked at most")
    for kept in sorted(best["behaviours"], key=lambda kept: -kept["attention"])[:5]:
        day = time.strftime("%Y-%m-%d", time.gmtime(kept["time_ms"] / 1000))
        name = kept["text"] or kept["item_id"]
        print(f"        {day}  attention {kept['attention']:.2f}  relevance {kept['relevance']:+.2f}  {name}")


def _recommend(url: str, question: Question) -> None:
    query = {} if question.query_id is None else {"query_id": question.query_id}
    body = {"user_id": question.user_id, "n": 5, "time_ms": question.time_ms, **query}
    answer = _post(f"{url}/v1/recommend", body)
    times, found = answer["timings_ms"], ", ".join(f"{source} {count}" for source, count in answer["by_source"].items())
    print(f"      {answer['candidates']} candidates ({found}) in {times['propose']:.1f} ms, ranked in {times['total']:.1f} ms")
    for rank, item in enumerate(answer["items"], 1):
        mark = "  <- bought" if item["item_id"] == question.item_ids[question.bought] else ""
        print(f"      {rank}. {item['score']:.3f}  {item['text'] or item['item_id']} ({', '.join(item['sources'])}){mark}")
        for past in item["because"][:1]:
            day = time.strftime("%Y-%m-%d", time.gmtime(past["time_ms"] / 1000))
            print(f"           because of {day}: {past['text'] or past['item_id']}")


def _close(settings: Settings, steps: Steps, report: Artifact, url: str) -> None:
    total = sum(steps.seconds.values())
    print(f"\nAll of it took {total:.0f} s: " + ", ".join(f"{name} {seconds:.0f}" for name, seconds in steps.seconds.items()))
    print(f"Report:  {report.path}/report.md (with report.json and plots)")
    print(f"Try it:  . .venv/bin/activate; seminar demo --keep    then open {url}/docs")
    print(
        f"Results of every step are versioned folders under {settings.workdir}; run again and finished steps are found at once."
    )


def _coverage(vectors: Artifact) -> str:
    coverage = vectors.manifest.metrics["coverage"]
    shares = ", ".join(f"{name} {found['items']:.0%}" for name, found in coverage.items() if "items" in found)
    return f"share of items that have it: {shares}"


def _losses(artifact: Artifact) -> str:
    metrics = artifact.manifest.metrics
    losses = ", ".join(f"{name} {value:.3f}" for name, value in metrics["final"].items())
    return f"{metrics['steps']} steps, {metrics['pairs_per_s']:,.0f} pairs/s; at the end: {losses}"


def _post(url: str, body: dict[str, Any]) -> dict[str, Any]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json", **bearer()})
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)
