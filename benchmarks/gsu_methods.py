"""Every way of finding the top-K that is compared, under one name each, and the exact forms they are measured against."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from benchmarks.gsu_worlds import World
from seminar.retrieval.base import Index, Keys, Probe, Retriever
from seminar.retrieval.decoded import DecodedRetriever
from seminar.retrieval.exact import ExactRetriever, MergedRetriever
from seminar.retrieval.int8 import Int8Retriever
from seminar.retrieval.merged_codes import MergedPQRetriever, MergedRQRetriever
from seminar.retrieval.pq import PQRetriever
from seminar.retrieval.regime import OVERFETCH
from seminar.retrieval.rescored import RescoredRetriever
from seminar.retrieval.rivals.fastscan import FastScanRetriever
from seminar.retrieval.rivals.hnsw import HNSWRetriever
from seminar.retrieval.rivals.plain_pq import PlainPQRetriever
from seminar.retrieval.rivals.simhash import SimHashRetriever

PAPER, MERGED = "paper's exact, torch", "merged float32, torch"
INT8, PQ4, PQ8 = "int8", "multi-modal PQ, 4 bit", "multi-modal PQ, 8 bit"
FASTSCAN = "faiss FastScan, 4 bit"
SIMHASH = "SimHash LSH, 256 bit"


@dataclass(frozen=True)
class Method:
    """A retriever and how much it fetches before exact re-scoring. ours: built here, not a rival."""

    name: str
    make: Callable[[World], Retriever]
    overfetch: float
    ours: bool = True

    def rescored(self, world: World) -> Retriever:
        """The same with its candidates re-scored."""
        return RescoredRetriever(self.make(world), world.space, self.overfetch)


def sample(world: World, count: int = 16_384) -> Keys:
    """Behaviours to train a quantiser of keys on, none of them in the histories that are searched."""
    return world.pool[:count]


def merged_sample(world: World) -> torch.Tensor:
    return world.space.merged(sample(world))


def merged_fastscan(world: World) -> Retriever:
    return FastScanRetriever(world.space, merged_sample(world).numpy(), "merged", dims=2)


def gated_sample(world: World) -> torch.Tensor:
    keys = sample(world)
    return (world.space.parts(keys) * keys.weight_LM[..., None]).flatten(1)


METHODS = (
    Method(INT8, lambda w: Int8Retriever(w.space), OVERFETCH["int8"]),
    Method(PQ8, lambda w: PQRetriever(w.space, *w.codes_8), OVERFETCH["pq"]),
    Method("multi-modal PQ, 8 bit, no rotation", lambda w: PQRetriever(w.space, *w.unrotated_8), OVERFETCH["pq"]),
    Method(PQ4, lambda w: PQRetriever(w.space, *w.codes_4), OVERFETCH["pq"]),
    Method("decode once, 8 bit", lambda w: DecodedRetriever(w.space, *w.codes_8), OVERFETCH["pq"]),
    Method("merged PQ, 32 B", lambda w: MergedPQRetriever(w.space, merged_sample(w), 32), OVERFETCH["pq"]),
    Method("merged PQ, 16 B", lambda w: MergedPQRetriever(w.space, merged_sample(w), 16), OVERFETCH["pq"]),
    Method("merged PQ, 8 B", lambda w: MergedPQRetriever(w.space, merged_sample(w), 8), OVERFETCH["pq"]),
    Method("merged RQ, 16 B", lambda w: MergedRQRetriever(w.space, merged_sample(w), 16), OVERFETCH["pq"]),
    Method(FASTSCAN, lambda w: FastScanRetriever(w.space, gated_sample(w).numpy()), OVERFETCH["pq"], ours=False),
    Method("faiss FastScan, merged, 16 B", lambda w: merged_fastscan(w), OVERFETCH["pq"], ours=False),
    Method("faiss PQ, 16 B", lambda w: PlainPQRetriever(w.space, merged_sample(w).numpy(), 16), OVERFETCH["pq"], ours=False),
    Method(SIMHASH, lambda w: SimHashRetriever(w.space, 256, _seeded()), OVERFETCH["pq"], ours=False),
    Method("SimHash LSH, 128 bit", lambda w: SimHashRetriever(w.space, 128, _seeded()), OVERFETCH["pq"], ours=False),
    Method("HNSW a channel", lambda w: HNSWRetriever(w.space), 1.0, ours=False),
)


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def method(name: str) -> Method:
    """One of METHODS."""
    return next(m for m in METHODS if m.name == name)


def exact_forms(world: World, keys: Keys) -> dict[str, Callable[[Probe, int], object]]:
    """The two baselines as torch does them: one matrix product and torch.topk, keys gated or merged beforehand."""
    parts, merged = ExactRetriever(world.space).index(keys), MergedRetriever(world.space).index(keys)
    gated_LD, key_Ld, channels = parts.gated_LD, merged.key_Ld, world.space.num_channels
    return {
        PAPER: lambda probe, k: torch.topk(probe.query_Td.repeat(1, channels) @ gated_LD.T, k, sorted=False),
        MERGED: lambda probe, k: torch.topk(probe.query_Td @ key_Ld.T, k, sorted=False),
    }


def index_of(world: World, name: str, keys: Keys, *, rescored: bool = False) -> Index:
    """The index of one history by one method."""
    chosen = method(name)
    return (chosen.rescored(world) if rescored else chosen.make(world)).index(keys)
