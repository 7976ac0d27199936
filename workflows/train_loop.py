"""The Ray Train lines that pretraining and fine-tuning share: start workers, resume, checkpoint, hand back the last state.

Everything a run leaves lies under `<draft>/_train` (scratch, deleted on publishing), so a job that is started again after a crash
goes on from its last checkpoint, with any number of workers that divides the lanes.
"""

import os
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from ray.train import Checkpoint, CheckpointConsistencyMode, UserCallback
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.config import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
from torch import nn

from seminar.config import RayConfig, TrainConfig
from seminar.errors import ConfigError, SeminarError, explain
from seminar.train.checkpoint import load_checkpoint, save_checkpoint
from seminar.train.fitting import curve_row, prefetched
from seminar.train.lanes import Lane
from seminar.train.training import Optimisers, broadcast_parameters, train_step
from workflows.train_watch import Watch, note_progress

FINAL = (SeminarError, ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, TypeError, ValueError)
"""Errors that a restart would only repeat; a lost process, a broken connection or a full memory is tried again."""
QUICK = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"}
"""Ray Train's settings that are only read from the environment: ask workers how they are more often than every 2 s."""


@dataclass(frozen=True)
class TrainJob:
    """What every worker needs; `build` and `open_lane` are importable functions or partials of them."""

    stage: str
    config: TrainConfig
    draft: Path
    build: Callable[[], nn.Module]
    open_lane: Callable[[int], Lane]


def train(job: TrainJob, config: RayConfig) -> Path:
    """Run or resume the job; returns the folder of the checkpoint after the last step.

    Raises ConfigError when this machine's own Ray is too small, the worker's own error when a step fails, and
    ray.train.TrainingFailedError when more workers were lost than max_failures allows.
    """
    _check_room(job.config, config)
    for name, value in QUICK.items():
        os.environ.setdefault(name, value)
    gpus = config.gpus_per_worker
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"job": job, "threads": max(int(config.cpus_per_worker), 1)},
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=job.config.num_workers,
            use_gpu=bool(gpus),
            resources_per_worker={"CPU": config.cpus_per_worker, **({"GPU": gpus} if gpus else {})},
        ),
        run_config=RunConfig(
            name="_train",
            storage_path=str(job.draft.resolve()),
            failure_config=FailureConfig(max_failures=job.config.max_failures),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            callbacks=[_FailFast()],
        ),
    )
    with Watch(job.draft, job.stage, job.config.steps):
        try:
            result = trainer.fit()
        except ray.train.TrainingFailedError as error:
            failure = _from_worker(error)
            raise failure from failure.__cause__
    assert result.checkpoint is not None, "the last step always reports a checkpoint"
    return Path(result.checkpoint.path)


def _worker(loop: dict[str, Any]) -> None:
    torch.set_num_threads(loop["threads"])
    try:
        _train_on_worker(loop["job"])
    except Exception as error:
        # Ray sends the error to the driver without its traceback; a note travels with it.
        error.add_note(f"on worker {ray.train.get_context().get_world_rank()}: {traceback.format_exc()}")
        raise


def _train_on_worker(job: TrainJob) -> None:
    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    group = dist.group.WORLD if workers > 1 else None
    model = job.build().to(ray.train.torch.get_device()).train()
    optimisers = Optimisers(model, job.config)
    first, rows = 0, []
    if checkpoint := ray.train.get_checkpoint():
        with checkpoint.as_directory() as folder:
            first, curve = load_checkpoint(Path(folder), model, optimisers)
        rows = curve.to_pylist()
    else:
        broadcast_parameters(model, group)
    lanes = {lane: job.open_lane(lane) for lane in range(rank, job.config.lanes, workers)}
    clock = time.perf_counter()
    for step, batches in prefetched(lanes, range(first, job.config.steps)):
        result = train_step(model, batches, optimisers, step=step, config=job.config, group=group)
        clock, started = time.perf_counter(), clock
        rows.append(curve_row(step + 1, result, clock - started))
        last = step + 1 == job.config.steps
        if rank == 0:
            note_progress(job.draft, rows[-1], last=last)
            if last or (step + 1) % job.config.log_every == 0:
                print(job.stage, *(f"{name} {value:.6g}" for name, value in rows[-1].items()), flush=True)
        if last or (step + 1) % job.config.checkpoint_every == 0:
            _report(rank, step + 1, model, optimisers, rows)
            clock = time.perf_counter()


def _report(rank: int, step: int, model: nn.Module, optimisers: Optimisers, rows: list[dict[str, float]]) -> None:
    """A checkpoint for Ray Train from rank 0; the other ranks take part in the barrier.

    Rank 0, and with it everybody at the next all-reduce, waits until Ray has committed it (at most one poll of the controller):
    a worker killed right after `report` returned would otherwise cost two intervals.
    """
    if rank:
        ray.train.report(rows[-1])
        return
    with tempfile.TemporaryDirectory() as folder:
        save_checkpoint(Path(folder), step, model, optimisers, pa.Table.from_pylist(rows))
        ray.train.report(rows[-1], checkpoint=Checkpoint.from_directory(folder))
    ray.train.get_all_reported_checkpoints(consistency_mode=CheckpointConsistencyMode.COMMITTED)


class _FailFast(UserCallback):
    """Ends the run at an error that would only repeat (see FINAL); Ray Train alone would restart max_failures times."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        for error in worker_exceptions.values():
            if isinstance(error, FINAL):
                raise error


def _from_worker(error: ray.train.TrainingFailedError) -> BaseException:
    """The worker's own error if it ended the run, else Ray's account of what was lost; `__cause__` has a worker's traceback."""
    if isinstance(error, ray.train.ControllerError) and isinstance(error.controller_failure, FINAL):
        return error.controller_failure
    if isinstance(error, ray.train.WorkerGroupError):
        error.__cause__ = next(iter(error.worker_failures.values()), None)
    return error


def _check_room(train: TrainConfig, config: RayConfig) -> None:
    """On a Ray of this machine nothing will ever add room, so waiting for it would be for ever."""
    if (config.address or os.environ.get("RAY_ADDRESS", "local")) != "local":
        return
    wanted, there = train.num_workers * config.cpus_per_worker, ray.cluster_resources().get("CPU", 0)
    if wanted > there:
        raise ConfigError(
            explain(
                f"num_workers ({train.num_workers}) x cpus_per_worker ({config.cpus_per_worker:g})",
                got=f"{there:g} CPUs in this Ray",
                expected=f"at least {wanted:g}",
                fix="lower num_workers, or start a larger Ray",
            )
        )
