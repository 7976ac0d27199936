"""What every paper's interest unit promises alike: gradients, round trips, masks, request-level scoring, memory."""

from dataclasses import fields

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from seminar.baselines.base import Baseline, InterestUnit
from seminar.baselines.din import DIN
from seminar.baselines.eta import ETA
from seminar.baselines.muse import MUSE
from seminar.baselines.qin import QIN
from seminar.baselines.sdim import SDIM
from seminar.baselines.sim_hard import SIMHard
from seminar.baselines.sim_soft import SIMSoft
from seminar.baselines.twin import TWIN
from seminar.batching import Batch
from seminar.config import BaselineConfig, FinetuneConfig
from seminar.train.training import Optimisers, train_step
from tests.baseline_world import UnitClass, built, perturbed
from tests.worlds import batch_of, seeded, small_config, vector_tables

UNITS = [DIN, SIMHard, SIMSoft, ETA, SDIM, TWIN, QIN, MUSE]
every_unit = pytest.mark.parametrize("unit", UNITS, ids=[unit.__name__ for unit in UNITS])
LENGTHS = [30, 12, 0]


def model_of(unit: UnitClass) -> Baseline:
    return perturbed(built(unit, baseline=BaselineConfig(query_top_k=8))).eval()


def narrowed(batch: Batch, row: slice, behaviours: slice, targets: slice) -> Batch:
    """Part of a batch."""
    columns = {"BL": behaviours, "BT": targets}
    values = {f.name: getattr(batch, f.name)[row] for f in fields(batch)}
    values = {name: v[:, columns[name[-2:]]] if name[-2:] in columns else v for name, v in values.items()}
    count = (batch.target_count_B[row] - (targets.start or 0)).clamp(0, values["item_BT"].shape[1])
    return Batch(**values | {"target_count_B": count})


@every_unit
def test_every_parameter_gets_a_finite_gradient(unit: UnitClass) -> None:
    model = model_of(unit).train()
    model.loss(batch_of(LENGTHS, vector_tables()))["total"].backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            grad = parameter.grad.to_dense()
            assert torch.isfinite(grad).all(), name
            assert grad.abs().sum() > 0, name


@every_unit
def test_state_dict_round_trip_gives_equal_scores(unit: UnitClass) -> None:
    first, batch = model_of(unit), batch_of(LENGTHS, vector_tables())
    second = built(unit, seed=99, baseline=first.config.baseline).eval()
    assert not torch.equal(first.score(batch), second.score(batch))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first.score(batch), second.score(batch))


@every_unit
def test_the_same_generator_gives_the_same_model(unit: UnitClass) -> None:
    batch = batch_of(LENGTHS, vector_tables())
    assert torch.equal(built(unit).eval().score(batch), built(unit).eval().score(batch))


@every_unit
def test_padding_and_batch_mates_change_no_score(unit: UnitClass) -> None:
    model, batch = model_of(unit), batch_of(LENGTHS, vector_tables())
    together = model.score(batch)
    for row in range(len(LENGTHS)):
        length, count = max(int(batch.length_B[row]), 1), int(batch.target_count_B[row])
        alone = narrowed(batch, slice(row, row + 1), slice(length), slice(count))
        torch.testing.assert_close(model.score(alone)[0], together[row, :count], rtol=0, atol=1e-5)


@every_unit
def test_padding_changes_no_loss(unit: UnitClass) -> None:
    model, batch = model_of(unit).train(), batch_of(LENGTHS, vector_tables())
    sides = {"BL": 9, "BT": 20}
    wider = {
        name: torch.nn.functional.pad(value, (0, sides[name[-2:]])) if name[-2:] in sides else value
        for name, value in vars(batch).items()
    }
    narrow, wide = model.loss(batch), model.loss(Batch(**wider))
    torch.testing.assert_close(narrow["total"], torch.stack([v for k, v in narrow.items() if k != "total"]).sum())
    for name in narrow:
        torch.testing.assert_close(wide[name], narrow[name], rtol=1e-4, atol=1e-6, msg=name)


@every_unit
def test_targets_together_score_as_targets_one_by_one(unit: UnitClass) -> None:
    model, batch = model_of(unit), batch_of([20], vector_tables(), targets=7)
    together = model.score(batch)[0]
    for t in range(7):
        one = narrowed(batch, slice(None), slice(None), slice(t, t + 1))
        torch.testing.assert_close(model.score(one)[0, 0], together[t], rtol=0, atol=1e-5)


@every_unit
def test_a_user_without_behaviours_has_a_finite_interest_that_learns(unit: UnitClass) -> None:
    model, batch = model_of(unit).train(), batch_of([0], vector_tables(), targets=1)
    _, found = model(batch)
    assert found.interest_BTd.shape == (1, 1, 16)
    assert torch.isfinite(found.interest_BTd).all()
    assert torch.isfinite(found.extra_BTF).all()
    found.interest_BTd.sum().backward()
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in model.unit.parameters())
    assert torch.isfinite(model.eval().score(batch)).all()


@every_unit
def test_what_is_kept_is_never_padding_and_never_twice(unit: UnitClass) -> None:
    model, batch = model_of(unit), batch_of(LENGTHS, vector_tables())
    kept = model(batch)[1].kept_BTK
    if kept is None:
        return
    for row, length in enumerate(LENGTHS):
        for positions in kept[row].tolist():
            real = [p for p in positions if p >= 0]
            assert len(real) == len(set(real)) <= model.config.top_k
            assert all(p < length for p in real)


@every_unit
def test_items_without_any_channel_never_give_nan(unit: UnitClass) -> None:
    tables = vector_tables()
    bare = type(tables)(**{**vars(tables), "text_row": tables.text_row * 0 - 1, "image_row": tables.image_row * 0 - 1})
    model = built(unit, bare).train()
    losses = model.loss(batch_of([20, 3], bare))
    losses["total"].backward()
    assert torch.isfinite(losses["total"])
    assert all(torch.isfinite(p.grad.to_dense()).all() for p in model.parameters() if p.grad is not None)


@every_unit
def test_training_steps_lower_the_loss(unit: UnitClass) -> None:
    model = built(unit).train()
    config = FinetuneConfig(lanes=1, steps=100, warmup_steps=0, learning_rate=5e-3)
    optimisers, batch = Optimisers(model, config), batch_of(LENGTHS, vector_tables())
    losses = [train_step(model, {0: batch}, optimisers, step=step, config=config).losses["total"] for step in range(40)]
    assert losses[-1] < 0.7 * losses[0]


class _LargestTensor(TorchDispatchMode):
    """Bytes of the largest storage that any operation returned."""

    def __init__(self) -> None:
        super().__init__()
        self.size_bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, torch.Tensor) and not leaf.is_sparse:
                self.size_bytes = max(self.size_bytes, leaf.untyped_storage().nbytes())
        return out


@every_unit
def test_nothing_holds_a_vector_for_every_target_and_behaviour(unit: UnitClass) -> None:
    """Scoring and its gradient; a DIN of four hidden units, since its activations are targets x behaviours x units."""
    model = built(unit, dim=64, top_k=20, baseline=BaselineConfig(activation_width=4)).train()
    batch = batch_of([300, 200, 300], vector_tables(), targets=40)
    with _LargestTensor() as largest:
        model.loss(batch)["total"].backward()
    assert 0 < largest.size_bytes < 3 * 40 * 300 * 64 * 4 / 2


@every_unit
def test_unit_keeps_the_contract(unit: UnitClass) -> None:
    model = model_of(unit)
    assert isinstance(model.unit, InterestUnit)
    found = model(batch_of(LENGTHS, vector_tables()))[1]
    assert found.extra_BTF.shape[-1] == model.unit.num_extra
    assert isinstance(unit(small_config(), seeded()), torch.nn.Module)
