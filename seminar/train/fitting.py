"""A whole training run in this process: all lanes, checkpoints in a folder, resumed where it was interrupted.

For many small runs side by side (one task each); one run on many workers is `workflows/train_loop.py`. Both take the same steps.
"""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
from torch import nn

from seminar.config import TrainConfig
from seminar.train.checkpoint import HEADER, load_checkpoint, save_checkpoint
from seminar.train.lanes import Lane
from seminar.train.training import Optimisers, StepResult, train_step

NEWEST, COMING = "checkpoint", ".checkpoint"
Row = dict[str, int | float]
"""One step of a curve: step, loss and its parts, gradient_norm, pairs, pairs_per_s."""


def fit(
    model: nn.Module,
    open_lane: Callable[[int], Lane],
    config: TrainConfig,
    folder: Path,
    on_step: Callable[[Row], None] = lambda row: None,
) -> pa.Table:
    """Train `model` in place for config.steps steps; returns the curve, one row a step.

    folder: holds the newest checkpoint; a run that finds one goes on from it, and one of the last step is returned at once.
    """
    model.train()
    optimisers = Optimisers(model, config)
    first, rows = 0, []
    if held := next(filter(_whole, (folder / NEWEST, folder / COMING)), None):
        first, curve = load_checkpoint(held, model, optimisers)
        rows = curve.to_pylist()
    lanes = {lane: open_lane(lane) for lane in range(config.lanes)} if first < config.steps else {}
    clock = time.perf_counter()
    for step, batches in prefetched(lanes, range(first, config.steps)):
        result = train_step(model, batches, optimisers, step=step, config=config)
        clock, started = time.perf_counter(), clock
        rows.append(curve_row(step + 1, result, clock - started))
        on_step(rows[-1])
        if step + 1 == config.steps or (step + 1) % config.checkpoint_every == 0:
            _keep(folder, step + 1, model, optimisers, rows)
            clock = time.perf_counter()
    return pa.Table.from_pylist(rows)


def prefetched(lanes: Mapping[int, Lane], steps: range) -> Iterator[tuple[int, dict[int, Any]]]:
    """Each step's batches by lane; the next step's are drawn while this one is computed."""

    def draw(step: int) -> dict[int, Any]:
        return {number: lane.batch(step) for number, lane in lanes.items()}

    with ThreadPoolExecutor(1, "sampling") as pool:
        coming = [pool.submit(draw, step) for step in steps[:1]]
        for step in steps:
            batches = coming.pop().result()
            coming.extend(pool.submit(draw, later) for later in steps[step - steps.start + 1 :][:1])
            yield step, batches


def curve_row(step: int, result: StepResult, seconds: float) -> Row:
    """What a curve says of a step."""
    losses = {("loss" if name == "total" else name): value for name, value in result.losses.items()}
    return {
        "step": step,
        **losses,
        "gradient_norm": result.gradient_norm,
        "pairs": result.pairs,
        "pairs_per_s": result.pairs / seconds,
    }


def _keep(folder: Path, step: int, model: nn.Module, optimisers: Optimisers, rows: list[Row]) -> None:
    """Replace the newest checkpoint; whenever it is interrupted, a whole one lies under one of the two names."""
    coming = folder / COMING
    shutil.rmtree(coming, ignore_errors=True)
    coming.mkdir(parents=True)
    save_checkpoint(coming, step, model, optimisers, pa.Table.from_pylist(rows))
    # The old one stops being whole with its header, whatever of it is left when this is interrupted.
    (folder / NEWEST / HEADER).unlink(missing_ok=True)
    shutil.rmtree(folder / NEWEST, ignore_errors=True)
    coming.rename(folder / NEWEST)


def _whole(checkpoint: Path) -> bool:
    # The header is written last.
    return (checkpoint / HEADER).is_file()
