"""From inputs and settings to a published `psu` or `model`: what pretraining and fine-tuning share around the training itself."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.torch import save_file
from torch import nn

from seminar.artifacts import Artifact, Store
from seminar.channels import encoders_of
from seminar.config import Settings, TrainConfig
from seminar.train.checkpoint import model_weights
from seminar.train.lanes import Lane
from workflows.runtime import ray_session
from workflows.train_loop import TrainJob, train

HOW = ("num_workers", "checkpoint_every", "max_failures", "log_every")
"""Settings that change how a result is computed, not which."""


def train_artifact(
    store: Store,
    kind: str,
    inputs: Mapping[str, Artifact],
    settings: Settings,
    config: TrainConfig,
    build: Callable[[], nn.Module],
    open_lane: Callable[[int], Lane],
) -> Artifact:
    """The published `kind` of these inputs and settings: weights, curve.parquet and metrics; at once if it exists already.

    The version does not depend on what cannot change the result: workers, checkpoints, restarts.
    """
    # Rows of both must mean the same items.
    inputs["vectors"].require_input("pairs", inputs["pairs"], "run embed")
    section = "pretrain" if kind == "psu" else "finetune"
    recorded = {
        "model": settings.model.model_dump(mode="json"),
        section: config.model_dump(mode="json", exclude=set(HOW)),
        "encoders": encoders_of(inputs["vectors"]),
    }
    version = store.version_of(kind, inputs, recorded)
    if store.exists(kind, version):
        store.set_current(kind, version)
        return store.open(kind, version)
    draft = store.draft(kind, inputs, recorded)
    with ray_session(settings.ray):
        checkpoint = train(TrainJob(section, config, draft.path, build, open_lane), settings.ray)
    save_file(model_weights(checkpoint), draft.path / f"{kind}.safetensors")
    curve = pq.read_table(checkpoint / "curve.parquet")
    pq.write_table(curve, draft.path / "curve.parquet")
    return store.publish(draft, {**summary(curve), "origins": inputs["pairs"].manifest.metrics.get("origins", {})})


def summary(curve: pa.Table) -> dict[str, Any]:
    """Steps, each loss over the last tenth of the steps, and the median speed."""
    last = curve.slice(len(curve) - max(len(curve) // 10, 1))
    speeds = {"step", "pairs", "pairs_per_s", "gradient_norm"}
    final = {name: float(np.mean(last[name])) for name in curve.column_names if name not in speeds}
    return {"steps": len(curve), "final": final, "pairs_per_s": float(np.median(curve["pairs_per_s"]))}


def shard_paths(pairs: Artifact) -> list[Path]:
    """The PAIRS files of a pairs artefact, in shard order."""
    return [pairs.file(name) for name in sorted(pairs.manifest.files) if name.startswith("shards/")]
