"""pairs + vectors (+ psu) -> model: SEMINAR, or a baseline by `model.kind`, with its CTR and PSR heads on top of the channels."""

from functools import partial

from seminar.artifacts import Artifact, Store
from seminar.config import Settings
from seminar.train.build import check_psu, fresh_model, open_finetune_lane, shard_paths
from workflows.train_artifact import train_artifact


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
    build = partial(fresh_model, settings.model, config, inputs["vectors"].path, psu)
    open_lane = partial(open_finetune_lane, shard_paths(inputs["pairs"]), config, inputs["vectors"].path)
    shapes = {"model": settings.model.model_dump(mode="json")}
    return train_artifact(store, "model", "finetune", inputs, settings, shapes, config, build, open_lane)
