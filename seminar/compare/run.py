"""One run of a comparison in one process: train (a `run`: weights and curve), then score the held-out requests (its `rows`).

Both are found again by inputs and settings, so a trial that is chosen is not trained again to be scored on the test split; an
interrupted run goes on from its last checkpoint.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file
from torch import nn

from seminar.artifacts import Artifact, Store
from seminar.config import EvaluateConfig, Settings
from seminar.errors import DataError, explain
from seminar.evaluate.aligned import MODEL
from seminar.evaluate.evaluation import evaluate_histories
from seminar.evaluate.negatives import ItemPool
from seminar.evaluate.protocol import ScoreFn, floors, held_out_pairs, ranking_request
from seminar.models import load_model
from seminar.provenance import commit
from seminar.sequences import Histories
from seminar.train.build import (
    check_psu,
    curve_summary,
    fresh_model,
    fresh_psu,
    open_finetune_lane,
    psu_shapes,
    recorded_config,
    shard_paths,
)
from seminar.train.fitting import Row, fit
from seminar.train.lanes import read_shards
from seminar.train.sampling import pretrain_lane

RUN, ROWS, PSU = "run", "rows", "psu"
OnStep = Callable[[Row], None]


def psu_version(store: Store, inputs: dict[str, Artifact], settings: Settings) -> str:
    """Version of the PSU that these settings pretrain; the same as that of `seminar pretrain`."""
    return store.version_of(PSU, inputs, _psu_config(inputs, settings))


def pretrained(store: Store, inputs: dict[str, Artifact], settings: Settings, device: torch.device, on_step: OnStep) -> Artifact:
    """The PSU of these settings, trained here unless it exists; it does not become current."""
    version = psu_version(store, inputs, settings)
    if store.exists(PSU, version):
        return store.open(PSU, version)
    draft = store.draft(PSU, inputs, _psu_config(inputs, settings), version)
    psu = fresh_psu(settings.model, settings.pretrain, inputs["vectors"].path).to(device)
    lane = partial(pretrain_lane, shard_paths(inputs["pairs"]), config=settings.pretrain)
    curve = fit(psu, lane, settings.pretrain, draft.path / "_fit", on_step)
    _save(psu, draft.path / "psu.safetensors")
    pq.write_table(curve, draft.path / "curve.parquet")
    return store.publish(draft, curve_summary(curve), current=False)


def run_inputs(store: Store, inputs: dict[str, Artifact], settings: Settings) -> dict[str, Artifact]:
    """Pairs, vectors and, where the run starts from one, its PSU."""
    if not settings.finetune.pretrained:
        return inputs
    psu = store.open(PSU, psu_version(store, inputs, settings))
    check_psu(psu, inputs["vectors"], settings.model)
    return {**inputs, PSU: psu}


def run_version(store: Store, inputs: dict[str, Artifact], settings: Settings) -> str:
    """Version of a run; `inputs` from `run_inputs`."""
    return store.version_of(RUN, inputs, _run_config(inputs, settings))


def trained(store: Store, inputs: dict[str, Artifact], settings: Settings, device: torch.device, on_step: OnStep) -> Artifact:
    """The run of these settings, trained here unless it exists. It is read like a `model` artefact."""
    inputs = run_inputs(store, inputs, settings)
    version = run_version(store, inputs, settings)
    if store.exists(RUN, version):
        return store.open(RUN, version)
    draft = store.draft(RUN, inputs, _run_config(inputs, settings), version)
    psu = inputs[PSU].file("psu.safetensors") if PSU in inputs else None
    vectors = inputs["vectors"].path
    model = fresh_model(settings.model, settings.finetune, vectors, psu).to(device)
    lane = partial(open_finetune_lane, shard_paths(inputs["pairs"]), settings.finetune, vectors)
    curve = fit(model, lane, settings.finetune, draft.path / "_fit", on_step)
    _save(model, draft.path / "model.safetensors")
    pq.write_table(curve, draft.path / "curve.parquet")
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    # Code is no part of a version: what it was trained with is at least written down.
    return store.publish(draft, {**curve_summary(curve), "parameters": parameters, "commit": commit()}, current=False)


def rows_version(store: Store, run: Artifact, config: EvaluateConfig) -> str:
    """Version of the rows of a run under this evaluation."""
    return store.version_of(ROWS, {RUN: run}, config.protocol)


def scored(store: Store, inputs: dict[str, Artifact], run: Artifact, config: EvaluateConfig, device: torch.device) -> Artifact:
    """Rows of `model` and the floors on the held-out requests of all users, scored here unless they exist."""
    version = rows_version(store, run, config)
    if store.exists(ROWS, version):
        return store.open(ROWS, version)
    model = load_model(run, inputs["vectors"]).to(device)
    pool = ItemPool.of(pq.read_table(inputs["pairs"].file("items.parquet")))
    histories = read_shards(shard_paths(inputs["pairs"]))
    scorers: dict[str, ScoreFn] = {MODEL: lambda batch: model.score(batch.to(device)), **floors(pool)}
    share = min(config.full_ranking_users / max(len(histories), 1), 1.0)
    draft = store.draft(ROWS, {RUN: run}, config.protocol, version)
    evaluate_histories(histories, pool, scorers, config, share).write(draft.path)
    return store.publish(draft, current=False)


def require_lists(pairs: Artifact, settings: Settings) -> None:
    """Raise DataError unless the splits that a comparison scores have something to rank: before hours of training, not after."""
    pool = ItemPool.of(pq.read_table(pairs.file("items.parquet")))
    for split in ("validation", "test") if settings.compare.trials else ("test",):
        config = settings.evaluate.model_copy(update={"split": split})
        if not any(_rankable(read_shards([path]), pool, config) for path in shard_paths(pairs)):
            what = f"{split} split of pairs {pairs.version}"
            got = f"no held-out behaviour with a {config.negatives} negative"
            fix = "set evaluate.negatives = 'uniform' for items without category, compare.trials = 0 without a validation split"
            raise DataError(explain(what, got=got, expected="at least one", fix=fix))


def _rankable(histories: Histories, pool: ItemPool, config: EvaluateConfig) -> bool:
    return any(ranking_request(histories, pool, pair, config) is not None for pair in held_out_pairs(histories, config))


def _psu_config(inputs: dict[str, Artifact], settings: Settings) -> dict[str, Any]:
    return recorded_config("pretrain", psu_shapes(settings.model), settings.pretrain, inputs["vectors"])


def _run_config(inputs: dict[str, Artifact], settings: Settings) -> dict[str, Any]:
    shapes = {"model": settings.model.model_dump(mode="json")}
    return recorded_config("finetune", shapes, settings.finetune, inputs["vectors"])


def _save(model: nn.Module, path: Path) -> None:
    save_file({name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}, path)
