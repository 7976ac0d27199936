"""The gates of a nightly refresh: is the night's data whole, and how well do the candidate's codes serve real requests.

The gates ask the very scorer that serves, with and without codes, so they see what users would. Probes are held-out requests of
the new log; the same ones, as far as its catalogue reaches, are put to the bundle in use.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from seminar.bundle import Bundle
from seminar.config import EvaluateConfig, RefreshConfig
from seminar.errors import ArtifactError, explain
from seminar.evaluate.negatives import ItemPool
from seminar.evaluate.protocol import held_out_pairs, ranking_request
from seminar.hashing import mix64, stable_hash
from seminar.schema import NONE
from seminar.scorer import Retrieved, ScoringHistory, Targets, TwoStageScorer
from seminar.sequences import Histories


@dataclass(frozen=True)
class Probe:
    """A real request: a held-out pair among its negatives, against the user's history at that moment, in catalogue rows."""

    user_id: str
    history: ScoringHistory
    targets: Targets

    def within(self, bundle: Bundle) -> "Probe | None":
        """The part whose rows `bundle` has, as its service would see it; None if nothing is left to score or to search."""
        h, t, num_queries = self.history, self.targets, len(bundle.query_ids)
        used, known = h.item_L < len(bundle.item_ids), t.item_T < len(bundle.item_ids)
        if not used.any() or not known.any():
            return None
        query_L, query_T = (np.where(query < num_queries, query, NONE) for query in (h.query_L, t.query_T))
        history = ScoringHistory(h.item_L[used], query_L[used], h.time_ms_L[used])
        return replace(self, history=history, targets=replace(t, item_T=t.item_T[known], query_T=query_T[known]))


def choose_probes(shards: Iterable[Histories], pool: ItemPool, config: EvaluateConfig, count: int) -> list[Probe]:
    """Held-out requests of `count` users with a history, or of all there are; the choice depends on users and seed alone.

    Shards hold users by hash, so the first ones are as good a sample as any, and no more are read than needed.
    """
    config = config.model_copy(update={"one_per_user": True})
    probes: list[Probe] = []
    for histories in shards:
        order = np.argsort(mix64(stable_hash(histories.user_id)), kind="stable")
        for held in held_out_pairs(histories, config, order):
            drawn = ranking_request(histories, pool, held, config) if held.start else None
            if drawn is None:
                continue
            request, first = drawn[0], int(histories.offsets[held.row])
            seen = slice(first, first + request.end)
            columns = (histories.item[seen], histories.query[seen], histories.time_ms[seen])
            targets = Targets(request.item_T, request.query_T, int(request.task_T[0]), request.time_ms)
            history = ScoringHistory(*(column.astype(np.int64) for column in columns))
            probes.append(Probe(histories.user_id[held.row], history, targets))
            if len(probes) == count:
                return probes
    return probes


@dataclass(frozen=True)
class Measured:
    """Means over probes. recall: share of the K most relevant behaviours that codes with re-scoring find; recall_before: the same
    of the bundle in use. score_change: |probability by codes - probability by exact retrieval|. searched: probes whose history
    is longer than what codes over-fetch, the only ones that can lose anything. not_finite: scores that are no numbers.
    coverage_drop: fall of the share of known items that have a channel, the worst one. quarantined: share of rejected rows."""

    probes: int
    searched: int
    recall: float
    recall_before: float
    score_change: float
    not_finite: int
    coverage_drop: float = 0.0
    quarantined: float = 0.0


def measure(candidate: Bundle, in_use: Bundle, probes: Sequence[Probe], overfetch: int, quarantined: float = 0.0) -> Measured:
    """Ask both bundles the probes by codes and exactly; ArtifactError if there is no probe."""
    if not probes:
        what = f"probes for bundle {candidate.version}"
        raise ArtifactError(explain(what, got="none", expected="users with a held-out request", fix="check prepare.holdout"))
    exact, coded = TwoStageScorer(candidate, "exact"), TwoStageScorer(candidate, "pq", overfetch)
    recall, change, not_finite = [], [], 0
    for probe in probes:
        found = [scorer.retrieve(probe.history, probe.targets) for scorer in (exact, coded)]
        truth_T, guess_T = (exact.rank(probe.targets, retrieved).probability_T for retrieved in found)
        recall.append(found_share(*found))
        change.append(float(np.abs(guess_T - truth_T).mean()))
        not_finite += int((~np.isfinite([truth_T, guess_T])).sum())
    exact, coded = TwoStageScorer(in_use, "exact"), TwoStageScorer(in_use, "pq", overfetch)
    known = [part for probe in probes if (part := probe.within(in_use))]
    before = [found_share(*(scorer.retrieve(p.history, p.targets) for scorer in (exact, coded))) for p in known]
    return Measured(
        probes=len(probes),
        searched=sum(len(probe.history.item_L) > overfetch * candidate.config.top_k for probe in probes),
        recall=float(np.mean(recall)),
        recall_before=float(np.mean(before)) if before else 1.0,
        score_change=float(np.mean(change)),
        not_finite=not_finite,
        coverage_drop=coverage_drop(candidate, in_use),
        quarantined=quarantined,
    )


def coverage_drop(candidate: Bundle, in_use: Bundle) -> float:
    """By how much the share of items with a text, image or attributes fell, over the items both bundles have."""
    before, after = in_use.units.item_present, candidate.units.item_present[: len(in_use.units.item_present)]
    return float((before.float().mean(0) - after.float().mean(0)).max().clamp_min(0))


def quarantined_share(metrics: Mapping[str, Any]) -> float:
    """Rejected rows of all rows, from the metrics of a `pairs` artefact."""
    rejected = sum(metrics["quarantined"].values())
    return rejected / max(rejected + metrics["behaviours"] + metrics["exposures"], 1)


def found_share(exact: Retrieved, coded: Retrieved) -> float:
    """Share of the exact top K that `coded`, whose relevance is re-scored exactly, has found; equals of the K-th count too."""
    truth_TK, guess_TK = exact.relevance_TK, coded.relevance_TK
    kept = min(exact.total_length, truth_TK.shape[1])
    truth_TK, guess_TK = truth_TK[:, :kept], guess_TK[:, :kept]
    slack_T1 = 1e-5 * np.abs(truth_TK).max(1, keepdims=True)
    return float((guess_TK >= truth_TK[:, -1:] - slack_T1).mean())


@dataclass(frozen=True)
class Gate:
    """One condition for publishing. bound: "at least" or "at most" the limit; a value that is no number never passes."""

    name: str
    value: float
    bound: str
    limit: float

    @property
    def passed(self) -> bool:
        return self.value >= self.limit if self.bound == "at least" else self.value <= self.limit

    @property
    def sentence(self) -> str:
        return f"{self.name} is {self.value:.4g}, not {self.bound} {self.limit:.4g}"


def judge(measured: Measured, config: RefreshConfig, top_k: int) -> list[Gate]:
    """All gates of a candidate."""
    drop = max(measured.recall_before - measured.recall, 0.0)
    return [
        Gate(f"recall@{top_k} of codes", measured.recall, "at least", config.min_recall),
        Gate(f"drop of recall@{top_k} below the bundle in use", drop, "at most", config.max_recall_drop),
        Gate("mean change of probabilities by codes", measured.score_change, "at most", config.max_score_change),
        Gate("scores that are no numbers", float(measured.not_finite), "at most", 0.0),
        Gate("fall of a channel's coverage of known items", measured.coverage_drop, "at most", config.max_coverage_drop),
        Gate("share of rows in quarantine", measured.quarantined, "at most", config.max_quarantined),
    ]
