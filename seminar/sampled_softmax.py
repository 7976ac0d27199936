"""Cross-entropy of one positive against sampled negatives, with a gradient that keeps one matrix of their probabilities."""

from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.autograd.function import once_differentiable


def sampled_softmax(
    predicted_Nd: Float[Tensor, "N d"],
    positive_N: Float[Tensor, " N"],
    candidate_Cd: Float[Tensor, "C d"],
    excluded_NC: Bool[Tensor, "N C"],
    scale: Float[Tensor, ""],
    bias_C: Float[Tensor, " C"] | None = None,
) -> Float[Tensor, " N"]:
    """-log softmax of the positive's logit among itself and scale <predicted, candidate> + bias of those not excluded.

    Gradients: predicted, positive, candidate and scale; the bias, e.g. a correction for how candidates were drawn, has none.
    """
    return _SampledSoftmax.apply(predicted_Nd, positive_N, candidate_Cd, excluded_NC, scale, bias_C)


class _SampledSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        predicted: Tensor,
        positive: Tensor,
        candidate: Tensor,
        excluded: Tensor,
        scale: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        logit = (predicted * scale) @ candidate.T if bias is None else torch.addmm(bias, predicted * scale, candidate.T)
        logit.masked_fill_(excluded, -torch.inf)
        top = torch.maximum(positive, logit.amax(1))
        share = logit.sub_(top[:, None]).exp_()
        of_positive = (positive - top).exp()
        total = share.sum(1) + of_positive
        ctx.save_for_backward(predicted, candidate, scale, share, of_positive, total)
        return total.log() + top - positive

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Any) -> Any:  # type: ignore[bad-override]
        predicted, candidate, scale, share, of_positive, total = ctx.saved_tensors
        # Rows are weighed on the narrow side of each product, never the matrix of shares.
        weight = (grad_outputs[0] / total)[:, None]
        of_product = weight * (share @ candidate)
        of_candidate = share.T @ (weight * scale * predicted)
        of_positive = weight[:, 0] * of_positive - grad_outputs[0]
        return of_product * scale, of_positive, of_candidate, None, (of_product * predicted).sum(), None
