"""pairs + vectors -> psu: the channel encoder and gate, learned from sequences before any click model exists."""

from functools import partial

from seminar.artifacts import Artifact, Store
from seminar.config import Settings
from seminar.train.build import fresh_psu, psu_shapes, shard_paths
from seminar.train.sampling import pretrain_lane
from workflows.train_artifact import train_artifact


def run(settings: Settings, store: Store) -> Artifact:
    """Pretrain on the current pairs and vectors; resumes an interrupted run, returns a finished one at once."""
    store = Store(store.root.resolve())  # a worker's current folder is not the driver's
    inputs = {"pairs": store.open("pairs"), "vectors": store.open("vectors")}
    config = settings.pretrain
    build = partial(fresh_psu, settings.model, config, inputs["vectors"].path)
    open_lane = partial(pretrain_lane, shard_paths(inputs["pairs"]), config=config)
    shapes = psu_shapes(settings.model)
    return train_artifact(store, "psu", "pretrain", inputs, settings, shapes, config, build, open_lane)
