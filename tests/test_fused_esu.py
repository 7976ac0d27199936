"""The fused ESU against the torch form in float64: every switch, gate, width and padding, on any processor."""

import itertools
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numba
import numpy as np
import pytest
import torch

import seminar.esu as esu_module
from seminar.channels import Pairs
from seminar.config import ModelConfig
from seminar.esu import ESU, Interest, Kept, TargetGate, age_bucket
from seminar.kernels.floats import exp, exponent, load_lanes, store_lanes
from tests.worlds import seeded, small_config

CHANNELS = 4
SWITCHES = list(itertools.product([False, True], repeat=3))


def unit_vectors(*shape: int, generator: torch.Generator) -> torch.Tensor:
    return torch.nn.functional.normalize(torch.randn(shape, generator=generator), dim=-1)


def unit_of(config: ModelConfig) -> ESU:
    """An ESU away from its initialisation, so that no term is zero by accident."""
    esu = ESU(config, seeded())
    with torch.no_grad():
        for name, parameter in esu.named_parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=seeded(len(name))))
    return esu


def kept_of(config: ModelConfig, targets: int = 5, kept: int = 9, gate: bool = False, rows: int = 23, batch: int = 2) -> Kept:
    """Random pairs with missing channels (zero), padding anywhere, and a first target without any behaviour."""
    g = seeded(7)
    present = torch.rand(rows, CHANNELS, generator=g) < 0.7
    present[0] = False
    unit = unit_vectors(rows, CHANNELS, config.dim, generator=g) * present[..., None]
    row = torch.randint(-1, rows, (batch, targets, kept), generator=g)
    row[0, 0] = -1
    row[-1, -1] = torch.arange(kept) % rows
    share = torch.rand(batch, targets, kept, CHANNELS, generator=g) * present[row.clamp_min(0)]
    transform = torch.randn(CHANNELS, config.dim, config.dim, generator=g) / config.dim**0.5
    return Kept(
        pairs=Pairs(unit, present),
        merged_Pd=unit_vectors(rows, config.dim, generator=g),
        target_BT=torch.randint(0, rows, (batch, targets), generator=g),
        row_BTK=row,
        hours_BTK=torch.rand(batch, targets, kept, generator=g) * 3000,
        gate=TargetGate(share, transform) if gate else None,
    )


def in_double(kept: Kept) -> Kept:
    gate = kept.gate and TargetGate(kept.gate.share_BTKM.double(), kept.gate.transform_Mde.double())
    pairs = Pairs(kept.pairs.unit_NMd.double(), kept.pairs.present_NM)
    # An age is rounded when 1 is added in float32.
    hours = (kept.hours_BTK + 1).double() - 1
    return Kept(pairs, kept.merged_Pd.double(), kept.target_BT, kept.row_BTK, hours, gate)


def by_kernel(monkeypatch: pytest.MonkeyPatch, esu: ESU, target: torch.Tensor, kept: Kept) -> Interest:
    """What the ESU answers without gradient, and that it was the kernel that answered."""
    calls, fused = [], esu_module.fused
    monkeypatch.setattr(esu_module, "fused", lambda *arguments: calls.append(1) or fused(*arguments))
    with torch.no_grad():
        interest = esu(target, kept)
    assert calls
    return interest


def check(monkeypatch: pytest.MonkeyPatch, config: ModelConfig, kept: Kept, given: Kept | None = None) -> Interest:
    """The kernel on `given` equals the torch form in float64 on `kept`."""
    esu, target = unit_of(config), unit_vectors(*kept.target_BT.shape, config.dim, generator=seeded(3))
    got = by_kernel(monkeypatch, esu, target, given or kept)
    with torch.no_grad():
        expected = esu.double()(target.double(), in_double(kept))
    for name in ("interest_BTd", "attention_BTHK", "tiers_BTF"):
        torch.testing.assert_close(getattr(got, name).double(), getattr(expected, name).double(), rtol=1e-5, atol=1e-5, msg=name)
    return got


@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize(("semantic", "simtier", "ages"), SWITCHES)
def test_fused_equals_the_torch_form(
    monkeypatch: pytest.MonkeyPatch, gate: bool, semantic: bool, simtier: bool, ages: bool
) -> None:
    config = small_config(semantic_attention=semantic, simtier=simtier, time_buckets=16 * ages)
    got = check(monkeypatch, config, kept_of(config, gate=gate))
    esu = unit_of(config)
    assert torch.equal(got.interest_BTd[0, 0], esu.null)
    assert not got.attention_BTHK[0, 0].any()
    assert not got.tiers_BTF[0, 0].any()


@pytest.mark.parametrize("gate", [False, True])
@pytest.mark.parametrize(("dim", "heads"), [(16, 1), (16, 2), (48, 6), (64, 4), (96, 8), (144, 3)])
@pytest.mark.parametrize("kept", [1, 4, 7, 33])
def test_fused_equals_the_torch_form_at_any_width(
    monkeypatch: pytest.MonkeyPatch, dim: int, heads: int, kept: int, gate: bool
) -> None:
    config = small_config(dim=dim, num_heads=heads, simtier_bins=5)
    check(monkeypatch, config, kept_of(config, kept=kept, gate=gate, targets=3))


@pytest.mark.parametrize("gate", [False, True])
def test_what_a_missing_vector_holds_never_leaks(monkeypatch: pytest.MonkeyPatch, gate: bool) -> None:
    config = small_config()
    kept = kept_of(config, gate=gate)
    unit = torch.where(kept.pairs.present_NM[..., None], kept.pairs.unit_NMd, torch.nan)
    merged = kept.merged_Pd.clone()
    unused = ~torch.isin(torch.arange(len(merged)), kept.row_BTK)
    merged[unused] = torch.nan
    spoiled = Kept(Pairs(unit, kept.pairs.present_NM), merged, kept.target_BT, kept.row_BTK, kept.hours_BTK, kept.gate)
    check(monkeypatch, config, kept, spoiled)


def test_nan_in_a_key_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config()
    kept = kept_of(config)
    kept.merged_Pd[int(kept.row_BTK[-1, -1, 0])] = torch.nan
    got = by_kernel(monkeypatch, unit_of(config), torch.randn(*kept.target_BT.shape, config.dim), kept)
    assert got.interest_BTd[-1, -1].isnan().all()
    assert got.interest_BTd[0, 0].isfinite().all()


def test_ages_fall_in_the_same_bucket_on_both_sides_of_a_power_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    edges = 2.0 ** torch.arange(0, 18)
    below = torch.nextafter(edges, torch.zeros(()))
    hours = torch.cat([edges - 1, edges, below]) - 0.0
    exact = torch.floor(torch.log2((hours + 1).double())).long().clamp_max(9)
    assert torch.equal(age_bucket(hours, 10), exact)
    config = small_config(time_buckets=10)
    kept = kept_of(config, kept=len(hours), targets=1, batch=1)
    row = torch.zeros_like(kept.row_BTK)
    aged = Kept(kept.pairs, kept.merged_Pd, kept.target_BT, row, hours.view(1, 1, -1), None)
    attention = check(monkeypatch, config, aged).attention_BTHK[0, 0, 0]
    assert all(len(attention[exact == bucket].unique()) == 1 for bucket in exact.unique())


def test_threads_change_no_bit_and_other_targets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config()
    kept, esu = kept_of(config, targets=150, batch=1), unit_of(config)
    target = unit_vectors(1, 150, config.dim, generator=seeded(3))
    answers = []
    for threads in (1, 2):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        answers.append(by_kernel(monkeypatch, esu, target, kept))
    alone = Kept(kept.pairs, kept.merged_Pd, kept.target_BT[:, 40:41], kept.row_BTK[:, 40:41], kept.hours_BTK[:, 40:41])
    answers.append(by_kernel(monkeypatch, esu, target[:, 40:41], alone))
    assert torch.equal(answers[0].attention_BTHK, answers[1].attention_BTHK)
    torch.testing.assert_close(answers[0].attention_BTHK[:, 40:41], answers[2].attention_BTHK)


def gradients(config: ModelConfig, kept: Kept) -> dict[str, torch.Tensor]:
    """Of targets, merged keys and the ESU's parameters, for one random gradient of the interest."""
    double = kept.merged_Pd.dtype == torch.float64
    esu = unit_of(config).double() if double else unit_of(config)
    target = unit_vectors(*kept.target_BT.shape, config.dim, generator=seeded(3)).to(kept.merged_Pd.dtype).requires_grad_()
    merged = kept.merged_Pd.clone().requires_grad_()
    interest = esu(target, replace(kept, merged_Pd=merged)).interest_BTd
    (interest * torch.randn(interest.shape, generator=seeded(5)).to(interest.dtype)).sum().backward()
    parameters = {name: p.grad for name, p in esu.named_parameters() if p.grad is not None}
    return {"target": target.grad, "merged": merged.grad, **parameters}


def check_gradients(monkeypatch: pytest.MonkeyPatch, config: ModelConfig, kept: Kept) -> None:
    calls, fused = [], esu_module.fused
    monkeypatch.setattr(esu_module, "fused", lambda *arguments: calls.append(1) or fused(*arguments))
    got = gradients(config, kept)
    assert len(calls) == 1
    expected = gradients(config, in_double(kept))
    assert len(calls) == 1
    assert got.keys() == expected.keys()
    for name, gradient in expected.items():
        scale = float(gradient.abs().max()) + 1e-12
        torch.testing.assert_close(got[name].double() / scale, gradient / scale, rtol=0, atol=1e-5, msg=name)


@pytest.mark.parametrize(("semantic", "simtier", "ages"), SWITCHES)
def test_gradients_equal_those_of_the_torch_form(
    monkeypatch: pytest.MonkeyPatch, semantic: bool, simtier: bool, ages: bool
) -> None:
    config = small_config(semantic_attention=semantic, simtier=simtier, time_buckets=16 * ages)
    check_gradients(monkeypatch, config, kept_of(config))


@pytest.mark.parametrize(("dim", "heads"), [(16, 1), (48, 6), (64, 4), (96, 8), (144, 3)])
@pytest.mark.parametrize("kept", [1, 4, 7, 33])
def test_gradients_equal_those_of_the_torch_form_at_any_width(
    monkeypatch: pytest.MonkeyPatch, dim: int, heads: int, kept: int
) -> None:
    config = small_config(dim=dim, num_heads=heads, simtier_bins=5)
    check_gradients(monkeypatch, config, kept_of(config, kept=kept, targets=3))


def test_gradients_of_several_threads_differ_in_the_last_bits_only(monkeypatch: pytest.MonkeyPatch) -> None:
    config = small_config()
    kept, found = kept_of(config, targets=150, batch=1), []
    for threads in (1, 2, 2):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found.append(gradients(config, kept))
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-5, msg=name)
        assert torch.equal(found[1][name], found[2][name])


def test_a_targets_gate_with_gradient_or_an_odd_width_or_double_is_answered_by_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(esu_module, "fused", None)
    config = small_config()
    kept, target = kept_of(config), torch.randn(2, 5, config.dim)
    assert unit_of(config)(target, kept_of(config, gate=True)).interest_BTd.requires_grad
    odd = small_config(dim=24)
    assert unit_of(odd)(torch.randn(2, 5, 24), kept_of(odd)).interest_BTd.requires_grad
    with torch.no_grad():
        assert unit_of(config).double()(target.double(), in_double(kept)).interest_BTd.isfinite().all()
        assert unit_of(odd)(torch.randn(2, 5, 24), kept_of(odd)).interest_BTd.isfinite().all()


@numba.njit
def _exp_of(x: np.ndarray) -> np.ndarray:
    out = np.empty_like(x)
    for i in range(0, len(x), 16):
        store_lanes(exp(load_lanes(x.ctypes.data + 4 * i)), out.ctypes.data + 4 * i)
    return out


@numba.njit
def _exponent_of(x: np.ndarray) -> np.ndarray:
    return np.array([exponent(number) for number in x])


def test_exp_is_exact_to_float32_and_ends_at_zero() -> None:
    x = np.concatenate([np.linspace(-87, 0, 16 * 100_000), -np.logspace(-12, 0, 1600), np.zeros(16)]).astype(np.float32)
    truth = np.exp(x.astype(np.float64))
    assert np.abs(_exp_of(x) / truth - 1).max() < 3e-7
    edge = np.full(16, -np.inf, np.float32)
    edge[:4] = -87.5, -1e30, np.nan, 0
    got = _exp_of(edge)
    assert not got[:2].any()
    assert np.isnan(got[2])
    assert got[3] == 1
    assert not got[4:].any()


def test_exponent_is_the_floor_of_the_binary_logarithm() -> None:
    x = np.concatenate([2.0 ** np.arange(20), np.nextafter(2.0 ** np.arange(1, 20), 0, dtype=np.float32)]).astype(np.float32)
    assert _exponent_of(x).tolist() == np.floor(np.log2(x.astype(np.float64))).astype(int).tolist()


PLAIN_PROCESSOR = """
import sys, torch
from tests.test_fused_esu import kept_of, seeded, small_config, unit_of, unit_vectors
for name, gate in (("merged", False), ("gated", True)):
    config = small_config(dim=64)
    with torch.no_grad():
        interest = unit_of(config)(unit_vectors(2, 5, 64, generator=seeded(3)), kept_of(config, kept=33, gate=gate))
    torch.save(vars(interest), f"{sys.argv[1]}/{name}.pt")
"""


def test_a_processor_without_avx_gives_the_same(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Compiled for the oldest processor LLVM knows of this architecture, in a process of its own."""
    plain = os.environ | {"NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": "", "NUMBA_CACHE_DIR": str(tmp_path / "cache")}
    subprocess.run(
        [sys.executable, "-c", PLAIN_PROCESSOR, str(tmp_path)], env=plain, check=True, cwd=Path(__file__).parent.parent
    )
    for name, gate in (("merged", False), ("gated", True)):
        config = small_config(dim=64)
        target = unit_vectors(2, 5, 64, generator=seeded(3))
        here = by_kernel(monkeypatch, unit_of(config), target, kept_of(config, kept=33, gate=gate))
        for part, value in torch.load(tmp_path / f"{name}.pt").items():
            torch.testing.assert_close(getattr(here, part), value, rtol=1e-6, atol=1e-6)
