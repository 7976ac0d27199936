"""pairs + vectors -> towers: MMSRec's fusion encoder, aligned over every two combinations of an item's modalities."""

from functools import partial

from seminar.artifacts import Artifact, Store
from seminar.config import Settings
from seminar.errors import ConfigError, explain
from seminar.train.build import shard_paths
from seminar.train.retriever import fresh_towers, shapes_of, window_lane
from workflows.train_artifact import train_artifact


def run(settings: Settings, store: Store) -> Artifact:
    """Pretrain on the items of the current pairs and vectors; resumes an interrupted run, returns a finished one at once."""
    if settings.retriever.kind != "mmsrec":
        fix = "leave retriever.kind out, or go on with train-retriever"
        raise ConfigError(explain("retriever.kind", got=settings.retriever.kind, expected="mmsrec, which pretrains", fix=fix))
    store = Store(store.root.resolve())  # a worker's current folder is not the driver's
    inputs = {"pairs": store.open("pairs"), "vectors": store.open("vectors")}
    config = settings.pretrain_retriever
    build = partial(fresh_towers, settings.retriever, config, inputs["vectors"].path)
    open_lane = partial(window_lane, shard_paths(inputs["pairs"]), config, settings.retriever.window)
    shapes = shapes_of(settings.retriever)
    return train_artifact(store, "towers", "pretrain_retriever", inputs, settings, shapes, config, build, open_lane)
