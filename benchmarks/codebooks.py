"""Codebooks at scale: seconds to train and to encode a million items in four channels, and what a nightly refit changes.

    python -m benchmarks.codebooks [--quick] [--config configs/complete_journey.toml]

Synthetic channels are clustered unit vectors with a decaying spectrum. --quick encodes 100,000 items instead of a million. The
parts on real embeddings need the trained model of --config and are left out without one; nothing is published there.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from benchmarks.codebooks_job import job
from benchmarks.codebooks_refresh import real_catalogue, refresh, rotations
from benchmarks.common import Goal, publish, run
from seminar.artifacts import Store
from seminar.codes.codebook import Stamp
from seminar.codes.codebook_fit import fit
from seminar.config import CodebookConfig, load_settings
from seminar.schema import NUM_CHANNELS

DIM, SAMPLE, BLOCK, CLUSTERS = 64, 65_536, 8192, 2000
REFERENCE_TRAIN_S, REFERENCE_ENCODE_S = 12.0, 4.0
"""One core, four channels, by faiss: k-means of the samples, and the faster end of what encoding a million items took."""
KINDS = {
    "256 centroids": CodebookConfig(),
    "256 centroids, opq": CodebookConfig(rotation="opq"),
    "16 centroids": CodebookConfig(num_centroids=16),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=Path("configs/complete_journey.toml"))
    parser.add_argument("--quick", action="store_true", help="100,000 items instead of a million")
    arguments = parser.parse_args()
    items = 100_000 if arguments.quick else 1_000_000
    goals = [goal for name, config in KINDS.items() for goal in timings(name, config, items)]
    goals += faiss_timings(items)
    goals += job(items)
    goals += refresh("planted drift", planted(100_000, 0), planted(5000, 1, centres=7))
    store = Store(load_settings(arguments.config).workdir)
    if (store.root / "bundle" / "current.json").is_file():
        text, attributes = real_catalogue(store)
        for name, channel in (("text", text), ("attributes", attributes)):
            old, new = np.split(channel.vectors, [len(channel.vectors) * 19 // 20])
            goals += refresh(f"Complete Journey, {name}, the last 5 % of items as new", old, new)
            goals += rotations(f"Complete Journey, {name}", channel)
    publish("codebooks", goals)


def planted(count: int, seed: int, centres: int = 0) -> Float32[ndarray, "N d"]:
    """Unit vectors around CLUSTERS centres of Zipf-like size; another number of `centres` draws others."""
    draw, shape = np.random.default_rng([seed, centres]), np.random.default_rng(centres)
    spectrum = np.exp(-np.arange(DIM, dtype=np.float32) / 32)
    mixing = np.linalg.qr(np.random.default_rng(99).standard_normal((DIM, DIM)))[0].astype(np.float32)
    centre = shape.standard_normal((CLUSTERS, DIM), np.float32)
    chosen = np.minimum(draw.zipf(1.3, count) - 1, CLUSTERS - 1)
    vectors = ((centre[chosen] + 0.5 * draw.standard_normal((count, DIM), np.float32)) * spectrum) @ mixing
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def timings(name: str, config: CodebookConfig, items: int) -> list[Goal]:
    """CPU seconds to fit four channels to their samples, and to encode `items` of each block by block."""
    samples = [planted(SAMPLE, channel) for channel in range(NUM_CHANNELS)]
    fit([sample[:300] for sample in samples], config, Stamp("", ""))  # compiles
    began = time.process_time()
    codebooks, _ = fit(samples, config, Stamp("", ""))
    training = time.process_time() - began
    encoding = sum(
        encode_seconds(lambda block, c=channel: codebooks.quantise(c, block), items) for channel in range(NUM_CHANNELS)
    )
    millions = items / 1e6
    whole = f"{items:,} items x {NUM_CHANNELS} channels, d={DIM}, {name}"
    estimate = training + encoding / millions * 100
    arithmetic = f"{training:.2f} + 100 x {encoding / millions:.2f} s"
    targets = (REFERENCE_TRAIN_S, REFERENCE_ENCODE_S * millions) if config == CodebookConfig() else (None, None)
    return [
        Goal(f"{whole}: training on {SAMPLE:,} a channel", training, "CPU s", targets[0], at_least=False),
        Goal(f"{whole}: encoding", encoding, "CPU s", targets[1], at_least=False),
        Goal(f"  packed codes of a behaviour, {name}", codebooks.bytes_per_behaviour, "bytes"),
        Goal(f"  estimate for 100M items, not measured: {arithmetic}", estimate / 3600, "core hours"),
    ]


def encode_seconds(encode: Callable[[ndarray], object], items: int) -> float:
    """Thread CPU seconds of a call a block, without the making of the vectors."""
    pool = planted(16 * BLOCK, 1)
    seconds = 0.0
    for first in range(0, items, BLOCK):
        start = first % len(pool)
        block = pool[start : start + min(BLOCK, items - first)]
        began = time.thread_time()
        encode(block)
        seconds += time.thread_time() - began
    return seconds


def faiss_timings(items: int) -> list[Goal]:
    """The same work by faiss with one thread; nothing where it is not installed."""
    try:
        import faiss
    except ImportError:
        return []
    faiss.omp_set_num_threads(1)
    training = encoding = 0.0
    for channel in range(NUM_CHANNELS):
        quantiser = faiss.ProductQuantizer(DIM, 16, 8)
        quantiser.cp.niter = CodebookConfig().iterations
        sample = planted(SAMPLE, channel)
        began = time.thread_time()
        quantiser.train(sample)
        training += time.thread_time() - began
        encoding += encode_seconds(quantiser.compute_codes, items)
    name = f"{items:,} items x {NUM_CHANNELS} channels, d={DIM}, 256 centroids, faiss with one thread"
    return [Goal(f"{name}: training", training, "CPU s"), Goal(f"{name}: encoding", encoding, "CPU s")]


if __name__ == "__main__":
    run(main)
