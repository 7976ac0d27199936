"""Training steps: lanes average, workers do not matter, and a resumed run is the uninterrupted one."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing
from torch import Tensor, nn

from seminar.batching import WindowBatch
from seminar.config import PretrainConfig, TrainConfig
from seminar.errors import ArtifactError, VersionMismatch
from seminar.id_table import IdTable
from seminar.train.checkpoint import load_checkpoint, model_weights, save_checkpoint
from seminar.train.training import Optimisers, learning_rate, num_pairs, train_step
from tests.worlds import seeded

ROWS = 30


class Unit(nn.Module):
    """A small real model: ID table, dropout, two dense layers; learns query from item."""

    def __init__(self, dropout: float = 0.3) -> None:
        super().__init__()
        self.ids = IdTable(ROWS, 8, seeded(1))
        self.dropout = nn.Dropout(dropout)
        self.hidden = nn.Parameter(torch.randn(8, 8, generator=seeded(2)) / 3)
        self.out = nn.Parameter(torch.randn(8, 5, generator=seeded(3)) / 3)
        self.bias = nn.Parameter(torch.zeros(5))

    def loss(self, batch: WindowBatch) -> dict[str, Tensor]:
        logits = torch.relu(self.dropout(self.ids(batch.item_BL)) @ self.hidden) @ self.out + self.bias
        entropy = nn.functional.cross_entropy(logits[batch.mask_BL], batch.query_BL[batch.mask_BL])
        return {"total": entropy + 0.01 * logits.square().mean(), "entropy": entropy}


def batch_of(lane: int, step: int) -> WindowBatch:
    rng = np.random.default_rng([lane, step])
    item = rng.integers(0, ROWS, (3 + lane, 6))
    item[0, 0] = -1
    columns = (torch.from_numpy(c) for c in (item, item % 5, np.zeros_like(item)))
    return WindowBatch(*columns, torch.from_numpy(rng.integers(2, 7, len(item))))


def config(**changes: Any) -> PretrainConfig:
    rates = {"warmup_steps": 0, "learning_rate": 0.01, "sparse_learning_rate": 0.1, "weight_decay": 0.1}
    return PretrainConfig(**{"lanes": 2, **rates, **changes})


def run(
    unit: nn.Module,
    optimisers: Optimisers,
    settings: TrainConfig,
    steps: range,
    lanes: range = range(2),
    group: dist.ProcessGroup | None = None,
) -> list[dict[str, float]]:
    rows = []
    for step in steps:
        batches = {lane: batch_of(lane, step) for lane in lanes}
        result = train_step(unit, batches, optimisers, step=step, config=settings, group=group)
        rows.append({**result.losses, "pairs": result.pairs, "norm": result.gradient_norm})
    return rows


def trained(steps: int, settings: TrainConfig | None = None, **changes: Any) -> tuple[Unit, list[dict[str, float]]]:
    settings = settings or config()
    unit = Unit(**changes)
    return unit, run(unit, Optimisers(unit, settings), settings, range(steps), range(settings.lanes))


def test_a_step_equals_dense_autograd_on_the_mean_over_lanes() -> None:
    """Oracle: the same model with a plain embedding, one loss over both lanes, torch's own optimisers and clipping."""
    settings = config(max_gradient_norm=0.05)
    unit, _ = trained(4, settings, dropout=0.0)
    other = Unit(dropout=0.0)
    table = other.ids.weight
    dense = [p for p in other.parameters() if p is not table]
    adam = torch.optim.AdamW(dense, lr=0.01, weight_decay=0.1)
    adagrad = torch.optim.Adagrad([table], lr=0.1)
    other.ids.lookup = lambda rows: torch.where(rows[..., None] >= 0, table[rows.clamp_min(0)], 0.0)  # type: ignore[method-assign]
    for step in range(4):
        adam.zero_grad()
        adagrad.zero_grad()
        (sum(other.loss(batch_of(lane, step))["total"] for lane in range(2)) / 2).backward()
        nn.utils.clip_grad_norm_(dense, 0.05)
        adam.param_groups[0]["lr"] = learning_rate(step, settings)
        adam.step()
        adagrad.step()
    for (name, got), expected in zip(unit.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(got, expected, msg=name, rtol=1e-4, atol=1e-6)


def test_learning_rate_rises_linearly_then_falls_to_zero() -> None:
    settings = config(learning_rate=0.01, warmup_steps=9, steps=100)
    rates = [learning_rate(step, settings) for step in range(101)]
    assert rates[0] == pytest.approx(0.001)
    assert max(rates) == rates[9] == pytest.approx(0.01 * 0.91)
    assert rates[55] == pytest.approx(0.0045)
    assert rates[100] == 0


def test_training_lowers_the_loss() -> None:
    _, rows = trained(120, dropout=0.0)
    assert rows[-1]["entropy"] < 0.2 * rows[0]["entropy"]


def test_reported_losses_and_pairs_are_those_of_all_lanes() -> None:
    _, rows = trained(1, dropout=0.0)
    unit = Unit(dropout=0.0)
    expected = np.mean([float(unit.loss(batch_of(lane, 0))["entropy"]) for lane in range(2)])
    assert rows[0]["entropy"] == pytest.approx(expected, rel=1e-6)
    assert rows[0]["pairs"] == sum(num_pairs(batch_of(lane, 0)) for lane in range(2))


def test_two_workers_train_as_one(tmp_path: Path) -> None:
    """Four lanes, dropout on, gradients exchanged over gloo; one worker meets rows the other does not."""
    settings = config(lanes=4)
    unit, rows = trained(12, settings)
    multiprocessing.spawn(_spawned, args=(str(tmp_path),), nprocs=2)
    states = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    curves = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    assert curves[0] == curves[1]
    for name, value in unit.state_dict().items():
        assert torch.equal(states[0][name], states[1][name]), name
        torch.testing.assert_close(states[0][name], value, msg=name, rtol=1e-4, atol=1e-6)
    for got, expected in zip(curves[0], rows, strict=True):
        assert got == pytest.approx(expected, rel=1e-5)


def _spawned(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    settings, unit = config(lanes=4), Unit()
    rows = run(unit, Optimisers(unit, settings), settings, range(12), range(rank, 4, 2), dist.group.WORLD)
    torch.save(unit.state_dict(), f"{folder}/{rank}.pt")
    Path(f"{folder}/{rank}.json").write_text(json.dumps(rows))
    dist.destroy_process_group()


def test_resuming_from_a_checkpoint_is_bitwise_the_uninterrupted_run(tmp_path: Path) -> None:
    settings = config()
    whole, expected = trained(20)
    first = Unit()
    optimisers = Optimisers(first, settings)
    rows = run(first, optimisers, settings, range(10))
    save_checkpoint(tmp_path, 10, first, optimisers, pa.Table.from_pylist(rows))
    second = Unit()
    for parameter in second.parameters():
        nn.init.zeros_(parameter)
    optimisers = Optimisers(second, settings)
    step, curve = load_checkpoint(tmp_path, second, optimisers)
    assert step == 10
    assert curve.to_pylist() + run(second, optimisers, settings, range(step, 20)) == expected
    for (name, got), value in zip(second.state_dict().items(), whole.state_dict().values(), strict=True):
        assert torch.equal(got, value), name


def saved(folder: Path) -> Unit:
    unit = Unit()
    optimisers = Optimisers(unit, config())
    rows = run(unit, optimisers, config(), range(2))
    save_checkpoint(folder, 2, unit, optimisers, pa.Table.from_pylist(rows))
    return unit


def test_a_checkpoint_holds_no_pickle_and_the_models_own_names(tmp_path: Path) -> None:
    unit = saved(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["checkpoint.json", "curve.parquet", "state.safetensors"]
    assert all(b"\x80\x04" not in path.read_bytes()[:2] for path in tmp_path.iterdir())
    weights = model_weights(tmp_path)
    assert weights.keys() == unit.state_dict().keys()
    assert all(torch.equal(weights[name], value) for name, value in unit.state_dict().items())


def test_a_checkpoint_of_another_model_is_refused_by_name(tmp_path: Path) -> None:
    saved(tmp_path)
    other = Unit()
    other.out = nn.Parameter(torch.zeros(8, 6))
    with pytest.raises(VersionMismatch, match=r"out \(8, 5\).*expected out \(8, 6\)"):
        load_checkpoint(tmp_path, other, Optimisers(other, config()))


def test_a_folder_without_a_finished_checkpoint_is_refused(tmp_path: Path) -> None:
    saved(tmp_path)
    (tmp_path / "checkpoint.json").unlink()
    with pytest.raises(ArtifactError, match="finished checkpoint"):
        model_weights(tmp_path)


def test_dropout_depends_on_seed_step_and_lane_only() -> None:
    torch.manual_seed(1)
    _, one = trained(3)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    _, two = trained(3)
    assert one == two
    assert torch.equal(before, torch.get_rng_state())
    assert trained(3, config(seed=1))[1] != one


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_a_loss_or_gradient_that_is_not_finite_stops_training(broken: str) -> None:
    unit = Unit()
    optimisers = Optimisers(unit, config())
    with torch.no_grad():
        if broken == "loss":
            unit.bias[0] = torch.nan
        else:
            unit.hidden.register_hook(lambda gradient: gradient * torch.inf)
    before = {name: value.clone() for name, value in unit.state_dict().items()}
    with pytest.raises(FloatingPointError, match=f"{broken}.*expected.*finite"):
        run(unit, optimisers, config(), range(1))
    assert all(torch.equal(before[n], v) or v.isnan().any() for n, v in unit.state_dict().items())


def test_frozen_parameters_stay(tmp_path: Path) -> None:
    unit = Unit()
    unit.ids.requires_grad_(False)
    unit.hidden.requires_grad_(False)
    before = {name: value.clone() for name, value in unit.state_dict().items()}
    optimisers = Optimisers(unit, config())
    assert optimisers.sparse is None
    run(unit, optimisers, config(), range(3))
    changed = {name for name, value in unit.state_dict().items() if not torch.equal(before[name], value)}
    assert changed == {"out", "bias"}
    save_checkpoint(tmp_path, 3, unit, optimisers, pa.table({"step": [3]}))
    assert load_checkpoint(tmp_path, unit, optimisers)[0] == 3


def test_only_the_dense_gradient_is_clipped() -> None:
    """Adagrad's steps do not depend on the clip, AdamW's buffer never exceeds it."""
    unit = Unit(dropout=0.0)
    optimisers = Optimisers(unit, config(max_gradient_norm=1e-3))
    run(unit, optimisers, config(max_gradient_norm=1e-3), range(1))
    assert float(optimisers.gradients.flat.norm()) == pytest.approx(1e-3, rel=1e-4)
    loose = partial(trained, 1, dropout=0.0)()[0]
    assert torch.equal(unit.ids.weight, loose.ids.weight)
