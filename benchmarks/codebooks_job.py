"""The whole fit-codebooks job through Ray, on a synthetic catalogue: wall clock, and what the driver needs beside its codes."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_tensors

from benchmarks.common import Goal
from seminar.artifacts import Store
from seminar.channels import VectorTables
from seminar.config import ModelConfig, Settings
from seminar.ranker import Ranker
from seminar.schema import NUM_CHANNELS

CONTENT = 64
"""Width of content vectors: smaller than a real encoder's, for this is about what follows them."""


def job(items: int) -> list[Goal]:
    """Made in a folder that is deleted afterwards; the job runs in a process of its own, whose memory is measured."""
    with tempfile.TemporaryDirectory() as folder:
        build(Store(Path(folder)), items)
        command = [sys.executable, "-m", "benchmarks.codebooks_job", folder]
        measured = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout.splitlines()[-1])
    units_mib = items * NUM_CHANNELS * measured["dim"] * 4 / 2**20
    name = f"fit-codebooks through Ray, {items:,} items and as many queries"
    return [
        Goal(f"{name}: wall clock on this machine", measured["seconds"], "s"),
        Goal(
            f"  estimate for 100M items, not measured: at most {100e6 / items:,.0f} times that",
            measured["seconds"] * 100e6 / items / 60,
            "min",
        ),
        Goal("  growth of the driver's peak memory", measured["growth_mib"], "MiB"),
        Goal(
            "  that as a share of all unit vectors",
            measured["growth_mib"] / units_mib,
            "",
            1.0 if items >= 10**6 else None,
            False,
        ),
        Goal("  the artefact", measured["artifact_mib"], "MiB"),
    ]


def build(store: Store, items: int) -> None:
    """A `vectors` and a `model` artefact of a catalogue whose every row has all channels."""
    draw = np.random.default_rng(0)
    centre = draw.standard_normal((2000, CONTENT), np.float32)

    def content() -> np.ndarray:
        vectors = centre[draw.integers(0, len(centre), items)] + 0.5 * draw.standard_normal((items, CONTENT), np.float32)
        return vectors.astype(np.float16)

    rows = np.arange(items, dtype=np.int32)
    tables = VectorTables(
        text=content(),
        text_row=rows,
        image=content(),
        image_row=rows,
        query=content(),
        query_row=rows,
        attribute_hash=draw.integers(0, 1 << 40, 2 * items),
        attribute_offsets=np.arange(items + 1) * 2,
        category_index=np.zeros(items, np.int32),
        train_count=np.minimum(draw.zipf(1.5, items) - 1, 10**6),
        week_offsets=np.zeros(items + 1, np.int64),
        week=np.empty(0, np.int32),
        week_count=np.empty(0, np.int32),
    )
    pairs = store.publish(store.draft("pairs", {}, {}))
    draft = store.draft("vectors", {"pairs": pairs}, {"text_encoder": "none", "lineage": []})
    save_file(vars(tables), draft.path / "vectors.safetensors")
    vectors, config = store.publish(draft), ModelConfig(id_dim=8)
    draft = store.draft("model", {"pairs": pairs, "vectors": vectors}, {"model": config.model_dump(mode="json")})
    ranker = Ranker.build(config, tables, torch.Generator().manual_seed(0))
    save_tensors(ranker.state_dict(), draft.path / "model.safetensors")
    store.publish(draft)


def measure(folder: Path) -> dict[str, float]:
    """Run the job on the store in `folder`."""
    from workflows import fit_codebooks
    from workflows.runtime import ray_session

    settings, store = Settings(workdir=folder), Store(folder)
    with ray_session(settings.ray):
        before, began = memory_mib("VmRSS"), time.perf_counter()
        made = fit_codebooks.run(settings, store, current=False)
        seconds = time.perf_counter() - began
    size = made.file("codebooks.safetensors").stat().st_size / 2**20
    growth = memory_mib("VmHWM") - before
    return {"seconds": seconds, "growth_mib": growth, "artifact_mib": size, "dim": settings.model.dim}


def memory_mib(line: str) -> float:
    """A line of /proc/self/status: VmRSS now, VmHWM at most so far. The peak of getrusage is inherited from the parent."""
    status = Path("/proc/self/status").read_text().splitlines()
    return next(float(found.split()[1]) / 1024 for found in status if found.startswith(line))


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]))))
