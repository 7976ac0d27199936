"""Rows of an evaluation to figures: every line names its protocol, query origin, slice and size, and has intervals.

Figures of different query origins are never pooled. Pairs without a query belong to the setting that the data's queries make, so
with one origin of queries the whole setting has a line too, labelled with both, e.g. `category_proxy+none`.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from seminar.errors import DataError, explain
from seminar.evaluate.evaluation import SAMPLED, Rows
from seminar.evaluate.intervals import REPLICATES, Statistic, interval, ratio_of_totals, replicate, run_shares
from seminar.evaluate.metrics import check_feasible, group_auc, log_loss, ranking_metrics
from seminar.evaluate.paired import pooled_auc
from seminar.evaluate.protocol import FLOORS
from seminar.schema import ORIGINS

IMPRESSIONS = "impressions"
ALL = "all"
LENGTH = "history length"
LENGTH_BINS = 4
FLAGS = {"repeat": ("new to the user", "taken before"), "unseen": ("seen in training", "unseen in training")}
"""Boolean columns of RANKED that make slices, and what False and True are called."""

Key = tuple[str, str, str, str, str]
"""protocol, query origin, slice, bin, scorer"""
Figures = dict[str, dict[str, float | None]]
"""Metric name to value, low and high; None where nothing defines it."""


@dataclass(frozen=True)
class Line:
    """One line of figures of one run: sizes, metric names, and the statistic that gives their values from user weights."""

    users: int
    rows: int
    names: tuple[str, ...]
    statistic: Statistic
    notes: dict[str, int | float] = field(default_factory=dict)


def summarise(
    runs: Sequence[Rows],
    generator: np.random.Generator,
    references: Sequence[str] = FLOORS,
    replicates: int = REPLICATES,
    sliced: str = SAMPLED,
) -> list[dict[str, object]]:
    """All lines of one run, or the mean of several runs (training seeds) of one protocol.

    Each: protocol, query_origin, slice, bin, scorer, users, rows, runs, metrics, notes, and for a scorer that is no reference
    `gains`: its metrics minus each reference's, paired by user. sliced: the protocol whose lines are taken apart by slices too.
    Raises InfeasibleMetrics, and DataError where there is nothing to summarise or runs differ in what they ranked.
    """
    users = user_ids(runs)
    if not all(len(rows.ranked) for rows in runs):
        fix = "use more users or another split"
        raise DataError(explain("evaluation", got="no held-out pair", expected="at least one", fix=fix))
    by_run = [dict(_lines(rows, users, sliced)) for rows in runs]
    keys = list(by_run[0])
    if any(list(lines) != keys for lines in by_run):
        fix = "evaluate all runs alike"
        raise DataError(explain("runs to summarise", got="different lines", expected="one protocol", fix=fix))
    statistics = [lines[key].statistic for lines in by_run for key in keys]
    everyone = np.ones((1, len(users)))
    value = [statistic(everyone) for statistic in statistics]
    drawn = replicate(statistics, len(users), generator, replicates)
    share_RS = run_shares(len(runs), replicates, generator)
    mean = {key: np.mean(value[i :: len(keys)], axis=0)[0] for i, key in enumerate(keys)}
    spread = {key: np.einsum("rs,srq->rq", share_RS, np.stack(drawn[i :: len(keys)])) for i, key in enumerate(keys)}
    return [_record(key, by_run, mean, spread, references) for key in keys]


def _record(
    key: Key, by_run: list[dict[Key, Line]], mean: dict[Key, ndarray], spread: dict[Key, ndarray], references: Sequence[str]
) -> dict[str, object]:
    line = by_run[0][key]
    names = dict(zip(("protocol", "query_origin", "slice", "bin", "scorer"), key, strict=True))
    check_feasible({n: v for n, v in zip(line.names, mean[key], strict=True) if not np.isnan(v)}, " / ".join(key))
    record: dict[str, object] = {**names, "users": line.users, "rows": line.rows, "runs": len(by_run), "notes": line.notes}
    record["metrics"] = to_figures(line.names, mean[key], spread[key])
    if key[-1] not in references:
        record["gains"] = gains = {}
        for other in references:
            ref = (*key[:-1], other)
            if ref in mean:
                # Floors lack the last metric, log-loss: they give no probability.
                n = min(len(mean[key]), len(mean[ref]))
                gains[other] = to_figures(line.names[:n], mean[key][:n] - mean[ref][:n], spread[key][:, :n] - spread[ref][:, :n])
    return record


def to_figures(names: Sequence[str], value_Q: ndarray, drawn_RQ: ndarray) -> Figures:
    low_Q, high_Q = interval(drawn_RQ)
    return {
        name: {part: None if np.isnan(x) else float(x) for part, x in (("value", v), ("low", lo), ("high", hi))}
        for name, v, lo, hi in zip(names, value_Q, low_Q, high_Q, strict=True)
    }


def _lines(rows: Rows, users: pa.Array, sliced: str) -> Iterator[tuple[Key, Line]]:
    for protocol in pc.unique(rows.ranked["protocol"]).to_pylist():
        table = rows.ranked.filter(pc.equal(rows.ranked["protocol"], protocol))
        for label, pool, main in pools(table):
            for name, part, chosen in slices(pool, with_slices=main and protocol == sliced):
                for scorer in pc.unique(pool["scorer"]).to_pylist():
                    kept = pool.filter(pa.array(chosen & _equal(pool, "scorer", scorer)))
                    if len(kept):
                        yield (protocol, label, name, part, scorer), _ranking_line(kept, users)
    for origin in origins_of(rows.impressions):
        table = rows.impressions.filter(pc.equal(rows.impressions["query_origin"], origin))
        for scorer in pc.unique(table["scorer"]).to_pylist():
            kept = table.filter(pc.equal(table["scorer"], scorer))
            if pc.count_distinct(kept["label"]).as_py() == 2:
                yield (IMPRESSIONS, origin, ALL, ALL, scorer), _impressions_line(kept, users, calibrated=scorer not in FLOORS)


def pools(table: pa.Table) -> Iterator[tuple[str, pa.Table, bool]]:
    """(label, rows, whether it is a main line): each origin, and before them the whole setting if its queries have one origin."""
    origins = origins_of(table)
    one_setting = len([o for o in origins if o != ORIGINS[0]]) <= 1 and len(origins) > 1
    if one_setting:
        yield "+".join(origins), table, True
    for origin in origins:
        yield origin, table.filter(pc.equal(table["query_origin"], origin)), not one_setting


def origins_of(table: pa.Table) -> list[str]:
    return sorted(pc.unique(table["query_origin"]).to_pylist())


def slices(table: pa.Table, *, with_slices: bool) -> Iterator[tuple[str, str, Bool[ndarray, " N"]]]:
    yield ALL, ALL, np.ones(len(table), bool)
    if not with_slices:
        return
    for part, chosen in length_bins(table["history_length"].to_numpy()):
        yield LENGTH, part, chosen
    for column, (no, yes) in FLAGS.items():
        value = table[column].to_numpy()
        yield column, no, ~value
        yield column, yes, value


def length_bins(length_N: Int[ndarray, " N"]) -> Iterator[tuple[str, Bool[ndarray, " N"]]]:
    """Quarters by history length, shortest first: (`lowest to highest length`, which are inside)."""
    edges = np.unique(np.quantile(length_N, np.linspace(0, 1, LENGTH_BINS + 1), method="inverted_cdf"))
    slot = np.searchsorted(edges[1:-1], length_N, side="left")
    for i in range(max(len(edges) - 1, 1)):
        inside = length_N[slot == i]
        if len(inside):
            yield f"{inside.min()} to {inside.max()}", slot == i


def _ranking_line(table: pa.Table, users: pa.Array) -> Line:
    metrics = ranking_metrics(*(table[name].to_numpy() for name in ("above", "tied", "others")))
    value_NQ = np.stack(list(metrics.values()), 1)
    user_N = user_index(table, users)
    own_N = _ratio(value_NQ, np.ones_like(value_NQ), user_N, len(users))
    notes: dict[str, int | float] = {"mean_others": float(pc.mean(table["others"]).as_py())}
    return Line(len(np.unique(user_N)), len(table), tuple(metrics), own_N, notes)


def _impressions_line(table: pa.Table, users: pa.Array, *, calibrated: bool) -> Line:
    """AUC over all rows, gAUC by user and query (weighted by impressions), and log-loss where the score is a logit."""
    score, label, user = table["score"].to_numpy(), table["label"].to_numpy(), user_index(table, users)
    _, first, group = np.unique(np.stack([user, table["query"].to_numpy()]), axis=1, return_index=True, return_inverse=True)
    value_G, impressions_G = group_auc(score, label, group.reshape(-1))
    both = ~np.isnan(value_G)
    weight_G = np.where(both, impressions_G, 0).astype(np.float64)
    parts: list[tuple[str, Statistic]] = [
        ("AUC", pooled_auc(score, label, user, len(users))),
        ("gAUC", _ratio((np.nan_to_num(value_G) * weight_G)[:, None], weight_G[:, None], user[first], len(users))),
    ]
    rate = float(label.mean())
    notes: dict[str, int | float] = {
        "positives": int(label.sum()),
        "groups": int(both.sum()),
        "groups_of_one_class": int((~both).sum()),
    }
    if calibrated:
        loss = log_loss(score, label)[:, None]
        parts.append(("log-loss", _ratio(loss, np.ones_like(loss), user, len(users))))
        notes["log_loss_of_base_rate"] = float(-rate * np.log(rate) - (1 - rate) * np.log1p(-rate))

    def statistic(weight_RU: ndarray) -> ndarray:
        return np.concatenate([part(weight_RU) for _, part in parts], 1)

    return Line(len(np.unique(user)), len(table), tuple(name for name, _ in parts), statistic, notes)


def _ratio(
    total_NQ: Float[ndarray, "N Q"], weight_NQ: Float[ndarray, "N Q"], user_N: Int[ndarray, " N"], num_users: int
) -> Statistic:
    """Ratio of totals over the users that have rows; the others' weights do not matter."""
    present, slot = np.unique(user_N, return_inverse=True)
    total_UQ, weight_UQ = (np.zeros((len(present), total_NQ.shape[1])) for _ in range(2))
    np.add.at(total_UQ, slot, total_NQ)
    np.add.at(weight_UQ, slot, weight_NQ)
    ratio = ratio_of_totals(total_UQ, weight_UQ)
    if len(present) == num_users:
        return ratio
    return lambda weight_RU: ratio(weight_RU[:, present])


def user_ids(runs: Sequence[Rows]) -> pa.Array:
    columns = [table["user_id"] for rows in runs for table in (rows.ranked, rows.impressions)]
    users = pc.unique(pa.chunked_array([chunk for column in columns for chunk in column.chunks], pa.string()))
    return users.take(pc.sort_indices(users))


def user_index(table: pa.Table, users: pa.Array) -> Int[ndarray, " N"]:
    return pc.index_in(table["user_id"], users).to_numpy().astype(np.int64)


def _equal(table: pa.Table, column: str, value: str) -> Bool[ndarray, " N"]:
    return pc.equal(table[column], value).to_numpy()
