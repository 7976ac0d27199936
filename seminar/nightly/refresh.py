"""The gates of a nightly refresh: is the night's data whole, and how well do the candidate's codes serve real requests.

The gates ask the very scorer that serves, with and without codes, so they see what users would. Probes are held-out requests of
the new log; the same ones, as far as its catalogue reaches, are put to the bundle in use.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from seminar.bundle import Bundle
from seminar.config import EvaluateConfig, RefreshConfig
from seminar.errors import ArtifactError, explain
from seminar.evaluate.metrics import rank_counts
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
    positive: int
    """Place of the held-out item among the targets; NONE where a bundle does not know it."""

    def within(self, bundle: Bundle) -> "Probe | None":
        """The part whose rows `bundle` has, as its service would see it; None if nothing is left to score or to search."""
        h, t, num_queries = self.history, self.targets, len(bundle.query_ids)
        used, known = h.item_L < len(bundle.item_ids), t.item_T < len(bundle.item_ids)
        if not used.any() or not known.any():
            return None
        query_L, query_T = (np.where(query < num_queries, query, NONE) for query in (h.query_L, t.query_T))
        history = ScoringHistory(h.item_L[used], query_L[used], h.time_ms_L[used])
        targets = replace(t, item_T=t.item_T[known], query_T=query_T[known])
        positive = int(known[: self.positive].sum()) if known[self.positive] else NONE
        return replace(self, history=history, targets=targets, positive=positive)


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
            (request, place), first = drawn, int(histories.offsets[held.row])
            seen = slice(first, first + request.end)
            columns = (histories.item[seen], histories.query[seen], histories.time_ms[seen])
            targets = Targets(request.item_T, request.query_T, int(request.task_T[0]), request.time_ms)
            item_L, query_L, time_ms_L = (column.astype(np.int64) for column in columns)
            history = ScoringHistory(item_L, query_L, time_ms_L)
            probes.append(Probe(histories.user_id[held.row], history, targets, place))
            if len(probes) == count:
                return probes
    return probes


@dataclass(frozen=True)
class Measured:
    """Means over probes. recall: share of the K most relevant behaviours that codes with re-scoring find; recall_before: the same
    of the bundle in use. score_change: |probability by codes - probability by exact retrieval|. searched: probes whose history
    is longer than what codes over-fetch, the only ones that can lose anything. not_finite: scores that are no numbers.
    coverage_drop: fall of the share of known rows that have a channel, the worst one. quarantined: share of rejected rows.
    rank, rank_before: mean reciprocal rank of the held-out item under both bundles, among the targets that both know, over the
    `ranked` probes whose held-out item both know. index_recall: share of what exact search could return that the item index does;
    None where there is no index."""

    probes: int
    searched: int
    recall: float
    recall_before: float
    score_change: float
    not_finite: int
    coverage_drop: float = 0.0
    quarantined: float = 0.0
    ranked: int = 0
    rank: float = 1.0
    rank_before: float = 1.0
    index_recall: float | None = None


def measure(candidate: Bundle, in_use: Bundle, probes: Sequence[Probe], overfetch: float, quarantined: float = 0.0) -> Measured:
    """Ask both bundles the probes by codes and exactly; ArtifactError if there is no probe."""
    if not probes:
        what = f"probes for bundle {candidate.version}"
        raise ArtifactError(explain(what, got="none", expected="users with a held-out request", fix="check prepare.holdout"))
    exact, coded = TwoStageScorer(candidate, "exact"), TwoStageScorer(candidate, "pq", overfetch)
    in_use_exact, in_use_coded = TwoStageScorer(in_use, "exact"), TwoStageScorer(in_use, "pq", overfetch)
    recall, change, not_finite, recall_before, ranks = [], [], 0, [], []
    for probe in probes:
        found = [scorer.retrieve(probe.history, probe.targets) for scorer in (exact, coded)]
        truth_T, guess_T = (exact.rank(probe.targets, retrieved).probability_T for retrieved in found)
        recall.append(found_share(*found))
        change.append(float(np.abs(guess_T - truth_T).mean()))
        not_finite += int((~np.isfinite([truth_T, guess_T])).sum())
        part = probe.within(in_use)
        if part is None:
            continue
        found = [scorer.retrieve(part.history, part.targets) for scorer in (in_use_exact, in_use_coded)]
        recall_before.append(found_share(*found))
        if part.positive != NONE:
            before_T = in_use_coded.rank(part.targets, found[1]).probability_T
            both_T = guess_T[probe.targets.item_T < len(in_use.item_ids)]
            ranks.append([reciprocal_rank(score_T, part.positive) for score_T in (both_T, before_T)])
    rank, rank_before = np.mean(ranks, axis=0).tolist() if ranks else (1.0, 1.0)
    return Measured(
        probes=len(probes),
        searched=sum(len(probe.history.item_L) > overfetch * candidate.config.top_k for probe in probes),
        recall=float(np.mean(recall)),
        recall_before=float(np.mean(recall_before)) if recall_before else 1.0,
        score_change=float(np.mean(change)),
        not_finite=not_finite,
        coverage_drop=coverage_drop(candidate, in_use),
        quarantined=quarantined,
        ranked=len(ranks),
        rank=rank,
        rank_before=rank_before,
    )


def coverage_drop(candidate: Bundle, in_use: Bundle) -> float:
    """By how much the share of queries with a vector, or of items with a text, image or attributes, fell: the worst of the four.

    Over the rows both bundles have, so that new items without content are no fall.
    """
    drops = [0.0]
    for name in ("query_present", "item_present"):
        before = getattr(in_use.units, name)
        after = getattr(candidate.units, name)[: len(before)]
        if len(before):
            drops.append(float((before.float().mean(0) - after.float().mean(0)).max()))
    return max(drops)


def reciprocal_rank(score_T: Float[ndarray, " T"], positive: int) -> float:
    """1 / rank of the target at `positive`, its mean over the places that equals share; 0 if a score is no number."""
    if not np.isfinite(score_T).all():
        return 0.0
    above, tied = rank_counts(score_T, positive)
    return float((1 / np.arange(above + 1, above + tied + 2)).mean())


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
    return float((guess_TK >= truth_TK.min(1, keepdims=True) - slack_T1).mean())


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
    fall = max(measured.rank_before - measured.rank, 0.0)
    index = [] if measured.index_recall is None else [measured.index_recall]
    return [
        *(Gate("recall of the item index", recall, "at least", config.min_index_recall) for recall in index),
        Gate(f"recall@{top_k} of codes", measured.recall, "at least", config.min_recall),
        Gate(f"drop of recall@{top_k} below the bundle in use", drop, "at most", config.max_recall_drop),
        Gate("mean change of probabilities by codes", measured.score_change, "at most", config.max_score_change),
        Gate("scores that are no numbers", float(measured.not_finite), "at most", 0.0),
        Gate("fall of a channel's coverage of known rows", measured.coverage_drop, "at most", config.max_coverage_drop),
        Gate("share of rows in quarantine", measured.quarantined, "at most", config.max_quarantined),
        Gate("fall of the held-out items' mean reciprocal rank", fall, "at most", config.max_rank_drop),
    ]
