"""From inputs and settings to a published `psu` or `model`: what pretraining and fine-tuning share around the training itself."""

from collections.abc import Callable, Mapping
from typing import Any

import pyarrow.parquet as pq
from safetensors.torch import save_file
from torch import nn

from seminar.artifacts import Artifact, Store
from seminar.config import Settings, TrainConfig
from seminar.train.build import curve_summary, recorded_config
from seminar.train.checkpoint import model_weights
from seminar.train.lanes import Lane
from workflows.runtime import ray_session
from workflows.train_loop import TrainJob, train


def train_artifact(
    store: Store,
    kind: str,
    section: str,
    inputs: Mapping[str, Artifact],
    settings: Settings,
    shapes: Mapping[str, Any],
    config: TrainConfig,
    build: Callable[[], nn.Module],
    open_lane: Callable[[int], Lane],
) -> Artifact:
    """The published `kind` of these inputs and settings: weights, curve.parquet and metrics; at once if it exists already.

    section: what the settings call `config`. shapes: the settings of what is trained, by section. The version does not depend on
    what cannot change the result: workers, checkpoints, restarts.
    """
    # Rows of both must mean the same items.
    inputs["vectors"].require_input("pairs", inputs["pairs"], "run embed")
    recorded = recorded_config(section, shapes, config, inputs["vectors"])
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
    return store.publish(draft, {**curve_summary(curve), "origins": inputs["pairs"].manifest.metrics.get("origins", {})})
