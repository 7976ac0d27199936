"""What a score costs when it is served: time a target on one core by history length, and bytes that a search reads.

Channels come from precomputed tables, as in a bundle, and what a history's behaviours are in channel space is known before the
clock starts, for every model alike. SEMINAR is timed as `TwoStageScorer` serves it, compiled where its model allows that: the
user's history is kept ready with 8-bit keys, candidates are re-scored exactly, the ESU sees what was kept. The others are timed
by their forward pass: what their papers keep beside it (ETA's signatures, SDIM's buckets, TWIN's projections, SIM's index) is
made within the clock, so their figures are upper bounds; DIN has nothing to keep.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor

from seminar.artifacts import Artifact
from seminar.baselines.base import Baseline, Seen
from seminar.batching import MS_PER_HOUR, Batch, Request, collate
from seminar.channels import ChannelEncoder, UnitTables, encode_pairs, unit_tables
from seminar.compiled.scorer import CompiledScorer
from seminar.compiled.weights import uncovered
from seminar.config import Kind, ModelConfig
from seminar.encoded import encode
from seminar.heads import HOURS_PER_WEEK
from seminar.history_search import HistoryKeys, key_space
from seminar.models import load_model
from seminar.ranker import Ranker
from seminar.retrieval.int8 import Int8Retriever
from seminar.retrieval.regime import OVERFETCH, Situation, choose
from seminar.retrieval.rescored import LookedUp, RescoredIndex
from seminar.schema import CTR, MS_PER_WEEK, NONE
from seminar.scorer import passed_on
from seminar.sequences import Histories

TARGETS = 100
REPEATS = 7
MONDAY = 72
"""Hour of the week, counted from Monday, at which weeks of the Unix epoch begin."""
_FLOAT = 4


def score_times(run: Artifact, vectors: Artifact, histories: Histories, lengths: Sequence[int]) -> dict[int, float]:
    """Microseconds a target on one core (median of REPEATS requests of TARGETS targets, each of another user), by length.

    Histories of shorter users are repeated until they are long enough; their content does not change what a search costs.
    """
    model = load_model(run, vectors)
    assert isinstance(model.channels, ChannelEncoder)
    tables = unit_tables(model.channels)
    # A submodule's name takes no other value until it is free.
    del model.channels
    model.channels = tables  # type: ignore[bad-assignment]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return {length: _median_us(model, request_batches(histories, length)) for length in lengths}
    finally:
        torch.set_num_threads(threads)


def search_bytes(config: ModelConfig, length: int) -> float:
    """Bytes of a history that one request's search or attention reads, in the form its paper keeps; vectors as float32, SEMINAR's
    keys in the 8 bits they are served in."""
    d, b = config.dim, config.baseline
    groups = b.sdim_hashes // b.sdim_width
    per_behaviour: Mapping[Kind, float] = {
        "seminar": d,
        "din": _FLOAT * d,
        "sim_hard": _FLOAT,
        "sim_soft": _FLOAT * d,
        "eta": b.hash_bits / 8,
        "twin": _FLOAT * (d + 1),
        "qin": _FLOAT * 2 * d,
        "muse": _FLOAT * 2 * d,
    }
    if config.kind == "sdim":
        # Sums of behaviours by bucket: their size does not depend on the length.
        return float(groups * 2**b.sdim_width * d * _FLOAT)
    return float(per_behaviour[config.kind] * length)


def request_batches(histories: Histories, length: int) -> list[Batch]:
    """REPEATS + 1 requests of the longest users, each a batch of one; targets are items of the histories at hand."""
    rng = np.random.default_rng(length)
    users = np.argsort(-histories.lengths, kind="stable")[: REPEATS + 1]
    return [_request(histories, int(row), length, rng) for row in users]


def _request(histories: Histories, row: int, length: int, rng: np.random.Generator) -> Batch:
    span = histories.span(row)
    newest = np.arange(span.stop - 1, span.stop - 1 - length, -1)[::-1]
    index = np.where(newest >= span.start, newest, span.stop - 1 - (span.stop - 1 - newest) % (span.stop - span.start))
    chosen = rng.choice(histories.item, TARGETS).astype(np.int64)
    none = np.full(TARGETS, NONE)
    request = Request(
        row, 0, int(histories.time_ms[span.stop - 1]), chosen, none, np.zeros(TARGETS, np.float32), np.full(TARGETS, CTR)
    )
    empty = collate(histories, [request], 1)
    hours = (request.time_ms - np.sort(histories.time_ms[index])) / 3_600_000
    return replace(
        empty,
        item_BL=torch.from_numpy(histories.item[index].astype(np.int64))[None],
        query_BL=torch.from_numpy(histories.query[index].astype(np.int64))[None],
        hours_BL=torch.from_numpy(hours.astype(np.float32))[None],
        length_B=torch.tensor([length]),
        total_length_B=torch.tensor([length]),
    )


def _median_us(model: Ranker | Baseline, batches: Sequence[Batch]) -> float:
    with torch.inference_mode():
        calls = [served(model, batch) if isinstance(model, Ranker) else forward(model, batch) for batch in batches]
        seconds = []
        for call in calls:  # the first warms up
            began = time.thread_time()
            call()
            seconds.append(time.thread_time() - began)
    return float(np.median(seconds[1:])) / TARGETS * 1e6


def forward(model: Baseline, batch: Batch) -> Callable[[], Float[Tensor, "1 T S"]]:
    """One request of a rival: its targets are encoded within the clock, its history before."""
    encoded = encode(batch, model.channels, model.merge)
    seen = Seen.of(batch, encoded, model.heads.category_index)
    alone = replace(batch, **{name: getattr(batch, name)[:, :0] for name in ("item_BL", "query_BL", "hours_BL")})

    def score() -> Tensor:
        encode(alone, model.channels, model.merge)
        found = model.unit(seen)
        return model.heads(batch, encoded, found.interest_BTd, found.extra_BTF, model.heads.cross(batch))

    return score


@dataclass(frozen=True)
class _Catalogue:
    units: UnitTables
    ranker: Ranker


@dataclass(frozen=True)
class _History:
    item_L: Int[ndarray, " L"]
    query_L: Int[ndarray, " L"]
    user_id: str | None = None


def served(ranker: Ranker, batch: Batch) -> Callable[[], Float[Tensor, "1 T S"]]:
    """One request against a kept history, as `TwoStageScorer` answers it; the history is made ready before the clock starts."""
    units = ranker.channels
    assert isinstance(units, UnitTables)
    catalogue = _Catalogue(units, ranker)
    return _by_torch(catalogue, batch) if uncovered(ranker.config) else _compiled(catalogue, batch)


def _compiled(catalogue: _Catalogue, batch: Batch) -> Callable[[], Float[Tensor, "1 T S"]]:
    scorer, config = CompiledScorer(catalogue, key_space(catalogue)), catalogue.ranker.config
    item_L, query_L, item_T, query_T = (
        rows[0].numpy() for rows in (batch.item_BL, batch.query_BL, batch.item_BT, batch.query_BT)
    )
    hour = (int(batch.hour_of_week_B[0]) - MONDAY) % HOURS_PER_WEEK
    now_ms = int(batch.week_B[0]) * MS_PER_WEEK + hour * MS_PER_HOUR
    age_ms_L = np.rint(batch.hours_BL[0].numpy().astype(np.float64) * MS_PER_HOUR).astype(np.int64)
    ready = scorer.ready(item_L, query_L, now_ms - age_ms_L)
    choice = choose(Situation(config.gate, len(item_T), len(ready), config.top_k, stored=True))

    def score() -> Tensor:
        asked = scorer.ask(item_T, query_T, CTR, now_ms, None)
        return scorer.logits(scorer.find(ready, asked, choice, config.top_k))[None]

    return score


def _by_torch(catalogue: _Catalogue, batch: Batch) -> Callable[[], Float[Tensor, "1 T S"]]:
    """Where the model is not compiled: packed keys are kept, candidates are looked up."""
    units, ranker = catalogue.units, catalogue.ranker
    space = key_space(catalogue)
    keys = HistoryKeys(catalogue, _History(batch.item_BL[0].numpy(), batch.query_BL[0].numpy()))
    packed = Int8Retriever(space, target_gate=ranker.config.gate == "target").index(keys[:])
    index = RescoredIndex(packed, LookedUp(space, keys), OVERFETCH["int8"])
    length = len(keys)

    def score() -> Tensor:
        target = ranker.gsu.gated(encode_pairs(units, batch.item_BT[0], batch.query_BT[0]))
        probe = ranker.gsu.probe(ranker.gsu.merged(target), target.gate_logit_NM)
        kept = index.top_k(probe, ranker.config.top_k).index_TK.numpy()
        position, rows = passed_on(kept, length, ranker.config.recent)
        seen = replace(
            batch,
            item_BL=batch.item_BL[:, position],
            query_BL=batch.query_BL[:, position],
            hours_BL=batch.hours_BL[:, position],
            length_B=torch.tensor([len(position)]),
        )
        pooled, cross = ranker.pooled_newest(batch)[None], ranker.cross(batch)
        return ranker.rank(seen, ranker.encode(seen), torch.from_numpy(rows)[None], cross, pooled).logit_BTS

    return score
