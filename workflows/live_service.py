"""The running service as a refresh sees it: which bundle it serves, the swap, and real requests to compare with this process."""

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from seminar.bundle import Bundle
from seminar.client import api
from seminar.errors import explain
from seminar.nightly.refresh import Probe
from seminar.schema import NONE, TASKS
from seminar.scorer import ScoringHistory, Targets, TwoStageScorer
from serve.access import bearer
from serve.deploy import DeployError, Serve, served, swap

REQUESTS = 20
TARGETS = 20
"""Size of the comparison: small beside real traffic, large enough that every stage and both tasks take part."""
TOLERANCE = 1e-5
LONGEST = 10_000
"""Behaviours that GET /v1/users/{id}/history gives at most; longer histories are not compared."""
ATTEMPTS = 3
TOO_LONG = f"a history of more than {LONGEST:,} behaviours"
NOT_SENDABLE = "an id that no client could send"
CHANGING = "a history that changed at every attempt"


@dataclass(frozen=True)
class LiveService:
    """A service at `endpoint` under the Serve of `dashboard`, or (None) of the Ray session of this process."""

    endpoint: str
    dashboard: str | None
    token_file: Path | None = None

    def version(self) -> str:
        """The bundle in use. DeployError unless both the service and the Serve that would swap it answer."""
        try:
            Serve(self.dashboard).config()
        except Exception as error:
            where = f"Serve at {self.dashboard or 'this Ray'}"
            raise DeployError(explain(where, got=str(error), expected="an answer", fix="check refresh.dashboard")) from error
        return served(self.endpoint, self.token_file)["version"]

    def swap(self, bundle: str) -> int:
        """Swap in place and wait for all replicas; their number. Doing it again is harmless."""
        swap(self.dashboard, self.endpoint, bundle, token_file=self.token_file)
        # A replica that is still taking the config is not among those that answered; Serve knows when none is left.
        service = Serve(self.dashboard)
        service.wait_running([a["name"] for a in service.config()["applications"] if a["import_path"] == "serve.app:build"])
        states = served(self.endpoint, self.token_file)["replicas"]
        late = {str(state["bundle_version"]) for state in states} - {bundle}
        if late:
            raise DeployError(explain("swap", got=f"replicas of {', '.join(late)}", expected=bundle, fix="see GET /v1/bundle"))
        return len(states)

    def verify(self, bundle: Bundle, probes: Sequence[Probe]) -> dict[str, Any]:
        """Have the service score probes and compare with `bundle` in this process, on the histories that the service has.

        DeployError for another bundle's answer, scores further apart than TOLERANCE, or if nothing could be compared.
        """
        told = served(self.endpoint, self.token_file)
        scorer = TwoStageScorer(bundle, told["retriever"], told["overfetch"])
        differences: list[float] = []
        passed_over: Counter[str] = Counter({TOO_LONG: 0})
        for probe in probes:
            if len(differences) == REQUESTS:
                break
            found = self._difference(scorer, replace(probe, targets=_first(probe.targets, TARGETS)))
            if isinstance(found, str):
                passed_over[found] += 1
            else:
                differences.append(found)
        if not differences:
            why = ", ".join(f"{count} with {reason}" for reason, count in passed_over.items() if count)
            got = f"no request that could be compared ({why or 'no probes'})"
            what, fix = f"verifying bundle {bundle.version}", "raise refresh.probe_users"
            raise DeployError(explain(what, got=got, expected="at least one", fix=fix))
        return {"requests": len(differences), "largest_difference": max(differences), "passed_over": dict(passed_over)}

    def _difference(self, scorer: TwoStageScorer, probe: Probe) -> float | str:
        """Largest difference of one request's scores, or why they cannot be compared."""
        bundle, body = scorer.bundle, _body(scorer.bundle, probe)
        try:
            api.ScoreRequest.model_validate(body)
        except ValidationError:
            return NOT_SENDABLE
        for _ in range(ATTEMPTS):
            page = self._history(probe.user_id)
            if page["length"] > len(page["behaviours"]):
                return TOO_LONG
            stored = [b for b in page["behaviours"] if b["time_ms"] <= probe.targets.time_ms]
            answer = _call(f"{self.endpoint.rstrip('/')}/v1/score", self.token_file, body)
            if answer["bundle_version"] != bundle.version:
                got = f"an answer of bundle {answer['bundle_version']}"
                raise DeployError(explain("verifying", got=got, expected=bundle.version, fix="see GET /v1/bundle"))
            if answer["history_length"] != len(stored):
                continue  # a behaviour of the past came in between
            expected = scorer.score(_rows(bundle, stored), probe.targets).probability_T
            difference = float(np.abs(np.array(answer["scores"]) - expected).max())
            if not difference <= TOLERANCE:
                what, fix = f"scores for user {probe.user_id}", "check that both sides run the same release"
                raise DeployError(explain(what, got=f"a difference of {difference:.2g}", expected=f"{TOLERANCE:g}", fix=fix))
            return difference
        return CHANGING

    def _history(self, user_id: str) -> dict[str, Any]:
        url = f"{self.endpoint.rstrip('/')}/v1/users/{urllib.parse.quote(user_id, safe='')}/history?limit={LONGEST}"
        return _call(url, self.token_file) or {"length": 0, "behaviours": []}


def _body(bundle: Bundle, probe: Probe) -> dict[str, Any]:
    targets = [
        {"item_id": bundle.item_ids[item], **({} if query == NONE else {"query_id": bundle.query_ids[query]})}
        for item, query in zip(probe.targets.item_T.tolist(), probe.targets.query_T.tolist(), strict=True)
    ]
    task = TASKS[probe.targets.task]
    return {"user_id": probe.user_id, "targets": targets, "task": task, "time_ms": probe.targets.time_ms}


def _rows(bundle: Bundle, stored: Sequence[dict[str, Any]]) -> ScoringHistory:
    """Behaviours as the service told them, in the catalogue rows of `bundle`; what it does not know is left out."""
    item_L = bundle.item_row([b["item_id"] for b in stored])
    query_L = bundle.query_row([b["query_id"] or "" for b in stored])
    time_ms_L = np.array([b["time_ms"] for b in stored], np.int64)
    used = item_L != NONE
    return ScoringHistory(item_L[used], query_L[used], time_ms_L[used])


def _first(targets: Targets, count: int) -> Targets:
    return replace(targets, item_T=targets.item_T[:count], query_T=targets.query_T[:count])


def _call(url: str, token_file: Path | None, body: dict[str, Any] | None = None) -> Any:
    """The answer to a GET, or a POST of `body`; None for 404, DeployError for anything else that is no answer."""
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"content-type": "application/json", **bearer(token_file)})
    for attempt in range(ATTEMPTS):
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return None
            said = error.read().decode(errors="replace")[:300]
            if error.code != 503 or attempt + 1 == ATTEMPTS:
                raise DeployError(explain(url, got=f"{error.code} {said}", expected="200", fix="see its logs")) from error
        except (urllib.error.URLError, TimeoutError) as error:
            if attempt + 1 == ATTEMPTS:
                raise DeployError(explain(url, got=str(error), expected="an answer", fix="check refresh.endpoint")) from error
        time.sleep(1 + attempt)
    raise AssertionError("the last attempt returns or raises")
