"""Sampled softmax against the plain form in float64: values, gradients, exclusion, bias."""

import pytest
import torch
from torch import Tensor

from seminar.sampled_softmax import sampled_softmax
from tests.worlds import seeded


def plain(predicted: Tensor, positive: Tensor, candidate: Tensor, excluded: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    negative = scale * predicted @ candidate.T + (0.0 if bias is None else bias)
    negative = negative.masked_fill(excluded, -torch.inf)
    return torch.logsumexp(torch.cat([positive[:, None], negative], 1), 1) - positive


@pytest.mark.parametrize("biased", [False, True])
def test_values_and_gradients_equal_the_plain_form(biased: bool) -> None:
    g = seeded(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    predicted, positive, candidate, scale = draw(7, 5), 30 * draw(7), draw(11, 5), draw(()).exp()
    excluded = torch.rand(7, 11, generator=g) < 0.4
    excluded[0] = True
    bias = 4 * draw(11) if biased else None
    leaves = [x.requires_grad_() for x in (predicted, positive, candidate, scale)]
    results = []
    for form in (sampled_softmax, plain):
        loss = form(predicted, positive, candidate, excluded, scale, bias)
        results.append([loss, *torch.autograd.grad((loss * torch.arange(1.0, 8)).sum(), leaves)])
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)


def test_a_row_with_everything_excluded_has_no_loss() -> None:
    one = torch.ones(1, 2)
    loss = sampled_softmax(one, torch.tensor([3.0]), one, torch.tensor([[True]]), torch.tensor(2.0))
    assert float(loss) == 0


def test_a_bias_moves_the_loss_as_a_component_of_the_vectors_would() -> None:
    g = seeded(2)
    predicted, candidate, bias = torch.randn(6, 4, generator=g), torch.randn(9, 4, generator=g), torch.randn(9, generator=g)
    positive, excluded, scale = torch.randn(6, generator=g), torch.rand(6, 9, generator=g) < 0.3, torch.tensor(3.0)
    wider = torch.cat([predicted, torch.ones(6, 1)], 1), torch.cat([candidate, bias[:, None] / scale], 1)
    torch.testing.assert_close(
        sampled_softmax(predicted, positive, candidate, excluded, scale, bias),
        sampled_softmax(wider[0], positive, wider[1], excluded, scale),
    )


def test_a_bias_gets_no_gradient() -> None:
    bias = torch.zeros(3, requires_grad=True)
    predicted, candidate = torch.ones(2, 4, requires_grad=True), torch.ones(3, 4)
    sampled_softmax(
        predicted, torch.zeros(2), candidate, torch.zeros(2, 3, dtype=torch.bool), torch.tensor(1.0), bias
    ).sum().backward()
    assert predicted.grad is not None
    assert bias.grad is None
