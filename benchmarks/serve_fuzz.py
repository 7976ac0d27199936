"""Hostile requests to a service that runs: no 5xx, no replica that dies, every refusal says what, got, expected and fix.

    seminar serve --workdir RUN &
    python -m benchmarks.serve_fuzz --url http://127.0.0.1:8000 [--requests 10000] [--soak-minutes 20] [--token-file FILE]

A fifth of the requests is drawn from the OpenAPI document (`pip install schemathesis`), valid and not; the others are good
requests bent by hand: types, sizes, NaN, broken UTF-8, nesting, content types, chunked bodies, headers, paths. The soak goes on
with those by hand; memory is what every replica of this machine holds in RAM of its own, read a few times on the way.
"""

import argparse
import json
import math
import random
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from benchmarks.common import Goal, publish, run
from benchmarks.hostile import good, nasty_body, pieces, raw, strange_path
from seminar.client import api
from serve.access import bearer

SEED = 20261129
BATCH = 25
JSON = {"content-type": "application/json"}
WARM = 0.1
"""Share of the requests after which memory is first read."""
FLAT = 1.02
"""Memory at the end of a soak by that after its first quarter, at most."""


@dataclass
class Seen:
    """What came back. untold: refusals without reasons; failed: 5xx and good requests refused, both with what was asked.
    by_serve: 500 of Ray Serve's own, before our code, for a header that is no UTF-8. died: replicas."""

    statuses: Counter[int] = field(default_factory=Counter)
    untold: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    by_serve: int = 0
    died: list[str] = field(default_factory=list)

    def take(self, asked: str, status: int, content: bytes) -> None:
        self.statuses[status] += 1
        bad = self.failed if status >= 500 else self.untold if status >= 400 and not _told(content) else None
        if bad is not None:
            bad.append(f"{status} for {asked[:200]!r}: {content[:300]!r}")


def _told(content: bytes) -> bool:
    with suppress(ValueError):
        errors = api.ErrorResponse.model_validate_json(content).errors
        return bool(errors) and all(e.what and e.got and e.expected and e.fix for e in errors)
    return False


def drawn(http: httpx.Client, url: str, count: int, seen: Seen) -> None:
    """`count` requests from the document, half of them valid by it."""
    import schemathesis
    from hypothesis import HealthCheck, Phase, given, seed, settings
    from hypothesis.errors import Unsatisfiable
    from schemathesis.core.result import Ok

    document = schemathesis.openapi.from_dict(http.get("/openapi.json").json())
    operations = [found.ok() for found in document.get_all_operations() if isinstance(found, Ok)]
    quick = settings(
        max_examples=max(1, count // (2 * len(operations))),
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    for operation in operations:
        for mode in schemathesis.GenerationMode:

            @seed(SEED)
            @quick
            @given(case=operation.as_strategy(generation_mode=mode))
            def ask(case: Any) -> None:
                answer = case.call(base_url=url, headers=dict(http.headers))
                seen.take(f"{case.method} {case.path}", answer.status_code, answer.content)

            with suppress(Unsatisfiable):
                ask()


def by_hand(http: httpx.Client, draw: random.Random, item: str, seen: Seen) -> None:
    """One request: good, bent, of another type, in pieces, or to somewhere else."""
    path, body = good(draw, item)
    content, headers, kind = json.dumps(body).encode(), dict(JSON), draw.random()
    if kind < 0.1:
        answer = http.post(path, content=content, headers=headers)
        if 400 <= answer.status_code < 500:
            seen.failed.append(f"{answer.status_code} for a good {path}: {answer.text[:300]}")
    elif kind < 0.7:
        content = nasty_body(draw, body)
        sent: Any = content if draw.random() < 0.8 else pieces(draw, content)
        answer = http.post(path, content=sent, headers=headers)
    elif kind < 0.8:
        strange = [
            "text/plain",
            "",
            "application/x-www-form-urlencoded",
            "multipart/form-data; boundary=x",
            "application/json;" * 50,
        ]
        headers["content-type"] = draw.choice(strange)
        headers |= {"x-request-id": draw.choice(["a b", "\u00e4" * 10, "x" * 5000, ""]), "accept-encoding": "x", "expect": ""}
        coding = draw.choice(["utf-8", "utf-8", "utf-8", "latin-1"])
        answer = http.post(path, content=content, headers=[(k.encode(), v.encode(coding)) for k, v in headers.items()])
        if coding == "latin-1" and headers["x-request-id"][:1] == "\u00e4" and answer.content == b"Internal Server Error":
            seen.by_serve += 1
            return
    else:
        answer = http.request(draw.choice(["GET", "GET", "GET", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH"]), strange_path(draw))
        if answer.request.method == "HEAD":
            # An answer to HEAD has no words.
            seen.take("HEAD", answer.status_code if answer.status_code >= 500 else 200, b"")
            return
    seen.take(f"{answer.request.method} {path} {content[:120]!r}", answer.status_code, answer.content)


def replicas(http: httpx.Client) -> dict[str, int]:
    """Replica to process."""
    return {state["replica"]: state["pid"] for state in http.get("/v1/bundle").json()["replicas"]}


def resident_mib(pids: dict[str, int]) -> dict[str, float]:
    """Resident memory of each replica that runs on this machine, without the pages of files it maps."""
    found = {}
    for replica, pid in pids.items():
        with suppress(OSError):
            status = Path(f"/proc/{pid}/status").read_text()
            found[replica] = int(status.split("RssAnon:")[1].split()[0]) / 1024
    return found


def attack(args: argparse.Namespace, http: httpx.Client, seen: Seen) -> dict[str, dict[str, float]]:
    """All requests; memory of the replicas at each stage."""
    draw, item = random.Random(SEED), http.get("/v1/items?limit=1").json()["items"][0]["item_id"]
    pids, memory = replicas(http), {}
    by_document = args.requests // 5

    def many(count: int, until: Callable[[], bool] = lambda: False) -> None:
        for number in range(count):
            by_hand(http, draw, item, seen)
            if number % BATCH == 0:
                raw(args.url, draw)
            if until():
                return

    many(int(WARM * args.requests))
    memory["warm"] = resident_mib(pids)
    drawn(http, args.url, by_document, seen)
    many(max(0, args.requests - seen.statuses.total()))
    memory["end"] = resident_mib(pids)
    began = time.monotonic()
    for quarter in range(1, 5) if args.soak_minutes else ():
        stop = began + 15 * args.soak_minutes * quarter
        many(10**9, lambda stop=stop: time.monotonic() > stop)
        memory[f"{args.soak_minutes * quarter / 4:g} min"] = resident_mib(pids)
    now = replicas(http)
    seen.died = [name for name, pid in pids.items() if now.get(name) != pid]
    return memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", required=True)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--soak-minutes", type=float, default=0.0)
    parser.add_argument("--token-file", type=Path)
    args = parser.parse_args()
    seen, began = Seen(), time.monotonic()
    with httpx.Client(base_url=args.url, timeout=60, headers=bearer(args.token_file)) as http:
        memory = attack(args, http, seen)
    print(f"{seen.statuses.total():,} answers in {time.monotonic() - began:.0f} s: {dict(sorted(seen.statuses.items()))}")
    for line in [*seen.failed, *seen.untold][:20]:
        print(f"BAD {line}")
    total = seen.statuses.total()
    refusals = sum(count for status, count in seen.statuses.items() if 400 <= status < 500)
    goals = [
        Goal("hostile requests answered", total, "requests", 10_000),
        Goal("of those refused with 4xx", refusals, "requests"),
        Goal("answers of 5xx by the service, and good requests refused", len(seen.failed), "answers", 0, False),
        Goal("500 by Ray Serve, before our code, for an x-request-id that is no UTF-8", seen.by_serve, "answers", 0, False),
        Goal("refusals without what, got, expected and fix", len(seen.untold), "answers", 0, False),
        Goal("replicas that died", len(seen.died), "", 0, False),
    ]
    for replica in memory["warm"]:
        for stage, resident in memory.items():
            goals.append(Goal(f"  replica {replica}: memory, {stage}", resident.get(replica, math.nan), "MiB"))
        if args.soak_minutes:
            quarter, _, _, end = (memory[stage].get(replica, math.nan) for stage in list(memory)[-4:])
            name = f"replica {replica}: memory at the end of the soak by that after its first quarter"
            goals.append(Goal(name, end / quarter, "x", FLAT, False))
            goals.append(Goal("  that is, an hour", (end - quarter) / (0.75 * args.soak_minutes / 60), "MiB"))
    publish("serve_fuzz", goals)


if __name__ == "__main__":
    run(main)
