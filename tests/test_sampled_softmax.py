"""Sampled softmax against the plain form in float64: values, gradients, exclusion."""

import torch
from torch import Tensor

from seminar.sampled_softmax import sampled_softmax
from tests.worlds import seeded


def plain(predicted: Tensor, positive: Tensor, candidate: Tensor, excluded: Tensor, scale: Tensor) -> Tensor:
    negative = (scale * predicted @ candidate.T).masked_fill(excluded, -torch.inf)
    return torch.logsumexp(torch.cat([positive[:, None], negative], 1), 1) - positive


def test_values_and_gradients_equal_the_plain_form() -> None:
    g = seeded(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    predicted, positive, candidate, scale = draw(7, 5), 30 * draw(7), draw(11, 5), draw(()).exp()
    excluded = torch.rand(7, 11, generator=g) < 0.4
    excluded[0] = True
    leaves = [x.requires_grad_() for x in (predicted, positive, candidate, scale)]
    results = []
    for form in (sampled_softmax, plain):
        loss = form(predicted, positive, candidate, excluded, scale)
        results.append([loss, *torch.autograd.grad((loss * torch.arange(1.0, 8)).sum(), leaves)])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


def test_a_row_with_everything_excluded_has_no_loss() -> None:
    one = torch.ones(1, 2)
    loss = sampled_softmax(one, torch.tensor([3.0]), one, torch.tensor([[True]]), torch.tensor(2.0))
    assert float(loss) == 0
