"""From artefacts and settings to a dual tower to train, its lanes, and what of an earlier one it starts from."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from seminar.artifacts import Artifact
from seminar.batching import WindowBatch
from seminar.candidates.mmsrec import MMSRec, Pretraining
from seminar.candidates.sasrec import SASRec
from seminar.candidates.tower import DualTower
from seminar.candidates.two_tower import TwoTower
from seminar.channels import VectorTables, encoders_of
from seminar.config import PretrainRetrieverConfig, RetrieverConfig, TrainRetrieverConfig
from seminar.errors import VersionMismatch, explain
from seminar.train.lanes import Lane
from seminar.train.sampling import WindowSamples

TOWERS: dict[str, type[DualTower]] = {"mmsrec": MMSRec, "sasrec": SASRec, "two_tower": TwoTower}


def artifact_kind(config: RetrieverConfig) -> str:
    """Kind of the artefact of a trained tower: only MMSRec's is served, so the others do not take its place."""
    return "retriever" if config.kind == "mmsrec" else config.kind


def fresh_towers(config: RetrieverConfig, pretrain: PretrainRetrieverConfig, vectors: Path) -> Pretraining:
    """MMSRec ready for pretraining, the same on every worker."""
    return Pretraining(config, VectorTables.load(vectors), torch.Generator().manual_seed(pretrain.seed))


def fresh_retriever(config: RetrieverConfig, train: TrainRetrieverConfig, vectors: Path, start: Path | None) -> DualTower:
    """A tower of `config.kind` ready for training, the same on every worker; `start`: weights to begin with."""
    tower = TOWERS[config.kind](config, VectorTables.load(vectors), torch.Generator().manual_seed(train.seed))
    tower.uniform_negatives, tower.query_dropout = train.uniform_negatives, train.query_dropout
    if start is not None:
        fresh = load_fitting(tower, load_file(start))
        if any(name.startswith("fusion.layers.") for name in fresh):
            got, fix = f"other shapes for {', '.join(fresh[:3])}", "use the retriever section that it was trained with"
            raise VersionMismatch(explain(f"start {start}", got=got, expected="the shapes of this run", fix=fix))
    return tower


def load_fitting(tower: nn.Module, state: dict[str, torch.Tensor]) -> list[str]:
    """Load what has the same name and shape; returns the names that stay as they were."""
    own = tower.state_dict()
    fitting = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
    tower.load_state_dict(fitting, strict=False)
    return sorted(set(own) - set(fitting))


def load_retriever(retriever: Artifact, vectors: Artifact) -> DualTower:
    """A trained tower over the catalogue of `vectors`, which may have grown since; items added later live by their content.

    VersionMismatch if the vectors come from other encoders than those it was trained with.
    """
    trained, given = retriever.manifest.config["encoders"], encoders_of(vectors)
    if trained != given:
        fix = "embed with the same encoders, or train again"
        raise VersionMismatch(explain(f"vectors {vectors.version}", got=given, expected=trained, fix=fix))
    config = RetrieverConfig.model_validate(retriever.manifest.config["retriever"])
    tower = TOWERS[config.kind](config, VectorTables.load(vectors), torch.Generator().manual_seed(0))
    tower.load_state_dict(load_file(retriever.file(f"{retriever.manifest.kind}.safetensors")))
    return tower.eval()


def window_lane(
    shards: list[Path], config: PretrainRetrieverConfig | TrainRetrieverConfig, window: int, lane: int
) -> Lane[WindowBatch]:
    """One lane of sequence windows from files of schema PAIRS."""
    return Lane(shards, lane, config, config.windows_per_lane, partial(WindowSamples, window=window))


def shapes_of(config: RetrieverConfig) -> dict[str, Any]:
    """What a tower's version depends on."""
    return {"retriever": config.model_dump(mode="json")}
