"""Aligned runs to per-user sums of every protocol, query origin and slice: whatever is averaged, drawn or flipped later.

In one slice, metric q of entry e is the sum over users of `total` divided by that of `weight`. All entries scored the same rows,
so `weight` is the same for all of them, and a difference of two entries is a sum over users as well.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from seminar.evaluate.aligned import Aligned
from seminar.evaluate.evaluation import FULL, SAMPLED
from seminar.evaluate.intervals import Statistic
from seminar.evaluate.metrics import group_auc, log_loss, ranking_metrics
from seminar.evaluate.paired import pooled_auc
from seminar.evaluate.protocol import FLOORS
from seminar.evaluate.summary import ALL, IMPRESSIONS, LENGTH, length_bins, origins_of, pools, slices

_ROW = "row"
_CELLS = 1 << 23


@dataclass(frozen=True)
class Sums:
    """One slice. key: protocol, query origin, slice, bin. user_U: its users' places among all users. rows: lists or impressions.

    main: of the setting's whole pool, not of a part of it. pooled_E: AUC over all rows of each entry, a further metric that is no
    sum over users; empty for lists. Floors give no probability: their log-loss means nothing.
    """

    key: tuple[str, str, str, str]
    main: bool
    user_U: Int[ndarray, " U"]
    rows: int
    names: tuple[str, ...]
    total_UEQ: Float[ndarray, "U E Q"]
    weight_UQ: Float[ndarray, "U Q"]
    pooled_E: tuple[Statistic, ...]
    notes: dict[str, int | float]

    @property
    def metrics(self) -> tuple[str, ...]:
        """Names along the last axis of `values`."""
        return (*self.names, "AUC") if self.pooled_E else self.names

    def values(self, weight_RU: ndarray) -> Float[ndarray, "R E Q"]:
        """Metrics of every entry under weights of this slice's users (how often each was drawn); NaN if nobody was."""
        step = max(1, _CELLS // max(weight_RU.shape[1], 1))
        parts = [self._values(weight_RU[i : i + step].astype(np.float64)) for i in range(0, len(weight_RU), step)]
        return np.concatenate(parts)

    def _values(self, weight_RU: Float[ndarray, "R U"]) -> Float[ndarray, "R E Q"]:
        users, entries, width = self.total_UEQ.shape
        top = (weight_RU @ self.total_UEQ.reshape(users, -1)).reshape(-1, entries, width)
        bottom = np.broadcast_to((weight_RU @ self.weight_UQ)[:, None], top.shape)
        ratio = np.divide(top, bottom, out=np.full(top.shape, np.nan), where=bottom > 0)
        if not self.pooled_E:
            return ratio
        pooled = np.concatenate([statistic(weight_RU) for statistic in self.pooled_E], 1)
        return np.concatenate([ratio, pooled[:, :, None]], 2)


def slices_of_runs(aligned: Aligned) -> Iterator[Sums]:
    """Every slice of every protocol and query origin that has rows (for impressions: rows of both labels)."""
    held = pc.unique(aligned.lists["protocol"]).to_pylist()
    for protocol in sorted(held, key=(SAMPLED, FULL).index):
        table = aligned.lists.append_column(_ROW, pa.array(np.arange(len(aligned.lists))))
        for origin, pool, main in pools(table.filter(pc.equal(table["protocol"], protocol))):
            row = pool[_ROW].to_numpy()
            for name, part, chosen in slices(pool, with_slices=True):
                if chosen.any():
                    yield _ranking(aligned, (protocol, origin, name, part), main, row[chosen])
    origin_M = np.array(aligned.shown["query_origin"].to_pylist())
    for origin in origins_of(aligned.shown):
        row = np.flatnonzero(origin_M == origin)
        for name, part, chosen in _impression_slices(aligned, row):
            label = aligned.shown["label"].to_numpy()[row[chosen]]
            if label.any() and not label.all():
                yield _impressions(aligned, (IMPRESSIONS, origin, name, part), row[chosen])


def _ranking(aligned: Aligned, key: tuple[str, str, str, str], main: bool, row: Int[ndarray, " N"]) -> Sums:
    entries = len(aligned.entry)
    others = aligned.lists["others"].to_numpy()[row]
    flat = ranking_metrics(aligned.above_EN[:, row].ravel(), aligned.tied_EN[:, row].ravel(), np.tile(others, entries))
    value_NEQ = np.stack([value.reshape(entries, -1).T for value in flat.values()], 2)
    user, slot = np.unique(_users(aligned, aligned.lists, row), return_inverse=True)
    return Sums(
        key=key,
        main=main,
        user_U=user,
        rows=len(row),
        names=tuple(flat),
        total_UEQ=_by_user(value_NEQ, slot, len(user)),
        weight_UQ=_by_user(np.ones((len(row), len(flat))), slot, len(user)),
        pooled_E=(),
        notes={"mean_others": float(others.mean())},
    )


def _impressions(aligned: Aligned, key: tuple[str, str, str, str], row: Int[ndarray, " N"]) -> Sums:
    """gAUC by user and query (weighted by impressions), log-loss where the score is a logit, AUC over all rows."""
    label, query = (aligned.shown[name].to_numpy()[row] for name in ("label", "query"))
    user, slot = np.unique(_users(aligned, aligned.shown, row), return_inverse=True)
    _, first, group = np.unique(np.stack([slot, query]), axis=1, return_index=True, return_inverse=True)
    score_EN = aligned.score_EM[:, row]
    impressions_G = np.bincount(group.reshape(-1))
    auc_GE = np.stack([group_auc(score, label, group.reshape(-1))[0] for score in score_EN], 1)
    both = ~np.isnan(auc_GE[:, 0])
    weight_G = np.where(both, impressions_G, 0).astype(np.float64)
    loss_NE = np.stack([log_loss(score, label) for score in score_EN], 1)
    # A floor's score is no logit; NaN would spread to all entries through matrix products.
    loss_NE[:, [name in FLOORS for name, _ in aligned.entry]] = 0
    totals = (
        _by_user(np.nan_to_num(auc_GE) * weight_G[:, None], slot[first], len(user)),
        _by_user(loss_NE, slot, len(user)),
    )
    weights = (_by_user(weight_G, slot[first], len(user)), _by_user(np.ones(len(row)), slot, len(user)))
    rate = float(label.mean())
    return Sums(
        key=key,
        main=True,
        user_U=user,
        rows=len(row),
        names=("gAUC", "log-loss"),
        total_UEQ=np.stack(totals, 2),
        weight_UQ=np.stack(weights, 1),
        pooled_E=tuple(pooled_auc(score, label, slot, len(user)) for score in score_EN),
        notes={
            "positives": int(label.sum()),
            "groups": int(both.sum()),
            "groups_of_one_class": int((~both).sum()),
            "log_loss_of_base_rate": float(-rate * np.log(rate) - (1 - rate) * np.log1p(-rate)),
        },
    )


def _impression_slices(aligned: Aligned, row: Int[ndarray, " N"]) -> Iterator[tuple[str, str, Bool[ndarray, " N"]]]:
    """All, and quarters of the users by history length where every user has one request and so one length.

    Impressions do not say which item they are of, so new or taken before, seen or unseen in training are unknown.
    """
    yield ALL, ALL, np.ones(len(row), bool)
    table = aligned.lists.group_by("user_id").aggregate([("history_length", "min"), ("history_length", "max")])
    low, high = (table[f"history_length_{end}"].to_numpy() for end in ("min", "max"))
    if not np.array_equal(low, high):
        return
    length_U = np.full(len(aligned.users), -1)
    length_U[pc.index_in(table["user_id"], aligned.users).to_numpy()] = low
    user, slot = np.unique(_users(aligned, aligned.shown, row), return_inverse=True)
    known = length_U[user] >= 0
    if known.any():
        for part, chosen in length_bins(length_U[user][known]):
            inside = np.zeros(len(user), bool)
            inside[np.flatnonzero(known)[chosen]] = True
            yield LENGTH, part, inside[slot]


def _users(aligned: Aligned, table: pa.Table, row: Int[ndarray, " N"]) -> Int[ndarray, " N"]:
    return pc.index_in(table["user_id"], aligned.users).to_numpy()[row].astype(np.int64)


def _by_user(value_N: Float[ndarray, "N ..."], slot_N: Int[ndarray, " N"], users: int) -> Float[ndarray, "U ..."]:
    """Sum of each user's rows."""
    total = np.zeros((users, *value_N.shape[1:]))
    np.add.at(total, slot_N, value_N)
    return total
