"""Counts of all users to what a buyer reads: figures of every way of choosing, and what each loses against exact retrieval."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from benchmarks.common import Goal
from benchmarks.end_model_scores import EXACT, NEWEST, RANDOM, RESCORED, WHOLE, Counts
from benchmarks.gsu_methods import INT8, PQ8
from seminar.evaluate.intervals import interval, ratio_of_totals, replicate
from seminar.evaluate.metrics import ranking_metrics

METRICS = ("NDCG@10", "AUC", "HIT@10")
LONG = 400
"""Behaviours beyond which a history counts as long: a K of 50 leaves out seven eighths of it."""
GOAL_K, GOAL_LOSS = 50, 0.001


@dataclass(frozen=True)
class Measured:
    """Counts of U users. length_U: visible behaviours. bytes_R: what a scan reads of one, by way of choosing; NaN: no scan."""

    names: Sequence[str]
    bytes_R: Sequence[float]
    ks: Sequence[int]
    length_U: Int[ndarray, " U"]
    counts: Sequence[Counts]


@dataclass(frozen=True)
class Figures:
    """Means over the users of a slice; [K, R, Q] by METRICS. low, high: 95 % interval of `change_KRQ`, paired by user.

    change_KRQ: minus exact retrieval at the same K, so a loss is below zero.
    """

    title: str
    users: int
    recall_KR: Float[ndarray, "K R"]
    same_KR: Float[ndarray, "K R"]
    value_KRQ: Float[ndarray, "K R Q"]
    change_KRQ: Float[ndarray, "K R Q"]
    low_KRQ: Float[ndarray, "K R Q"]
    high_KRQ: Float[ndarray, "K R Q"]


def slices(measured: Measured, seed: int) -> list[Figures]:
    """Figures of all users, and of those with a long history if there are any."""
    parts = {"all users": measured.length_U > -1, f"histories longer than {LONG}": measured.length_U > LONG}
    return [figures(measured, chosen_U, title, seed) for title, chosen_U in parts.items() if chosen_U.any()]


def figures(measured: Measured, chosen_U: Bool[ndarray, " U"], title: str, seed: int) -> Figures:
    """Figures of some users; intervals by bootstrap over these users."""
    counts = [measured.counts[user] for user in np.flatnonzero(chosen_U).tolist()]
    above_UKR, tied_UKR = np.stack([c.above_KR for c in counts]), np.stack([c.tied_KR for c in counts])
    others_UKR = np.broadcast_to(np.array([c.others for c in counts])[:, None, None], above_UKR.shape)
    by_name = ranking_metrics(above_UKR.ravel(), tied_UKR.ravel(), others_UKR.ravel())
    value_UKRQ = np.stack([by_name[name].reshape(above_UKR.shape) for name in METRICS], -1)
    change_UKRQ = value_UKRQ - value_UKRQ[:, :, :1]
    total_UQ = change_UKRQ.reshape(len(counts), -1)
    mean = ratio_of_totals(total_UQ, np.ones_like(total_UQ))
    low_Q, high_Q = interval(replicate([mean], len(counts), np.random.default_rng(seed))[0])
    shape = change_UKRQ.shape[1:]
    return Figures(
        title=title,
        users=len(counts),
        recall_KR=np.mean([c.recall_KR for c in counts], 0),
        same_KR=np.mean([c.same_KR for c in counts], 0),
        value_KRQ=value_UKRQ.mean(0),
        change_KRQ=change_UKRQ.mean(0),
        low_KRQ=low_Q.reshape(shape),
        high_KRQ=high_Q.reshape(shape),
    )


def markdown(measured: Measured, parts: Sequence[Figures], sentences: Sequence[str]) -> list[str]:
    """The page: for each slice what the end model loses by K, then all figures of each K."""
    lines = ["# What the end model loses by approximate retrieval", "", *sentences]
    for part in parts:
        lines += ["", f"## {part.title[0].upper()}{part.title[1:]}: {part.users:,} users", "", *_by_k(measured, part)]
        for column, k in enumerate(measured.ks):
            lines += ["", f"### {part.title}, K = {k}", "", *_table(measured, part, column)]
    return lines


def _by_k(measured: Measured, part: Figures) -> Iterator[str]:
    yield f"{METRICS[0]} minus that of exact retrieval at the same K:"
    yield ""
    yield f"| behaviours by | B | {' | '.join(f'K = {k}' for k in measured.ks)} |"
    yield "|---" + "|---:" * (1 + len(measured.ks)) + "|"
    for row, name in enumerate(measured.names):
        exact = [f"{part.value_KRQ[column, 0, 0]:.4f}" for column in range(len(measured.ks))]
        cells = exact if name == EXACT else [_change(part, column, row, 0) for column in range(len(measured.ks))]
        yield f"| {name} | {_bytes(measured.bytes_R[row])} | {' | '.join(cells)} |"


def _table(measured: Measured, part: Figures, column: int) -> Iterator[str]:
    yield f"| behaviours by | B | recall | same top 10 | {' | '.join(f'{name} | minus exact' for name in METRICS)} |"
    yield "|---" + "|---:" * (3 + 2 * len(METRICS)) + "|"
    for row, name in enumerate(measured.names):
        recall = "" if name == WHOLE else f"{part.recall_KR[column, row]:.3f}"
        values = [
            f"{part.value_KRQ[column, row, q]:.4f} | {'' if name == EXACT else _change(part, column, row, q)}"
            for q in range(len(METRICS))
        ]
        yield f"| {name} | {_bytes(measured.bytes_R[row])} | {recall} | {part.same_KR[column, row]:.3f} | {' | '.join(values)} |"


def _change(part: Figures, column: int, row: int, metric: int) -> str:
    change, low, high = (float(array[column, row, metric]) for array in (part.change_KRQ, part.low_KRQ, part.high_KRQ))
    return f"{_signed(change)} [{_signed(low)}, {_signed(high)}]" if low or high else "0"


def _signed(value: float) -> str:
    # Adding 0 makes zero of minus zero, which would be printed as a loss.
    return f"{round(value, 4) + 0:+.4f}"


def _bytes(width: float) -> str:
    return "" if np.isnan(width) else f"{width:,.0f}"


def goals(measured: Measured, parts: Sequence[Figures]) -> Iterator[Goal]:
    """What re-scored codecs lose at K = 50, against the target; and what no retrieval at all would lose, for scale."""
    column = measured.ks.index(GOAL_K)
    targets = {RESCORED.format(INT8): GOAL_LOSS, RESCORED.format(PQ8): GOAL_LOSS}
    for part in parts:
        for name in (*targets, INT8, PQ8, NEWEST, RANDOM, WHOLE):
            row = measured.names.index(name)
            for q, metric in enumerate(METRICS[:2]):
                loss, low, high = (0 - float(a[column, row, q]) for a in (part.change_KRQ, part.high_KRQ, part.low_KRQ))
                what = f"{metric} lost by {name}, K={GOAL_K}, {part.title} ({part.users:,}), [{_signed(low)}, {_signed(high)}]"
                yield Goal(what, loss, "", targets.get(name), at_least=False)
