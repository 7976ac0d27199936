"""From artefacts and settings to something to train: fresh models, their lanes, and what their version depends on."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from seminar.artifacts import Artifact
from seminar.baselines.base import Baseline
from seminar.batching import Batch
from seminar.channels import ChannelEncoder, VectorTables, encoders_of
from seminar.config import PSU_SHAPES, FinetuneConfig, ModelConfig, PretrainConfig, TrainConfig
from seminar.errors import VersionMismatch, explain
from seminar.gate import load_content
from seminar.models import build_model
from seminar.psu import PSU
from seminar.ranker import Ranker
from seminar.train.lanes import Lane
from seminar.train.sampling import finetune_lane

HOW = ("num_workers", "checkpoint_every", "max_failures", "log_every")
"""Settings that change how a result is computed, not which."""


def fresh_psu(model: ModelConfig, config: PretrainConfig, vectors: Path) -> PSU:
    """A PSU ready for pretraining, the same on every worker."""
    return PSU.build(model, config, VectorTables.load(vectors), torch.Generator().manual_seed(config.seed))


def fresh_model(model: ModelConfig, config: FinetuneConfig, vectors: Path, psu: Path | None) -> Ranker | Baseline:
    """A model of `model.kind` ready for training, the same on every worker; channels, or their content, from `psu` if given."""
    unit = build_model(model, VectorTables.load(vectors), torch.Generator().manual_seed(config.seed))
    if psu is not None and config.pretrained == "content":
        assert isinstance(unit.channels, ChannelEncoder), "what is trained encodes content itself"
        load_content(load_file(psu), unit.channels)
    elif psu is not None:
        unit.load_psu(load_file(psu))
    if isinstance(unit, Ranker):
        unit.distillation, unit.quantised_search = config.distillation, config.quantised_search
    if isinstance(unit.channels, ChannelEncoder):
        unit.channels.show_as_new, unit.channels.hide_channels = config.id_dropout, config.channel_dropout
    return unit


def open_finetune_lane(shards: list[Path], config: FinetuneConfig, vectors: Path, lane: int) -> Lane[Batch]:
    """One lane of requests from the PAIRS files of a pairs artefact."""
    # Two small columns; the vectors themselves belong to the model.
    with safe_open(vectors / "vectors.safetensors", framework="numpy") as tables:
        return finetune_lane(shards, lane, config, tables.get_tensor("category_index"), tables.get_tensor("train_count"))


def shard_paths(pairs: Artifact) -> list[Path]:
    """The PAIRS files of a pairs artefact, in shard order."""
    return [pairs.file(name) for name in sorted(pairs.manifest.files) if name.startswith("shards/")]


def check_psu(psu: Artifact, vectors: Artifact, model: ModelConfig) -> None:
    """Raise VersionMismatch, naming what differs, unless the psu fits these vectors and this model section."""
    psu.require_input("vectors", vectors, "run pretrain")
    got, expected = psu.manifest.config["model"], psu_shapes(model)["model"]
    if got != expected:
        raise VersionMismatch(
            explain(f"psu {psu.version}", got=got, expected=expected, fix="run pretrain with this model section")
        )


def psu_shapes(model: ModelConfig) -> dict[str, Any]:
    """Of a model, a PSU depends on the shapes of its channels only."""
    return {"model": model.model_dump(mode="json", include=set(PSU_SHAPES))}


def recorded_config(section: str, shapes: Mapping[str, Any], config: TrainConfig, vectors: Artifact) -> dict[str, Any]:
    """What a version depends on beside its inputs."""
    return {
        **shapes,
        section: config.model_dump(mode="json", exclude=set(HOW)),
        "encoders": encoders_of(vectors),
    }


def curve_summary(curve: pa.Table) -> dict[str, Any]:
    """Steps, each loss over the last tenth of the steps, the median speed, and the seconds spent in steps."""
    last = curve.slice(len(curve) - max(len(curve) // 10, 1))
    speeds = {"step", "pairs", "pairs_per_s", "gradient_norm"}
    final = {name: float(np.mean(last[name])) for name in curve.column_names if name not in speeds}
    rate = curve["pairs_per_s"].to_numpy()
    seconds = float((curve["pairs"].to_numpy() / rate).sum())
    return {"steps": len(curve), "final": final, "pairs_per_s": float(np.median(rate)), "seconds": seconds}
