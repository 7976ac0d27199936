"""Any scorer over any histories, to rows that metrics reduce from exactly, however the users were spread over shards.

A scored list becomes one row of counts (above, tied, others) instead of 100 scores; a logged impression becomes one row with its
score. Floors, baselines and rankers run through this one path on the very same requests. A history is encoded once a request, and
a batch holds at most `CELLS` (request, target, behaviour) triples, so memory does not depend on the longest history.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import Int
from numpy import ndarray

from seminar.artifacts import write_atomically
from seminar.batching import Request, collate
from seminar.config import EvaluateConfig
from seminar.evaluate.metrics import check_numbers, rank_counts
from seminar.evaluate.negatives import ItemPool
from seminar.evaluate.protocol import (
    HeldOut,
    ScoreFn,
    full_ranking_request,
    held_out_pairs,
    impressions_request,
    in_user_sample,
    ranking_request,
)
from seminar.schema import CTR, NONE, ORIGINS, PSR, TASKS
from seminar.sequences import Histories

CELLS = 1 << 21
"""Most (request, target, behaviour) triples a batch; the ranker peaks at about 350 bytes a triple, so 0.7 GB."""
MAX_REQUESTS = 64
SAMPLED, FULL = "sampled", "full"

RANKED = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("position", pa.int64(), nullable=False),
        pa.field("protocol", pa.string(), nullable=False),
        pa.field("scorer", pa.string(), nullable=False),
        pa.field("query_origin", pa.string(), nullable=False),
        pa.field("task", pa.string(), nullable=False),
        pa.field("history_length", pa.int64(), nullable=False),
        pa.field("unseen", pa.bool_(), nullable=False),
        pa.field("repeat", pa.bool_(), nullable=False),
        pa.field("above", pa.int64(), nullable=False),
        pa.field("tied", pa.int64(), nullable=False),
        pa.field("others", pa.int64(), nullable=False),
    ]
)
"""One row a (held-out pair, protocol, scorer). protocol: sampled, full, or another of what ranks. history_length: behaviours
before the request. unseen: the item has no behaviour in training. repeat: the item is in the visible history."""

IMPRESSIONS = pa.schema(
    [
        pa.field("user_id", pa.string(), nullable=False),
        pa.field("scorer", pa.string(), nullable=False),
        pa.field("query_origin", pa.string(), nullable=False),
        pa.field("query", pa.int64(), nullable=False),
        pa.field("label", pa.int8(), nullable=False),
        pa.field("score", pa.float64(), nullable=False),
    ]
)
"""One row a (logged row of a held-out request, scorer); query: catalogue row, -1 none, in which case the task is CTR."""


@dataclass(frozen=True)
class Rows:
    """Everything metrics are made of. skipped: held-out users and pairs that could not be scored, by reason."""

    ranked: pa.Table
    impressions: pa.Table
    skipped: dict[str, int]

    @classmethod
    def concat(cls, parts: Sequence["Rows"]) -> "Rows":
        """Rows of all parts in one canonical order, so the result does not depend on which worker was first."""
        skipped: dict[str, int] = {}
        for part in parts:
            for reason, count in part.skipped.items():
                skipped[reason] = skipped.get(reason, 0) + count
        ranked = pa.concat_tables([RANKED.empty_table(), *(p.ranked for p in parts)])
        shown = pa.concat_tables([IMPRESSIONS.empty_table(), *(p.impressions for p in parts)])
        by = [(name, "ascending") for name in ("user_id", "position", "protocol", "scorer")]
        by_shown = [(name, "ascending") for name in ("user_id", "scorer", "query", "label", "score")]
        return cls(ranked.sort_by(by).combine_chunks(), shown.sort_by(by_shown).combine_chunks(), dict(sorted(skipped.items())))

    def renamed(self, scorers: Mapping[str, str], keep: Sequence[str] = ()) -> "Rows":
        """Only the scorers named, under new names, and those in `keep` as they are."""
        names = {**{name: name for name in keep}, **scorers}
        return type(self)(_renamed(self.ranked, names), _renamed(self.impressions, names), self.skipped)

    def joined(self, other: "Rows") -> "Rows":
        """These rows and those of other scorers on the same requests: two models side by side."""
        return self.concat([self, type(self)(other.ranked, other.impressions, {})])

    def write(self, folder: Path, stem: str = "rows") -> None:
        """Three files; `<stem>.json` is renamed into place last and marks the part as done."""
        pq.write_table(self.ranked, folder / f"{stem}.ranked.parquet")
        pq.write_table(self.impressions, folder / f"{stem}.impressions.parquet")
        write_atomically(folder / f"{stem}.json", json.dumps(self.skipped))

    @classmethod
    def read(cls, folder: Path, stem: str = "rows") -> "Rows":
        ranked, impressions = (pq.read_table(folder / f"{stem}.{name}.parquet") for name in ("ranked", "impressions"))
        return cls(ranked, impressions, json.loads((folder / f"{stem}.json").read_text()))


def evaluate_histories(
    histories: Histories,
    pool: ItemPool,
    scorers: Mapping[str, ScoreFn],
    config: EvaluateConfig,
    full_share: float = 0.0,
    users: Int[ndarray, " R"] | None = None,
) -> Rows:
    """Score the held-out pairs of all users (or rows `users`) with every scorer.

    full_share: share of users whose held-out pairs are also ranked among the whole catalogue (0: none).
    """
    pairs = held_out_pairs(histories, config, users)
    expected = np.arange(len(histories)) if users is None else users
    skipped = {"users without a held-out request": len(np.setdiff1d(expected, [p.row for p in pairs]))}
    drawn = [(pair, ranking_request(histories, pool, pair, config)) for pair in pairs]
    sampled = [(pair, *request) for pair, request in drawn if request is not None]
    skipped[f"pairs without a {config.negatives} negative"] = len(drawn) - len(sampled)
    facts = {pair: facts_of(histories, pool, pair) for pair in pairs}
    ranked = _ranked_sampled(histories, sampled, scorers, facts, config)
    if full_share > 0:
        chosen = in_user_sample(histories, config.seed, full_share)
        ranked += _ranked_full(histories, [p for p in pairs if chosen[p.row]], scorers, facts, config, pool.num_items)
    shown = _impressions(histories, pairs, scorers, config)
    return Rows.concat([Rows(pa.Table.from_pylist(ranked, RANKED), shown, {k: v for k, v in skipped.items() if v})])


def score_requests(histories: Histories, requests: Sequence[Request], score: ScoreFn, max_history: int) -> list[ndarray]:
    """Scores of each request's targets, in the order given; requests of similar length share a batch."""
    scores: list[ndarray] = [np.empty(0)] * len(requests)
    for index in _batches(requests, max_history):
        batch = collate(histories, [requests[i] for i in index], max_history)
        score_BT = score(batch).cpu().numpy()
        check_numbers(score_BT[batch.mask_BT.numpy()])
        for i, row in zip(index, score_BT, strict=True):
            scores[i] = row[: len(requests[i].item_T)].astype(np.float64)
    return scores


def _batches(requests: Sequence[Request], max_history: int) -> Iterator[list[int]]:
    lengths = np.array([max(min(r.end, max_history), 1) for r in requests])
    held: list[int] = []
    widest = 0
    for i in np.argsort(lengths, kind="stable").tolist():
        wider = max(widest, len(requests[i].item_T))
        # Ascending lengths: the newest is the longest of its batch.
        if held and (len(held) == MAX_REQUESTS or (len(held) + 1) * lengths[i] * wider > CELLS):
            yield held
            held, wider = [], len(requests[i].item_T)
        held.append(i)
        widest = wider
    if held:
        yield held


def facts_of(histories: Histories, pool: ItemPool, pair: HeldOut) -> dict[str, object]:
    """The columns that all rows of a held-out pair share."""
    first = int(histories.offsets[pair.row])
    item, query = histories.item[first + pair.position], histories.query[first + pair.position]
    return {
        "user_id": histories.user_id[pair.row],
        "position": pair.position,
        "query_origin": ORIGINS[histories.origin[first + pair.position]],
        "task": TASKS[CTR if query == NONE else PSR],
        "history_length": pair.start,
        "unseen": bool(pool.train_count[item] == 0),
        "repeat": bool((histories.item[first : first + pair.start] == item).any()),
    }


def _row(facts: dict[str, object], protocol: str, scorer: str, score_T: ndarray, place: int) -> dict[str, object]:
    above, tied = rank_counts(score_T, place)
    return {**facts, "protocol": protocol, "scorer": scorer, "above": above, "tied": tied, "others": len(score_T) - 1}


def _ranked_sampled(
    histories: Histories,
    sampled: Sequence[tuple[HeldOut, Request, int]],
    scorers: Mapping[str, ScoreFn],
    facts: Mapping[HeldOut, dict[str, object]],
    config: EvaluateConfig,
) -> list[dict[str, object]]:
    rows = []
    for name, score in scorers.items():
        scores = score_requests(histories, [request for _, request, _ in sampled], score, config.max_history)
        for (pair, _, place), score_T in zip(sampled, scores, strict=True):
            rows.append(_row(facts[pair], SAMPLED, name, score_T, place))
    return rows


def _ranked_full(
    histories: Histories,
    pairs: Sequence[HeldOut],
    scorers: Mapping[str, ScoreFn],
    facts: Mapping[HeldOut, dict[str, object]],
    config: EvaluateConfig,
    num_items: int,
) -> list[dict[str, object]]:
    rows = []
    for pair in pairs:
        positive = int(histories.item[histories.offsets[pair.row] + pair.position])
        width = max(CELLS // max(min(pair.start, config.max_history), 1), 1)
        blocks = [np.arange(first, min(first + width, num_items)) for first in range(0, num_items, width)]
        requests = [
            full_ranking_request(histories, pair, items, positive - int(items[0]) if items[0] <= positive <= items[-1] else None)
            for items in blocks
        ]
        for name, score in scorers.items():
            score_I = np.concatenate(score_requests(histories, requests, score, config.max_history))
            rows.append(_row(facts[pair], FULL, name, score_I, positive))
    return rows


def _renamed(table: pa.Table, names: Mapping[str, str]) -> pa.Table:
    old, new = pa.array(list(names), pa.string()), pa.array(list(names.values()), pa.string())
    table = table.filter(pc.is_in(table["scorer"], old))
    scorer = new.take(pc.index_in(table["scorer"].combine_chunks(), old))
    return table.set_column(table.schema.names.index("scorer"), table.schema.field("scorer"), scorer)


def _impressions(
    histories: Histories, pairs: Sequence[HeldOut], scorers: Mapping[str, ScoreFn], config: EvaluateConfig
) -> pa.Table:
    distinct = list({(p.row, p.start): p for p in pairs}.values())
    requests = [impressions_request(histories, pair) for pair in distinct]
    counts = [len(r.item_T) for r in requests]
    if not sum(counts):
        return IMPRESSIONS.empty_table()
    origins = np.concatenate([_origins(histories, pair, r.query_T) for pair, r in zip(distinct, requests, strict=True)])
    common = {
        "user_id": np.repeat([histories.user_id[p.row] for p in distinct], counts),
        "query_origin": np.array(ORIGINS)[origins],
        "query": np.concatenate([r.query_T for r in requests]),
        "label": np.concatenate([r.label_T for r in requests]).astype(np.int8),
    }
    tables = []
    for name, score in scorers.items():
        scores = np.concatenate(score_requests(histories, requests, score, config.max_history))
        columns = {**common, "scorer": np.full(len(scores), name), "score": scores}
        tables.append(pa.table({field.name: columns[field.name] for field in IMPRESSIONS}, schema=IMPRESSIONS))
    return pa.concat_tables(tables)


def _origins(histories: Histories, pair: HeldOut, query_T: ndarray) -> ndarray:
    """Origin codes of logged rows: `none` without a query, else that of the request's behaviours (exposures store no origin)."""
    first = int(histories.offsets[pair.row])
    request = slice(first + pair.start, first + pair.end)
    origin_of = dict(zip(histories.query[request].tolist(), histories.origin[request].tolist(), strict=True))
    other = max(origin_of.values())
    return np.array([0 if query == NONE else origin_of.get(query, other) for query in query_T.tolist()], np.int64)
