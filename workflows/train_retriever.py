"""pairs + vectors (+ towers) -> retriever: a dual tower that proposes candidates out of the whole catalogue."""

from functools import partial
from pathlib import Path

from seminar.artifacts import Artifact, Store
from seminar.channels import encoders_of
from seminar.config import RetrieverConfig, Settings
from seminar.errors import ConfigError, VersionMismatch, explain
from seminar.train.build import shard_paths
from seminar.train.retriever import artifact_kind, fresh_retriever, shapes_of, window_lane
from workflows.train_artifact import train_artifact


def run(settings: Settings, store: Store) -> Artifact:
    """Train `retriever.kind` on the current pairs and vectors; resumes an interrupted run.

    mmsrec starts from the current towers unless `train_retriever.pretrained` is off or `train_retriever.start` names others.
    VersionMismatch when the towers have other inputs or shapes than this run.
    """
    shapes = shapes_of(settings.retriever)
    start = settings.train_retriever.start
    # Where it lies is no part of what is trained: its checksum is.
    config = settings.train_retriever.model_copy(update={"start": None})
    store = Store(store.root.resolve())  # a worker's current folder is not the driver's
    inputs = {"pairs": store.open("pairs"), "vectors": store.open("vectors")}
    weights = None
    if start is not None:
        if settings.retriever.kind != "mmsrec":
            fix = "leave train_retriever.start out: ID tables mean nothing elsewhere"
            raise ConfigError(explain("retriever.kind", got=settings.retriever.kind, expected="mmsrec", fix=fix))
        origin = _folder(start.resolve())
        _check_encoders(origin, inputs["vectors"])
        weights, shapes = _weights(origin), {**shapes, "start": origin.manifest.checksum}
    elif config.pretrained and settings.retriever.kind == "mmsrec":
        inputs["towers"] = store.open("towers")
        _check(inputs["towers"], inputs["vectors"], settings.retriever)
        weights = _weights(inputs["towers"])
    build = partial(fresh_retriever, settings.retriever, config, inputs["vectors"].path, weights)
    open_lane = partial(window_lane, shard_paths(inputs["pairs"]), config, settings.retriever.window)
    kind = artifact_kind(settings.retriever)
    return train_artifact(store, kind, "train_retriever", inputs, settings, shapes, config, build, open_lane)


def _folder(path: Path) -> Artifact:
    if not (path / "manifest.json").is_file():
        fix = "name the folder of a `towers` or `retriever` artefact"
        raise ConfigError(explain("train_retriever.start", got=path, expected="a published artefact", fix=fix))
    origin = Artifact.at(path)
    if origin.manifest.kind not in ("towers", "retriever"):
        fix = "name the folder of one"
        raise ConfigError(explain("train_retriever.start", got=origin.manifest.kind, expected="towers or retriever", fix=fix))
    return origin


def _check_encoders(origin: Artifact, vectors: Artifact) -> None:
    """Vectors of equal width from another encoder would load and mean nothing; a modality that one side lacks is no matter."""
    theirs, ours = origin.manifest.config["encoders"], encoders_of(vectors)
    for kind in ("text", "image"):
        name = f"{kind}_encoder"
        if theirs[f"{kind}_version"] and ours[f"{kind}_version"] and theirs[name] != ours[name]:
            fix = "embed with the same encoder"
            raise VersionMismatch(explain(f"train_retriever.start, {name}", got=theirs[name], expected=ours[name], fix=fix))


def _weights(origin: Artifact) -> Path:
    return origin.file(f"{origin.manifest.kind}.safetensors")


def _check(towers: Artifact, vectors: Artifact, config: RetrieverConfig) -> None:
    towers.require_input("vectors", vectors, "run pretrain-retriever")
    got, expected = towers.manifest.config["retriever"], shapes_of(config)["retriever"]
    if got != expected:
        fix = "run pretrain-retriever with this retriever section"
        raise VersionMismatch(explain(f"towers {towers.version}", got=got, expected=expected, fix=fix))
