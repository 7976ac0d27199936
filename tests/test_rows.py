"""Rows of tables against the plain forms: distinct codes, unit vectors, gathered rows, bags, Adagrad of rows."""

import numpy as np
import pytest
import torch
from torch.nn import functional

from seminar.gsu import keep_nearest, keep_top_k
from seminar.rows import bag_sum, distinct, gather_rows, unit_rows
from seminar.train.training import RowAdagrad
from tests.worlds import seeded

DTYPES = [torch.float32, torch.float64]


def test_distinct_codes_stand_in_order_of_first_occurrence_and_negatives_nowhere() -> None:
    code = torch.tensor([[7, -1, 2**62, 7], [0, -5, 2**62, 3]])
    found, place = distinct(code)
    assert found.tolist() == [7, 2**62, 0, 3]
    assert place.tolist() == [[0, -1, 1, 0], [2, -1, 1, 3]]
    assert [len(part) for part in distinct(code[:0].flatten())] == [0, 0]


def test_distinct_codes_restore_what_was_asked() -> None:
    code = torch.from_numpy(np.random.default_rng(0).integers(-3, 5000, 20_000) << 20)
    found, place = distinct(code)
    assert len(found) == len(found.unique()) == len(code[code >= 0].unique())
    assert torch.equal(found[place[code >= 0]], code[code >= 0])
    assert (place[code < 0] == -1).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_unit_rows_and_their_gradient_equal_normalise(dtype: torch.dtype) -> None:
    vector = torch.randn(9, 16, generator=seeded(), dtype=dtype)
    vector[4] = 0
    vector[5] *= 1e-15
    given = torch.randn(9, 16, generator=seeded(1), dtype=dtype)
    results = []
    for form in (unit_rows, lambda x: functional.normalize(x, dim=-1)):
        leaf = vector.clone().requires_grad_()
        unit = form(leaf)
        (unit * given).sum().backward()
        results.append((unit.detach(), leaf.grad))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gathered_rows_and_bags_equal_the_plain_forms(dtype: torch.dtype) -> None:
    table, row = torch.randn(11, 6, generator=seeded(), dtype=dtype), torch.randint(-1, 11, (8, 3), generator=seeded(1))
    plain = table.clone().requires_grad_()
    expected = plain[row.clamp_min(0)] * (row >= 0)[..., None]
    for form, reduced in ((gather_rows, expected), (bag_sum, expected.sum(1))):
        leaf = table.clone().requires_grad_()
        got = form(leaf, row)
        torch.testing.assert_close(got, reduced)
        plain.grad = None
        reduced.square().sum().backward(retain_graph=True)
        got.square().sum().backward()
        torch.testing.assert_close(leaf.grad.to_dense(), plain.grad)
    with pytest.raises(IndexError, match="row 11"):
        bag_sum(table, row + 1)


@pytest.mark.parametrize("dtype", DTYPES)
def test_adagrad_of_rows_makes_torchs_updates(dtype: torch.dtype) -> None:
    g, start = seeded(), torch.randn(30, 8, dtype=dtype, generator=seeded(1))
    tables = [torch.nn.Parameter(start.clone()) for _ in range(2)]
    optimisers = [RowAdagrad(tables[:1], lr=0.1), torch.optim.Adagrad(tables[1:], lr=0.1)]
    for _ in range(4):
        row, value = torch.randint(0, 30, (1, 12), generator=g), torch.randn(12, 8, generator=g, dtype=dtype)
        for table, optimiser in zip(tables, optimisers, strict=True):
            table.grad = torch.sparse_coo_tensor(row, value, (30, 8)).coalesce()
            optimiser.step()
    torch.testing.assert_close(tables[0], tables[1], rtol=1e-6, atol=1e-6)
    assert optimisers[0].state_dict()["state"].keys() == optimisers[1].state_dict()["state"].keys()


@pytest.mark.parametrize("k", [1, 5, 64, 199, 200, 300])
def test_request_by_request_top_k_equals_that_of_all_relevances(k: int) -> None:
    g = seeded(2)
    # Small integers: products are exact whatever the order of additions, and many are equal.
    folded, key = torch.randint(-2, 3, (3, 7, 16), generator=g).float(), torch.randint(-2, 3, (40, 16), generator=g).float()
    history, length = torch.randint(0, 40, (3, 200), generator=g), torch.tensor([200, 31, 0])
    mask = torch.arange(200) < length[:, None]
    relevance = folded @ key[history].transpose(1, 2)
    kept = keep_nearest(folded, key, history, length, k)
    assert torch.equal(kept, keep_top_k(relevance, mask, k))
    assert torch.equal(kept, keep_top_k(relevance.double(), mask, k))
