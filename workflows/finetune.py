"""pairs + vectors (+ psu) -> model: GSU, ESU and the CTR and PSR heads, on top of the pretrained channels."""

from functools import partial
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file

from seminar.artifacts import Artifact, Store
from seminar.batching import Batch
from seminar.channels import ChannelEncoder, VectorTables
from seminar.config import FinetuneConfig, ModelConfig, Settings
from seminar.errors import VersionMismatch, explain
from seminar.ranker import Ranker
from seminar.train.lanes import Lane
from seminar.train.sampling import finetune_lane
from workflows.train_artifact import shard_paths, train_artifact


def run(settings: Settings, store: Store) -> Artifact:
    """Fine-tune on the current pairs, vectors and, unless `pretrained` is off, psu; resumes an interrupted run.

    Raises VersionMismatch when the psu has other inputs or another model section than this run.
    """
    config = settings.finetune
    store = Store(store.root.resolve())  # a worker's current folder is not the driver's
    inputs = {"pairs": store.open("pairs"), "vectors": store.open("vectors")}
    psu = None
    if config.pretrained:
        inputs["psu"] = store.open("psu")
        check_psu(inputs["psu"], inputs["vectors"], settings.model)
        psu = inputs["psu"].file("psu.safetensors")
    build = partial(build_ranker, settings.model, config, inputs["vectors"].path, psu)
    open_lane = partial(_open_lane, shard_paths(inputs["pairs"]), config, inputs["vectors"].path)
    return train_artifact(store, "model", inputs, settings, config, build, open_lane)


def build_ranker(model: ModelConfig, config: FinetuneConfig, vectors: Path, psu: Path | None) -> Ranker:
    """A ranker ready for training, the same on every worker, its channels restored from `psu` if given."""
    ranker = Ranker.build(model, VectorTables.load(vectors), torch.Generator().manual_seed(config.seed))
    if psu is not None:
        ranker.load_psu(load_file(psu))
    ranker.distillation = config.distillation
    if isinstance(ranker.channels, ChannelEncoder):
        ranker.channels.hide_ids = config.id_dropout
    return ranker


def check_psu(psu: Artifact, vectors: Artifact, model: ModelConfig) -> None:
    """Raise VersionMismatch, naming what differs, unless the psu fits these vectors and this model section."""
    psu.require_input("vectors", vectors, "run pretrain")
    shapes = ("dim", "id_dim", "num_token_rows", "gate")
    got, expected = (
        {name: values[name] for name in shapes} for values in (psu.manifest.config["model"], model.model_dump(mode="json"))
    )
    if got != expected:
        raise VersionMismatch(
            explain(f"psu {psu.version}", got=got, expected=expected, fix="run pretrain with this model section")
        )


def _open_lane(shards: list[Path], config: FinetuneConfig, vectors: Path, lane: int) -> Lane[Batch]:
    # Two small columns; the vectors themselves belong to the model.
    with safe_open(vectors / "vectors.safetensors", framework="numpy") as tables:
        return finetune_lane(shards, lane, config, tables.get_tensor("category_index"), tables.get_tensor("train_count"))
