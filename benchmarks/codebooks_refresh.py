"""What a nightly refit changes, and what a rotation gains: distortion, share of codes that stay, recall of decoded vectors."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int
from numpy import ndarray

from benchmarks.common import Goal
from seminar.artifacts import Store
from seminar.channels import ChannelEncoder, VectorTables, unit_tables
from seminar.codes.codebook import Codebooks, Stamp
from seminar.codes.codebook_fit import ChannelReport, fit
from seminar.codes.distinct import sampling_order
from seminar.codes.error_report import ErrorByFrequency
from seminar.config import CodebookConfig
from seminar.ranker import load_ranker

K, PROBES, SEARCHED, NIGHTS = 100, 200, 20_000, 10


@dataclass(frozen=True)
class Channel:
    """Present vectors of one channel, in the order of catalogue rows, and how often each item was taken in training."""

    vectors: Float32[ndarray, "N d"]
    train_count: Int[ndarray, " N"]


def real_catalogue(store: Store) -> tuple[Channel, Channel]:
    """Text and attributes of the catalogue that the current bundle serves."""
    inputs = store.open("bundle").manifest.inputs
    model, vectors = (store.open(kind, inputs[kind].version) for kind in ("model", "vectors"))
    encoder = load_ranker(model, vectors).channels
    assert isinstance(encoder, ChannelEncoder)
    units, count = unit_tables(encoder), VectorTables.load(vectors).train_count
    present = units.item_present.numpy()
    text, attributes = (Channel(units.item_unit.numpy()[present[:, c], c], count[present[:, c]]) for c in (0, 2))
    return text, attributes


def refresh(name: str, old_Nd: Float32[ndarray, "N d"], new_Nd: Float32[ndarray, "N d"]) -> list[Goal]:
    """A stale codebook of the old vectors, refitted to old and new ones three ways."""
    stale, _ = trained(old_Nd, CodebookConfig())
    grown = np.concatenate([old_Nd, new_Nd])
    found = []
    for way, config, warm in (
        ("warm", CodebookConfig(), stale),
        ("warm, every centroid moves", CodebookConfig(warm_gain=0), stale),
        ("cold", CodebookConfig(seed=1), None),
    ):
        refitted, _ = trained(grown, config, warm)
        same = float((refitted.encode(0, old_Nd) == stale.encode(0, old_Nd)).mean())
        ratios = [distortion(refitted, part) / distortion(stale, part) for part in (old_Nd, new_Nd)]
        recalls = [recall(books, old_Nd) for books in (refitted, stale)]
        bound = way == "warm"
        found += [
            Goal(f"{name}: {way}: codes of old vectors as before", same, "", 0.98 if bound else None),
            Goal("  error of old vectors against the stale codebook's", ratios[0], "x", 1.02 if bound else None, at_least=False),
            Goal("  error of new vectors against the stale codebook's", ratios[1], "x"),
            Goal(f"  recall@{K} of decoded old vectors", recalls[0], "", 0.98 * recalls[1] if bound else None),
        ]
    return [*found, *nights(name, old_Nd, new_Nd)]


def nights(name: str, old_Nd: ndarray, new_Nd: ndarray) -> list[Goal]:
    """The new vectors arrive in NIGHTS parts, each night a warm refit: does what was never worth a move add up?"""
    codebooks, _ = trained(old_Nd, CodebookConfig())
    for night in range(1, NIGHTS + 1):
        grown = np.concatenate([old_Nd, new_Nd[: len(new_Nd) * night // NIGHTS]])
        codebooks, _ = trained(grown, CodebookConfig(), codebooks)
    whole = np.concatenate([old_Nd, new_Nd])
    cold, _ = trained(whole, CodebookConfig(seed=1))
    ratio = distortion(codebooks, whole) / distortion(cold, whole)
    return [Goal(f"{name}: error after {NIGHTS} warm nights against a cold fit's", ratio, "x", 1.05, at_least=False)]


def rotations(name: str, channel: Channel) -> list[Goal]:
    """Error by kind of codebook, over all vectors and by how often an item was taken; recall of decoded vectors."""
    found = []
    for count in (256, 16):
        for rotation in ("none", "opq"):
            codebooks, _ = trained(channel.vectors, CodebookConfig(num_centroids=count, rotation=rotation))
            error = codebooks.quantise(0, channel.vectors)[1]
            kind = f"{name}, {count} centroids, rotation {rotation}"
            parts = ErrorByFrequency.of(channel.train_count, np.ones(len(error), bool), error).summary()
            found += [
                Goal(f"{kind}: mean squared error", float(error.mean()), ""),
                *(Goal(f"  of items taken {part}", float(p["distortion"] or 0), "") for part, p in parts.items()),
                Goal(f"  recall@{K} of decoded vectors", recall(codebooks, channel.vectors), ""),
            ]
    return found


def trained(vector_Nd: ndarray, config: CodebookConfig, warm: Codebooks | None = None) -> tuple[Codebooks, list[ChannelReport]]:
    """One channel's codebook from its sample."""
    chosen = np.sort(sampling_order(len(vector_Nd), 0)[: config.sample_items])
    return fit([vector_Nd[chosen]], config, Stamp("", ""), warm)


def distortion(codebooks: Codebooks, vector_Nd: ndarray) -> float:
    return float(codebooks.quantise(0, vector_Nd)[1].mean())


def recall(codebooks: Codebooks, vector_Nd: ndarray) -> float:
    """Share of the exact K best inner products that decoded vectors rank among their K best, over PROBES of the vectors."""
    order = sampling_order(len(vector_Nd), 3)
    probe_Pd, key_Ld = vector_Nd[order[:PROBES]], vector_Nd[order[PROBES : PROBES + SEARCHED]]
    decoded_Ld = codebooks.decode(0, codebooks.encode(0, key_Ld))
    exact_PL, coded_PL = probe_Pd @ key_Ld.T, probe_Pd @ decoded_Ld.T
    least_P = np.partition(exact_PL, -K, axis=1)[:, -K]
    best_PK = np.argpartition(coded_PL, -K, axis=1)[:, -K:]
    # Equals of the K-th count: many items share one text.
    return float((np.take_along_axis(exact_PL, best_PK, 1) >= least_P[:, None]).mean())
