"""What does approximate retrieval cost the end model? AUC, NDCG@10 and HIT@10 of every codec and K, against exact retrieval.

    python -m benchmarks.end_model [--config configs/complete_journey.toml] [--users N] [--threads N]

Every held-out request of the evaluation (one a user) is ranked by the trained model with the K behaviours that each method keeps:
the same model, candidates, and features of the whole history, so only the ESU's input differs. Differences are paired by user.
Where the config's workdir has no current bundle, the jobs that make one run first. --users measures a sample and writes no files.
"""

import argparse
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy import ndarray

from benchmarks.common import publish, run
from benchmarks.end_model_scores import EXACT, RESCORED, Codec, Contest, Counts
from benchmarks.end_model_table import Measured, goals, markdown, slices
from benchmarks.gsu_methods import INT8, PQ4, PQ8, method
from benchmarks.gsu_worlds import World
from seminar.artifacts import Artifact, Store
from seminar.batching import Request
from seminar.bundle import Bundle
from seminar.channels import encode_pairs
from seminar.codes.codebook import CatalogueCodes, Codebooks
from seminar.config import EvaluateConfig, Settings, load_settings
from seminar.errors import ConfigError, DataError, explain
from seminar.evaluate.negatives import ItemPool
from seminar.evaluate.protocol import HeldOut, held_out_pairs, in_user_sample, ranking_request
from seminar.evaluate.report import protocol_sentence
from seminar.history_search import key_space
from seminar.progress import Progress
from seminar.retrieval.base import Keys
from seminar.schema import ORIGINS
from seminar.sequences import Histories
from seminar.train.build import shard_paths
from seminar.train.lanes import read_shards
from workflows import embed, finetune, fit_codebooks, prepare, pretrain
from workflows.runtime import absolute, ray_session

CODECS = (INT8, PQ8, PQ4, "merged PQ, 16 B", "merged RQ, 16 B", "SimHash LSH, 256 bit")
KS = (10, 20, 50, 100)
SAMPLE = 16_384
"""Behaviours of training that quantisers of merged keys are fitted on."""
_RANDOM, _SAMPLE = range(2)


@dataclass(frozen=True)
class ServedWorld(World):
    """A bundle as methods are made for it; 8-bit codes are the bundle's own."""

    bundle: Bundle = field(kw_only=True)

    @cached_property
    def codes_8(self) -> tuple[Codebooks, CatalogueCodes]:
        return self.bundle.codebooks, self.bundle.codes


@dataclass(frozen=True)
class Trial:
    """One held-out request: the pair, its candidates, and which of them is the positive."""

    held: HeldOut
    request: Request
    place: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/complete_journey.toml"))
    parser.add_argument("--users", type=int, help="about so many users, drawn by hash, instead of all")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="requests measured at a time")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    settings = absolute(load_settings(arguments.config))
    store = Store(settings.workdir)
    bundle = Bundle.load((store.open("bundle") if store.versions("bundle") else made(settings, store)).path)
    pairs = store.open("pairs", bundle.manifest.inputs["pairs"].version)
    histories, pool = read_shards(shard_paths(pairs)), ItemPool.of(pq.read_table(pairs.file("items.parquet")))
    chosen = trials(histories, pool, settings.evaluate, arguments.users)
    contest = contest_of(bundle, histories, settings.evaluate)
    counts = measure(contest, histories, chosen, settings.evaluate.seed, arguments.threads)
    measured = Measured(contest.names, widths(contest), KS, np.array([trial.held.start for trial in chosen]), counts)
    parts = slices(measured, settings.evaluate.seed)
    page = markdown(measured, parts, list(sentences(settings.evaluate, bundle, histories, chosen)))
    print(*page, sep="\n")
    if arguments.users is None:
        path = publish("end_model", list(goals(measured, parts))).with_suffix(".md")
        path.write_text("\n".join(page) + "\n")
        print(f"-> {path}")


def made(settings: Settings, store: Store) -> Artifact:
    """Everything from the data set to a bundle; finished jobs are found again."""
    with ray_session(settings.ray):
        for job in (prepare, embed, pretrain, finetune, fit_codebooks):
            job.run(settings, store)
    return store.open("bundle")


def trials(histories: Histories, pool: ItemPool, config: EvaluateConfig, users: int | None) -> list[Trial]:
    """Held-out requests of all users, or of about `users` of them; DataError if there are none."""
    rows = None if users is None else np.flatnonzero(in_user_sample(histories, config.seed, users / max(len(histories), 1)))
    drawn = [(pair, ranking_request(histories, pool, pair, config)) for pair in held_out_pairs(histories, config, rows)]
    found = [Trial(pair, *request) for pair, request in drawn if request is not None]
    if not found:
        fix = "use more users or another split"
        raise DataError(explain("evaluation", got="no held-out pair", expected="at least one", fix=fix))
    return found


def contest_of(bundle: Bundle, histories: Histories, config: EvaluateConfig) -> Contest:
    """Every codec made for this bundle, in one process; ConfigError under a gate of the target, whose keys cannot be merged."""
    if bundle.config.gate == "target":
        fix = "train with gate constant or behaviour"
        raise ConfigError(explain("model.gate", got="target", expected="a gate that merges keys", fix=fix))
    space = key_space(bundle)
    pool = training_keys(bundle, histories, np.random.default_rng([config.seed, _SAMPLE]))
    world = ServedWorld("end model", space, bundle.units, (), pool, bundle=bundle)
    made = [Codec(name, method(name).make(world), method(name).overfetch) for name in CODECS]
    return Contest(bundle.ranker, space, made, KS, config.max_history)


@torch.no_grad()
def training_keys(bundle: Bundle, histories: Histories, generator: np.random.Generator) -> Keys:
    """Keys of behaviours before the split, drawn evenly."""
    position_E = np.arange(len(histories.item)) - np.repeat(histories.offsets[:-1], histories.lengths)
    in_training = np.flatnonzero(position_E < np.repeat(histories.train_end, histories.lengths))
    drawn = np.sort(generator.choice(in_training, min(SAMPLE, len(in_training)), replace=False))
    item, query = (torch.from_numpy(column[drawn].astype(np.int64)) for column in (histories.item, histories.query))
    gated = bundle.ranker.gsu.gated(encode_pairs(bundle.units, item, query))
    return Keys(item, query, gated.pairs.present_NM, gated.weight_NM)


def measure(contest: Contest, histories: Histories, chosen: list[Trial], seed: int, threads: int) -> list[Counts]:
    """Counts of every trial, `threads` of them at a time; what is random depends on (seed, user) alone."""
    counts = []
    with Progress("end model: rank held-out requests", len(chosen), "users") as progress, ThreadPoolExecutor(threads) as pool:
        for one in pool.map(partial(_counts, contest, histories, seed), chosen):
            counts.append(one)
            progress.advance(1)
    return counts


def _counts(contest: Contest, histories: Histories, seed: int, trial: Trial) -> Counts:
    generator = np.random.default_rng([seed, trial.held.user, _RANDOM])
    return contest.counts(histories, trial.request, trial.place, generator)


def widths(contest: Contest) -> list[float]:
    """Bytes that a scan reads of each behaviour, by way of choosing; NaN where nothing is scanned."""
    codecs = {codec.name: codec.retriever.bytes_per_behaviour for codec in contest.codecs}
    known = codecs | {RESCORED.format(name): width for name, width in codecs.items()} | {EXACT: 4.0 * contest.space.dim}
    return [known.get(name, np.nan) for name in contest.names]


def sentences(config: EvaluateConfig, bundle: Bundle, histories: Histories, chosen: list[Trial]) -> Iterator[str]:
    """What the figures mean nothing without."""
    places = [int(histories.offsets[trial.held.row]) + trial.held.position for trial in chosen]
    origins: ndarray = np.unique(histories.origin[places])
    median = np.median([trial.held.start for trial in chosen])
    yield protocol_sentence(config)
    yield f"Query origin {'+'.join(ORIGINS[origin] for origin in origins)}; {len(chosen):,} users, median history {median:,.0f}."
    yield f"Model trained with K = {bundle.config.top_k}; bundle `{bundle.version}`."
    yield "Every method ranks the same candidates with the same model; only the K behaviours that its attention sees differ."
    yield "B: bytes a behaviour that a scan reads; re-scored methods read the exact keys of their candidates besides."
    yield "Recall: of the exact top-K. Same top 10: share of the ten candidates ranked best with exact retrieval that stay there."
    yield "Brackets: 95 % bootstrap intervals over users, paired. Below zero: lost against exact. 0: alike for every user."
    yield "random, newest: no retrieval. whole history: no top-K. Histories of at most K behaviours are kept whole by all."


if __name__ == "__main__":
    run(main)
