"""What does /v1/recommend cost over HTTP, stage by stage, beside /v1/score of as many candidates?

    python -m benchmarks.recommend [--config configs/retriever.toml] [--users 100] [--candidates 200]

Serves the bundle in use of that config (`seminar build-index` puts the index into it) on this machine, fused, and asks for real
users: the longest histories and a random sample. Both requests go in turns over one kept connection; the score request holds the
very items that the recommendation ranked, with the same query.
"""

import argparse
import http.client
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from benchmarks.common import Goal, publish, run
from seminar.artifacts import Store
from seminar.config import load_settings
from seminar.evaluate.protocol import held_out_pairs
from seminar.schema import NONE
from seminar.train.build import shard_paths
from seminar.train.lanes import read_shards
from serve.run import run as serve
from workflows.runtime import absolute, ray_session

STAGES = ("history", "propose", "retrieve", "rank", "total")
ROUNDS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/retriever.toml"))
    parser.add_argument("--users", type=int, default=100)
    parser.add_argument("--candidates", type=int, default=200)
    own = parser.parse_args()
    settings = absolute(load_settings(own.config))
    store = Store(settings.workdir)
    users = {
        "histories of 3,000 and more": _users(settings, store, own.users, longest=True),
        "users at random": _users(settings, store, own.users, longest=False),
    }
    with ray_session(settings.ray, dashboard=True):
        service = serve(settings, block=False)
        connection = http.client.HTTPConnection(settings.serve.host, settings.serve.port, timeout=60)
        items = json.loads(_get(connection, "/v1/bundle"))["items"]
        rows = [goal for name, asked in users.items() for goal in goals(connection, name, asked, own.candidates, items)]
        service.stop()
    publish("recommend", rows)


def _users(settings: Any, store: Store, count: int, *, longest: bool) -> list[dict[str, Any]]:
    """Requests as a client would send them: held-out moments, with the query of what was taken."""
    pairs = store.open("pairs")
    histories, queries = read_shards(shard_paths(pairs)), pq.read_table(pairs.file("queries.parquet"))["query_id"]
    held = held_out_pairs(histories, settings.evaluate)
    rng = np.random.default_rng(0)
    chosen = [pair for pair in held if pair.start >= 3000] if longest else [held[i] for i in rng.permutation(len(held))]
    asked = []
    for pair in chosen[:count]:
        row = int(histories.offsets[pair.row]) + pair.position
        query = int(histories.query[row])
        asked.append(
            {
                "user_id": histories.user_id[pair.row],
                "time_ms": int(histories.time_ms[row]) - 1,
                **({} if query == NONE else {"query_id": queries[query].as_py()}),
            }
        )
    return asked


def goals(
    connection: http.client.HTTPConnection, name: str, users: Sequence[dict[str, Any]], candidates: int, items: int
) -> Iterator[Goal]:
    """p50 of both, their ratio, and each stage."""
    both: list[tuple[float, float]] = []
    stages: dict[str, list[list[float]]] = {"recommend": [], "score": []}
    lengths = []
    for round_ in range(ROUNDS + 1):
        for user in users:
            whole = (
                _post(connection, "/v1/recommend", {**user, "n": candidates, "candidates": candidates})[1] if not round_ else None
            )
            if whole is not None:
                user["targets"] = [_target(item["item_id"], user) for item in whole["items"]]
                lengths.append(whole["history_used"])
                continue
            plain = {key: value for key, value in user.items() if key != "targets"}
            one, answer = _post(connection, "/v1/recommend", {**plain, "candidates": candidates})
            scored = {"user_id": user["user_id"], "time_ms": user["time_ms"], "targets": user["targets"]}
            other, score = _post(connection, "/v1/score", scored)
            both.append((one, other))
            stages["recommend"].append([answer["timings_ms"][stage] for stage in STAGES])
            stages["score"].append([score["timings_ms"].get(stage, 0.0) for stage in STAGES])
    where = f"{name} ({len(users)}, median {int(np.median(lengths)):,} behaviours), {candidates} candidates of {items:,} items"
    recommend, score = np.median(np.array(both), axis=0) * 1e3
    yield Goal(f"/v1/recommend by /v1/score, p50, {where}", float(recommend / score), "x", 2.0, at_least=False)
    for label, value in (("/v1/recommend", recommend), ("/v1/score", score)):
        yield Goal(f"  {label}, p50 over HTTP", float(value), "ms")
    for path, found in stages.items():
        for stage, value in zip(STAGES, np.median(np.array(found), axis=0), strict=True):
            if value:
                yield Goal(f"  /v1/{path}, {stage}", float(value), "ms")


def _target(item_id: str, user: dict[str, Any]) -> dict[str, str]:
    return {"item_id": item_id, **({"query_id": user["query_id"]} if "query_id" in user else {})}


def _post(connection: http.client.HTTPConnection, path: str, body: dict[str, Any]) -> tuple[float, dict[str, Any]]:
    began = time.perf_counter()
    connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
    response = connection.getresponse()
    content = response.read()
    seconds = time.perf_counter() - began
    if response.status != 200:
        raise RuntimeError(f"{path} answered {response.status}: {content[:500].decode()}")
    return seconds, json.loads(content)


def _get(connection: http.client.HTTPConnection, path: str) -> bytes:
    connection.request("GET", path)
    return connection.getresponse().read()


if __name__ == "__main__":
    run(main)
