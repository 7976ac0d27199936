"""Requests whose right answers are known, sent from several threads while something happens to the service.

Every answer is compared with the scores of the very bundle that it names, so a score computed from two bundles at once would be
found. Raw traffic sends nothing again: what fails, failed. Traffic through the client library fails where that gives up.
"""

import http.client
import json
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow.parquet as pq
from numpy import ndarray

from seminar.artifacts import Artifact, Store
from seminar.bundle import Bundle
from seminar.client import api
from seminar.client.errors import ServiceError, Unreachable
from seminar.client.http import Client
from seminar.client.retries import Patience
from seminar.evaluate.protocol import held_out_pairs
from seminar.schema import CTR, NONE
from seminar.scorer import ScoringHistory, Targets, TwoStageScorer
from seminar.train.build import shard_paths
from seminar.train.lanes import read_shards

TIMEOUT_S = 60
TOLERANCE = 1e-4
"""An 8-bit search may keep another one of two all but equally relevant behaviours; other bundles differ by far more."""


@dataclass(frozen=True)
class Ask:
    """A score request, and its scores by bundle version."""

    body: dict[str, Any]
    scores: Mapping[str, ndarray]


@dataclass(frozen=True)
class Answered:
    """One request: seconds at which it was sent (time.monotonic) and that it took; error is None if it was right."""

    sent_s: float
    took_s: float
    version: str | None
    error: str | None


def asks_of(settings: Any, bundles: Sequence[Artifact], users: int, targets: int) -> list[Ask]:
    """Requests at real held-out moments of random users, with targets drawn from the catalogue; scored by each bundle."""
    store = Store(settings.workdir)
    histories = read_shards(shard_paths(store.open("pairs")))
    held = held_out_pairs(histories, settings.evaluate)
    draw = np.random.default_rng(0)
    search = settings.serve.retriever, settings.serve.overfetch
    scorers = {bundle.version: TwoStageScorer(Bundle.load(bundle.path), *search) for bundle in bundles}
    ids = next(iter(scorers.values())).bundle.item_ids
    asks = []
    for at in draw.permutation(len(held))[:users].tolist():
        pair = held[at]
        span = histories.span(pair.row)
        time_ms = int(histories.time_ms[span][pair.position]) - 1
        seen = histories.time_ms[span] <= time_ms
        item_L, query_L, time_ms_L = (column[span][seen] for column in (histories.item, histories.query, histories.time_ms))
        history = ScoringHistory(item_L, query_L, time_ms_L)
        item_T = draw.choice(len(ids), targets, replace=False)
        rows = Targets(item_T, np.full(targets, NONE), CTR, time_ms)
        body = {
            "user_id": histories.user_id[pair.row],
            "time_ms": time_ms,
            "task": "ctr",
            "targets": [{"item_id": ids[row]} for row in item_T.tolist()],
        }
        asks.append(Ask(body, {version: scorer.score(history, rows).probability_T for version, scorer in scorers.items()}))
    return asks


def query_ids(store: Store) -> list[str]:
    """Ids of the catalogue's queries by row."""
    return pq.read_table(store.open("pairs").file("queries.parquet"), columns=["query_id"])["query_id"].to_pylist()


@dataclass
class Traffic:
    """`threads` connections, each asking as soon as it was answered, for the length of a `with`; pause_s between two asks.

    library: ask through the client library, which sends again what nobody answered.
    """

    url: str
    asks: Sequence[Ask]
    threads: int = 2
    pause_s: float = 0.0
    library: bool = False
    answered: list[Answered] = field(default_factory=list)

    def __enter__(self) -> "Traffic":
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(i,), daemon=True) for i in range(self.threads)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(TIMEOUT_S)

    def between(self, begin_s: float, end_s: float) -> list[Answered]:
        """Requests that were in flight at any time between the two."""
        return [one for one in self.answered if one.sent_s < end_s and one.sent_s + one.took_s > begin_s]

    def _run(self, first: int) -> None:
        with _Library(self.url) if self.library else _Raw(self.url) as way:
            number = first
            while not self._stop.is_set():
                ask, began = self.asks[number % len(self.asks)], time.monotonic()
                version, error = way.ask(ask)
                self.answered.append(Answered(began, time.monotonic() - began, version, error))
                number += self.threads
                if self.pause_s:
                    self._stop.wait(self.pause_s)


class _Raw:
    """One connection, opened again after it broke."""

    def __init__(self, url: str) -> None:
        address = urlsplit(url)
        self._path = f"{address.path}/v1/score"
        self._connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=TIMEOUT_S)

    def __enter__(self) -> "_Raw":
        return self

    def __exit__(self, *error: object) -> None:
        self._connection.close()

    def ask(self, ask: Ask) -> tuple[str | None, str | None]:
        """The version of the bundle that answered, and what was wrong."""
        headers = {"content-type": "application/json", "x-session-id": ask.body["user_id"]}
        try:
            self._connection.request("POST", self._path, json.dumps(ask.body), headers)
            response = self._connection.getresponse()
            content = response.read()
        except (OSError, http.client.HTTPException) as problem:
            self._connection.close()
            return None, repr(problem)
        if response.status != 200:
            return None, f"status {response.status}: {content[:200].decode(errors='replace')}"
        told = json.loads(content)
        return told["bundle_version"], _wrong(ask, told["bundle_version"], told["scores"])


class _Library:
    """A client of its own."""

    def __init__(self, url: str) -> None:
        self._client = Client(url, patience=Patience(timeout_s=10, deadline_s=TIMEOUT_S))

    def __enter__(self) -> "_Library":
        return self

    def __exit__(self, *error: object) -> None:
        self._client.close()

    def ask(self, ask: Ask) -> tuple[str | None, str | None]:
        """As `_Raw.ask`."""
        try:
            told = self._client.score(api.ScoreRequest.model_validate(ask.body))
        except (ServiceError, Unreachable) as error:
            return None, str(error)
        return told.bundle_version, _wrong(ask, told.bundle_version, told.scores)


def _wrong(ask: Ask, version: str, scores: Sequence[float]) -> str | None:
    """How the answer differs from what this bundle says; None if it does not."""
    if version not in ask.scores:
        return f"bundle {version}, which was never offered"
    difference = float(np.abs(np.array(scores) - ask.scores[version]).max())
    return None if difference <= TOLERANCE else f"scores of no bundle: {difference:.2g} from those of {version}"


def p99_ms(answered: Sequence[Answered]) -> float:
    """Milliseconds; NaN of nothing."""
    return float(np.percentile([1e3 * one.took_s for one in answered], 99)) if answered else float("nan")


def other_bundle(store: Store, config: Path) -> tuple[Artifact, Artifact]:
    """The bundle in use, and the newest of the others; the sentence of the error says how to make one."""
    from seminar.errors import ArtifactError, explain

    current = store.open("bundle")
    others = [version for version in store.versions("bundle") if version != current.version]
    if not others:
        fix = f"make one: seminar finetune --config {config} --finetune.seed 1; seminar fit-codebooks with the same flag"
        raise ArtifactError(explain("bundles", got="one", expected="two, to swap between", fix=fix))
    return current, store.open("bundle", others[-1])
