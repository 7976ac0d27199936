"""What a score costs when it is served: time a target on one core by history length, and bytes a search reads of a history.

Channels come from precomputed tables, as in a bundle, for every model alike. SEMINAR is timed as it is served: the user's packed
8-bit keys are kept, candidates are re-scored exactly, the ESU sees what was kept. The others have no such path in their papers
but precomputed embeddings, which they get.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from seminar.artifacts import Artifact
from seminar.baselines.base import Baseline
from seminar.batching import Batch, Request, collate
from seminar.channels import ChannelEncoder, UnitTables, encode_pairs, unit_tables
from seminar.config import Kind, ModelConfig
from seminar.models import load_model
from seminar.ranker import Ranker
from seminar.retrieval.base import Keys
from seminar.retrieval.int8 import Int8Retriever
from seminar.retrieval.key_space import KeySpace
from seminar.retrieval.regime import OVERFETCH
from seminar.retrieval.rescored import LookedUp, RescoredIndex
from seminar.schema import CTR, NONE
from seminar.sequences import Histories

TARGETS = 100
REPEATS = 7
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


def history_bytes(config: ModelConfig, length: int) -> float:
    """Bytes of a history that one request's search or attention reads, by the model's own form; float32 where it has no codes."""
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
    calls = [_served(model, batch) if isinstance(model, Ranker) else _plain(model, batch) for batch in batches]
    seconds = []
    with torch.inference_mode():
        for call in calls:  # the first warms up
            began = time.thread_time()
            call()
            seconds.append(time.thread_time() - began)
    return float(np.median(seconds[1:])) / TARGETS * 1e6


def _plain(model: Baseline, batch: Batch) -> Callable[[], Tensor]:
    return lambda: model.score(batch)


def _served(ranker: Ranker, batch: Batch) -> Callable[[], Tensor]:
    """One request against kept keys, as `TwoStageScorer` answers it; keys are packed here, before the clock starts."""
    with torch.inference_mode():
        units = ranker.channels
        assert isinstance(units, UnitTables)
        space = KeySpace(units.item_unit, units.query_unit, ranker.gsu.key_transform)
        gated = ranker.gsu.gated(encode_pairs(units, batch.item_BL[0], batch.query_BL[0]))
        keys = Keys(batch.item_BL[0], batch.query_BL[0], gated.pairs.present_NM, gated.weight_NM)
        packed = Int8Retriever(space, target_gate=ranker.config.gate == "target").index(keys)
        index = RescoredIndex(packed, LookedUp(space, keys), OVERFETCH["int8"])

    def score() -> Tensor:
        target = ranker.gsu.gated(encode_pairs(units, batch.item_BT[0], batch.query_BT[0]))
        probe = ranker.gsu.probe(ranker.gsu.merged(target), target.gate_logit_NM)
        kept = index.top_k(probe, ranker.config.top_k).index_TK
        edges = torch.arange(max(0, len(keys) - ranker.config.recent), len(keys))
        position = torch.unique(torch.cat([kept[kept >= 0], edges]))
        seen = replace(
            batch,
            item_BL=batch.item_BL[:, position],
            query_BL=batch.query_BL[:, position],
            hours_BL=batch.hours_BL[:, position],
            length_B=torch.tensor([len(position)]),
        )
        rows = torch.where(kept >= 0, torch.searchsorted(position, kept), NONE)
        newest = slice(max(0, len(keys) - ranker.taste.newest), None)
        taste = ranker.gsu.gated(encode_pairs(units, batch.item_BL[0, newest], batch.query_BL[0, newest]))
        pooled = ranker.pooled_of_pairs(taste, ranker.taste.weights(batch.hours_BL, batch.mask_BL)[0][:, newest])
        return ranker.rank(seen, ranker.encode(seen), rows[None], ranker.cross(batch), pooled[None]).logit_BTS

    return score
