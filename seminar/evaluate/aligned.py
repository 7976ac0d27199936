"""Rows of many runs on the very same requests, as arrays; refuses runs that differ in what they ranked.

A run is one trained model under one seed. All of them, and the floors of the first, become entries of one axis, so that every
figure of a comparison is a matrix product over users.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jaxtyping import Float, Int
from numpy import ndarray

from seminar.errors import DataError, explain
from seminar.evaluate.evaluation import Rows
from seminar.evaluate.protocol import FLOORS, POPULARITY

MODEL = "model"
"""Scorer name of the trained model in every run's rows."""
_PLACE = ("protocol", "user_id", "position")
_COUNTS = ("above", "tied")
_ALIKE = "evaluate all runs on the same pairs with the same evaluation settings"


@dataclass(frozen=True)
class Cost:
    """What a run costs. train_s: seconds of training, pretrain_s: of the pretraining it starts from; parameters: trained ones;
    train_pairs_per_s: scored pairs a second in training.

    score_us_per_target and search_bytes: history length (behaviours) -> microseconds a target on one core, bytes of the history
    that one request's search reads. Empty where they were not taken.
    """

    train_s: float
    pretrain_s: float
    train_pairs_per_s: float
    parameters: int
    score_us_per_target: Mapping[int, float]
    search_bytes: Mapping[int, float]


@dataclass(frozen=True)
class Trained:
    """One run: a model or variant under one seed; several seeds share a name. rows: its scores beside the floors'.

    curve: its training curve (columns step, loss, ...), if kept. settings: what a reader needs to train it again.
    """

    name: str
    seed: int
    rows: Rows
    cost: Cost
    settings: dict
    curve: pa.Table | None


@dataclass(frozen=True)
class Aligned:
    """lists: one row a ranked list, without counts; shown: one row a logged impression, without score. E entries score both.

    entry: (name, seed) of each, floors last with no seed. users: all user ids, sorted.
    """

    entry: tuple[tuple[str, int | None], ...]
    users: pa.Array
    lists: pa.Table
    above_EN: Int[ndarray, "E N"]
    tied_EN: Int[ndarray, "E N"]
    shown: pa.Table
    score_EM: Float[ndarray, "E M"]


def align(runs: Sequence[Trained]) -> Aligned:
    """All runs and the first one's floors on one axis of lists and one of impressions.

    Raises DataError for runs without the scorer `model` or a held-out pair, for one name and seed twice, for a model with a
    floor's name, and where runs differ in a request, naming the run, what differs and where.
    """
    _check_names(runs)
    first = runs[0]
    present = set(pc.unique(first.rows.ranked["scorer"]).to_pylist())
    sources: list[tuple[str, int | None, Trained, str]] = [(run.name, run.seed, run, MODEL) for run in runs]
    sources += [(floor, None, first, floor) for floor in FLOORS if floor in present]
    lists, shown = _lists(first, MODEL), _shown(first, MODEL)
    if not len(lists):
        fix = "use more users or another split"
        raise DataError(explain(_called(first), got="no held-out pair scored by `model`", expected="at least one", fix=fix))
    popularity = _lists(first, POPULARITY)
    above, tied, score = [], [], []
    for _, _, run, scorer in sources:
        own, own_shown = _lists(run, scorer), _shown(run, scorer)
        _check_same(run, scorer, lists, own, _PLACE, [name for name in lists.column_names if name not in ("scorer", *_COUNTS)])
        _check_same(run, scorer, shown, own_shown, ("user_id",), ["user_id", "query_origin", "query", "label"])
        if scorer == MODEL:
            # Negatives are not stored, but another draw of them gives the floor other counts.
            _check_same(run, POPULARITY, popularity, _lists(run, POPULARITY), _PLACE, _COUNTS)
        above.append(own["above"].to_numpy())
        tied.append(own["tied"].to_numpy())
        score.append(own_shown["score"].to_numpy())
    users = pc.unique(pa.chunked_array([*lists["user_id"].chunks, *shown["user_id"].chunks], pa.string()))
    return Aligned(
        entry=tuple((name, seed) for name, seed, _, _ in sources),
        users=users.take(pc.sort_indices(users)),
        lists=lists.drop_columns(["scorer", *_COUNTS]),
        above_EN=np.stack(above),
        tied_EN=np.stack(tied),
        shown=shown.drop_columns(["scorer", "score"]),
        score_EM=np.stack(score),
    )


def _check_names(runs: Sequence[Trained]) -> None:
    if not runs:
        raise DataError(explain("comparison", got="no run", expected="at least one", fix="train a model first"))
    seen: set[tuple[str, int]] = set()
    for run in runs:
        if (run.name, run.seed) in seen:
            raise DataError(explain(_called(run), got="it twice", expected="one run a seed", fix="drop one or change its name"))
        if run.name in FLOORS:
            raise DataError(explain(_called(run), got="a floor's name", expected="another name", fix="rename the model"))
        seen.add((run.name, run.seed))


def _check_same(run: Trained, scorer: str, wanted: pa.Table, own: pa.Table, place: Sequence[str], columns: Sequence[str]) -> None:
    rows = f"{_called(run)}, rows of `{scorer}`"
    if len(own) != len(wanted):
        raise DataError(explain(rows, got=f"{len(own):,}", expected=f"{len(wanted):,} as in the first run", fix=_ALIKE))
    for name in columns:
        if not own[name].equals(wanted[name]):
            at = pc.index(pc.equal(own[name], wanted[name]), pa.scalar(value=False)).as_py()
            where = ", ".join(f"{column} {wanted[column][at].as_py()}" for column in place)
            got, expected = (table[name][at].as_py() for table in (own, wanted))
            raise DataError(
                explain(f"{rows}: {name} at {where}", got=got, expected=f"{expected} as in the first run", fix=_ALIKE)
            )


def _lists(run: Trained, scorer: str) -> pa.Table:
    return _sorted(run.rows.ranked, scorer, _PLACE)


def _shown(run: Trained, scorer: str) -> pa.Table:
    """Rows that agree in user, query and label are interchangeable, so that the score may decide their order."""
    return _sorted(run.rows.impressions, scorer, ("user_id", "query_origin", "query", "label", "score"))


def _sorted(table: pa.Table, scorer: str, by: Sequence[str]) -> pa.Table:
    return table.filter(pc.equal(table["scorer"], scorer)).sort_by([(name, "ascending") for name in by]).combine_chunks()


def _called(run: Trained) -> str:
    return f"run {run.name}, seed {run.seed}"
