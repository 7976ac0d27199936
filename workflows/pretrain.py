"""pairs + vectors -> psu: the channel encoder and gate, learned from sequences before any click model exists."""

from functools import partial
from pathlib import Path

import torch

from seminar.artifacts import Artifact, Store
from seminar.batching import WindowBatch
from seminar.channels import VectorTables
from seminar.config import ModelConfig, PretrainConfig, Settings
from seminar.psu import PSU
from seminar.train.lanes import Lane
from seminar.train.sampling import pretrain_lane
from workflows.train_artifact import shard_paths, train_artifact


def run(settings: Settings, store: Store) -> Artifact:
    """Pretrain on the current pairs and vectors; resumes an interrupted run, returns a finished one at once."""
    store = Store(store.root.resolve())  # a worker's current folder is not the driver's
    inputs = {"pairs": store.open("pairs"), "vectors": store.open("vectors")}
    config = settings.pretrain
    build = partial(build_psu, settings.model, config, inputs["vectors"].path)
    open_lane = partial(_open_lane, shard_paths(inputs["pairs"]), config)
    return train_artifact(store, "psu", inputs, settings, config, build, open_lane)


def build_psu(model: ModelConfig, config: PretrainConfig, vectors: Path) -> PSU:
    """A fresh PSU, the same on every worker."""
    return PSU.build(model, config, VectorTables.load(vectors), torch.Generator().manual_seed(config.seed))


def _open_lane(shards: list[Path], config: PretrainConfig, lane: int) -> Lane[WindowBatch]:
    return pretrain_lane(shards, lane, config)
