"""Gathered attention against the plain form: values, gradients, padding, other dtypes."""

import pytest
import torch
from torch import Tensor

from seminar.gathered import gathered_dot, gathered_sum
from tests.worlds import seeded


def operands(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    g = seeded(3)
    query, weight = torch.randn(2, 3, 4, 16, generator=g, dtype=dtype), torch.randn(2, 3, 4, 7, generator=g, dtype=dtype)
    table, row = torch.randn(11, 16, generator=g, dtype=dtype), torch.randint(-1, 11, (2, 3, 7), generator=g)
    assert (row == -1).any()
    return query, weight, table, row


def plain(table: Tensor, row: Tensor) -> Tensor:
    return table[row.clamp_min(0)] * (row >= 0)[..., None]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_and_gradients_equal_the_plain_form(dtype: torch.dtype) -> None:
    query, weight, table, row = operands(dtype)
    leaves = [x.clone().requires_grad_() for x in (query, weight, table)]
    others = [x.clone().requires_grad_() for x in (query, weight, table)]
    dot, pooled = gathered_dot(leaves[0], leaves[2], row), gathered_sum(leaves[1], leaves[2], row)
    gathered = plain(others[2], row)
    expected_dot = torch.einsum("bthd,btkd->bthk", others[0], gathered)
    expected_pooled = torch.einsum("bthk,btkd->bthd", others[1], gathered)
    torch.testing.assert_close(dot, expected_dot)
    torch.testing.assert_close(pooled, expected_pooled)
    (dot.sin().sum() + pooled.cos().sum()).backward()
    (expected_dot.sin().sum() + expected_pooled.cos().sum()).backward()
    for got, expected in zip(leaves, others, strict=True):
        torch.testing.assert_close(got.grad, expected.grad)


def test_inputs_need_not_be_contiguous_or_differentiable() -> None:
    query, weight, table, row = operands()
    turned = query.transpose(0, 1).contiguous().transpose(0, 1)
    torch.testing.assert_close(gathered_dot(turned, table, row), gathered_dot(query, table, row))
    weight.requires_grad_()
    gathered_sum(weight, table, row).sum().backward()
    torch.testing.assert_close(weight.grad, plain(table, row).sum(-1)[:, :, None].expand_as(weight))


def test_no_kept_behaviour_gives_zero() -> None:
    query, weight, table, _ = operands()
    nothing = torch.full((2, 3, 7), -1)
    assert not gathered_dot(query, table, nothing).any()
    assert not gathered_sum(weight, table, nothing).any()


def test_nan_is_not_hidden() -> None:
    query, _, table, row = operands()
    table[int(row[0, 0, row[0, 0] >= 0][0])] = torch.nan
    assert gathered_dot(query, table, row).isnan().any()


def test_threads_change_nothing_but_the_last_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    g = seeded(5)
    query, table = torch.randn(4, 50, 2, 8, generator=g), torch.randn(30, 8, generator=g, requires_grad=True)
    row = torch.randint(-1, 30, (4, 50, 9), generator=g)
    results = []
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        table.grad = None
        dot = gathered_dot(query, table, row)
        dot.square().sum().backward()
        results.append((dot.detach(), table.grad.clone()))
    assert torch.equal(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1])
