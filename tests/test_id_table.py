"""ID tables: missing rows are nothing, and sparse gradients are the dense ones."""

import pytest
import torch

from seminar.id_table import IdTable
from tests.worlds import seeded


def table(rows: int = 7, dim: int = 3) -> IdTable:
    return IdTable(rows, dim, seeded())


def test_missing_row_is_a_zero_vector() -> None:
    ids = table()
    vectors = ids(torch.tensor([[2, -1], [-1, 0]]))
    assert vectors.shape == (2, 2, 3)
    assert torch.equal(vectors[0, 1], torch.zeros(3))
    assert torch.equal(vectors[0, 0], ids.weight[2])
    assert torch.equal(vectors[1, 1], ids.weight[0])


def test_missing_row_passes_no_gradient() -> None:
    ids = table()
    ids(torch.tensor([4, -1, -1])).sum().backward()
    assert ids.weight.grad.coalesce().indices().tolist() == [[4]]


@pytest.mark.parametrize("rows", [[3, 3, 5, -1, 0], [6, 6], [-1, -1], []])
def test_sparse_gradient_equals_the_dense_one(rows: list[int]) -> None:
    ids = table()
    index = torch.tensor(rows, dtype=torch.int64)
    scale = torch.arange(1.0, 1 + len(rows))[:, None]
    (ids(index) * scale).pow(2).sum().backward()
    ids.exchange_gradients(None)
    dense = ids.weight.detach().clone().requires_grad_()
    picked = torch.where(index[:, None] >= 0, dense[index.clamp_min(0)], 0.0)
    (picked * scale).pow(2).sum().backward()
    assert ids.weight.grad.is_sparse
    torch.testing.assert_close(ids.weight.grad.to_dense(), dense.grad)


def test_each_distinct_row_is_looked_up_once() -> None:
    ids = table()
    ids(torch.tensor([5, 1, 5, 5, 1])).sum().backward()
    assert ids.weight.grad._nnz() == 2


def test_a_table_that_was_not_used_has_an_empty_gradient_after_the_exchange() -> None:
    ids = table()
    ids.exchange_gradients(None)
    assert ids.weight.grad.is_sparse
    assert ids.weight.grad._nnz() == 0


def test_an_unknown_row_is_an_error() -> None:
    with pytest.raises(IndexError):
        table()(torch.tensor([7]))


def test_rows_come_from_the_generator_alone() -> None:
    torch.manual_seed(1)
    first = table()
    torch.manual_seed(2)
    assert torch.equal(first.weight, table().weight)
    assert not torch.equal(first.weight, IdTable(7, 3, seeded(1)).weight)
