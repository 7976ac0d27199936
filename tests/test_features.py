"""Cross features against a count by hand, and bounds that keep one odd item from blowing up a batch."""

import math

import numpy as np
import pytest
import torch

from seminar.features import DECAY_HOURS, _totals, _totals_plain, cross_features


def test_cross_features_equal_a_count_by_hand() -> None:
    item, category = torch.tensor([[3, 5, 3, 9]]), torch.tensor([[0, 0, 0, 1]])
    hours, mask = torch.tensor([[100.0, 48.0, 24.0, 0.0]]), torch.tensor([[True, True, True, False]])
    got = cross_features(item, category, hours, mask, torch.tensor([[3, 9, 7]]), torch.tensor([[0, 1, -1]]))[0]
    decayed = [[math.exp(-h / tau) for h in (100.0, 48.0, 24.0)] for tau in DECAY_HOURS]
    items = [2.0, *(d[0] + d[2] for d in decayed)]
    categories = [3.0, *(sum(d) for d in decayed)]
    expected = [math.log1p(v) for v in items + categories] + [1.0, 0.5] + [a / b for a, b in zip(items, categories, strict=True)]
    torch.testing.assert_close(got[0], torch.tensor(expected))
    assert not got[1].any(), "the only match is padding"
    assert not got[2].any(), "an item without category matches no category"


def test_item_without_category_keeps_features_bounded() -> None:
    item, hours = torch.full((1, 500), 4), torch.zeros(1, 500)
    category, mask = torch.full((1, 500), -1), torch.ones(1, 500, dtype=torch.bool)
    got = cross_features(item, category, hours, mask, torch.tensor([[4]]), torch.tensor([[-1]]))
    assert float(got.abs().max()) < 10


@pytest.mark.parametrize(("batch", "length", "targets"), [(3, 50, 7), (1, 0, 4), (2, 30, 1), (1, 400, 100)])
def test_the_search_a_behaviour_equals_the_comparison_of_all(batch: int, length: int, targets: int) -> None:
    generator = torch.Generator().manual_seed(length)

    def draw(low: int, high: int, width: int) -> torch.Tensor:
        return torch.randint(low, high, (batch, width), generator=generator)

    hours = torch.rand(batch, length, generator=generator) * 3000
    mask = torch.rand(batch, length, generator=generator) < 0.8
    columns = draw(0, 20, length), draw(-1, 4, length), hours, mask, draw(0, 30, targets), draw(-1, 5, targets)
    plain = _totals_plain(*columns)
    for found, expected in zip(_totals(*(c.numpy() for c in columns), np.array(DECAY_HOURS)), plain, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
