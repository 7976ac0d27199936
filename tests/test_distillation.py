"""The fused distillation loss against its definition in float64: value, gradient, who counts."""

import torch

from seminar.distillation import distilled
from tests.worlds import seeded


def test_loss_and_gradient_equal_the_definition() -> None:
    g = seeded()
    query, table = torch.randn(2, 4, 16, generator=g), torch.randn(13, 16, generator=g)
    row, mask = torch.randint(-1, 13, (2, 4, 21), generator=g), torch.tensor([[True] * 4, [True, True, False, False]])
    row[0, 1] = -1
    share = torch.rand(2, 4, 21, generator=g) * (row >= 0)
    share[1, 0, 3:] = 0
    teacher = share / share.sum(-1, keepdim=True).clamp_min(1e-9)
    leaf, exact = query.clone().requires_grad_(), query.double().requires_grad_()
    got = distilled(leaf, table, row, teacher, mask)
    expected = []
    for b, t in mask.nonzero().tolist():
        real = row[b, t] >= 0
        if real.any():
            student = (table[row[b, t][real]].double() @ exact[b, t]).log_softmax(-1)
            expected.append(torch.nn.functional.kl_div(student, teacher[b, t][real].double(), reduction="sum"))
    assert len(expected) == 5
    torch.testing.assert_close(got.double(), torch.stack(expected).mean(), rtol=1e-5, atol=1e-6)
    (3 * got).backward()
    (3 * torch.stack(expected).mean()).backward()
    torch.testing.assert_close(leaf.grad.double(), exact.grad, rtol=1e-4, atol=1e-6)


def test_nobody_to_learn_from_is_no_loss() -> None:
    query = torch.randn(1, 2, 16, generator=seeded(), requires_grad=True)
    nothing = torch.full((1, 2, 3), -1)
    loss = distilled(query, torch.randn(4, 16), nothing, torch.zeros(1, 2, 3), torch.ones(1, 2, dtype=torch.bool))
    loss.backward()
    assert float(loss) == 0
    assert not query.grad.any()
