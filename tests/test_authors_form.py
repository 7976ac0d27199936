"""The form that training is timed against computes the same logits and gradients as ours, candidate by candidate."""

import pytest
import torch

from benchmarks.authors_form import candidate, logits, loss_of_candidate
from tests.test_ranker import ranker
from tests.worlds import batch_of, vector_tables


@pytest.mark.parametrize("gate", ["constant", "behaviour"])
def test_logits_and_gradients_equal_ours(gate: str) -> None:
    unit, batch = ranker(gate), batch_of([30, 12, 0], vector_tables(), targets=4)
    for number in range(3):
        one = candidate(batch, number)
        ours = unit(one).logit_BTS
        torch.testing.assert_close(logits(unit, one), ours, rtol=1e-4, atol=1e-5)
        gradients = []
        for loss in (loss_of_candidate(unit, batch, number), unit.loss(one)["total"]):
            unit.zero_grad()
            loss.backward()
            gradients.append({name: p.grad.to_dense() for name, p in unit.named_parameters() if p.grad is not None})
        theirs, own = gradients
        for name, gradient in own.items():
            if name.startswith("gsu.attention") and name not in theirs:
                continue  # distillation alone teaches these, and its weight is zero here
            torch.testing.assert_close(theirs[name], gradient, rtol=1e-3, atol=1e-5, msg=name)
