"""Every kind of model by its name: built, restored and loaded through one door."""

from collections.abc import Callable

import torch

from seminar.artifacts import Artifact
from seminar.baselines.base import Baseline, InterestUnit
from seminar.baselines.din import DIN
from seminar.baselines.eta import ETA
from seminar.baselines.muse import MUSE
from seminar.baselines.qin import QIN
from seminar.baselines.sdim import SDIM
from seminar.baselines.sim_hard import SIMHard
from seminar.baselines.sim_soft import SIMSoft
from seminar.baselines.twin import TWIN
from seminar.channels import VectorTables
from seminar.config import Kind, ModelConfig
from seminar.ranker import Ranker, load_ranker, restored

UNITS: dict[Kind, Callable[[ModelConfig, torch.Generator], InterestUnit]] = {
    "din": DIN,
    "sim_hard": SIMHard,
    "sim_soft": SIMSoft,
    "eta": ETA,
    "sdim": SDIM,
    "twin": TWIN,
    "qin": QIN,
    "muse": MUSE,
}
NAMES: dict[Kind, str] = {
    "seminar": "SEMINAR",
    "din": "DIN",
    "sim_hard": "SIM-hard",
    "sim_soft": "SIM-soft",
    "eta": "ETA",
    "sdim": "SDIM",
    "twin": "TWIN",
    "qin": "QIN",
    "muse": "MUSE",
}
"""As the papers write them."""


def build_model(
    config: ModelConfig, tables: VectorTables, generator: torch.Generator, num_ids: int | None = None
) -> Ranker | Baseline:
    """A fresh model of `config.kind`. num_ids: catalogue rows that have an ID embedding; all of them if none is given."""
    if config.kind == "seminar":
        return Ranker.build(config, tables, generator, num_ids)
    return Baseline.build(UNITS[config.kind](config, generator), config, tables, generator, num_ids)


def load_model(model: Artifact, vectors: Artifact) -> Ranker | Baseline:
    """The trained model of a `model` artefact, of any kind; see `load_ranker` for what the vectors must be."""
    if ModelConfig.model_validate(model.manifest.config["model"]).kind == "seminar":
        return load_ranker(model, vectors)
    return restored(model, vectors, build_model)
