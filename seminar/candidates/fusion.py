"""A transformer over the tokens of a user's behaviours, one token a modality, that answers all questions of a window at once.

    behaviour   sees behaviours of its own request and of earlier ones
    question    a mask token that sees behaviours of earlier requests; its output is the prediction for that request
    item alone  its tokens, at position 0

So what a question gets does not depend on what else is asked of the window, and a window with one question at its end, as when a
user is served, gives the same vector as the same prefix in training.
"""

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn import functional

from seminar.candidates.tower import Asked
from seminar.config import RetrieverConfig


def fusion_encoder(config: RetrieverConfig, modalities: int, generator: torch.Generator) -> "FusionEncoder":
    """As `config` shapes it, for items of this many tokens."""
    return FusionEncoder(config.dim, config.num_layers, config.num_heads, config.window, modalities, config.dropout, generator)


class FusionEncoder(nn.Module):
    """Pre-norm transformer layers, with a learned embedding of each position and each modality."""

    def __init__(
        self,
        dim: int,
        num_layers: int,
        num_heads: int,
        window: int,
        modalities: int,
        dropout: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.gain = math.sqrt(dim)
        self.position = nn.Parameter(torch.randn(window + 2, dim, generator=generator) * 0.02)
        self.modality = nn.Parameter(torch.randn(modalities, dim, generator=generator) * 0.02)
        self.mask = nn.Parameter(torch.randn(dim, generator=generator) * 0.02)
        self.blank = nn.Parameter(torch.randn(dim, generator=generator) * 0.02)
        self.layers = nn.ModuleList(Layer(dim, num_heads, dropout, generator) for _ in range(num_layers))
        self.norm = nn.LayerNorm(dim)
        self.dropout = dropout

    def items(self, token_NMd: Float[Tensor, "N M d"], present_NM: Bool[Tensor, "N M"]) -> Float[Tensor, "N d"]:
        """Each item alone, of unit tokens: the maximum over its present modalities; one without any has a blank token."""
        token_NMd, present_NM = self._or_blank(token_NMd, present_NM)
        token_NMd = self._dropped(token_NMd * self.gain + self.modality + self.position[0])
        visible_NMM = present_NM[:, None, :] | torch.eye(present_NM.shape[1], dtype=torch.bool, device=present_NM.device)
        out_NMd = self._through(token_NMd, visible_NMM)
        return out_NMd.masked_fill(~present_NM[..., None], -torch.inf).amax(1)

    def answers(
        self,
        token_BLMd: Float[Tensor, "B L M d"],
        present_BLM: Bool[Tensor, "B L M"],
        request_BL: Int[Tensor, "B L"],
        asked: Asked,
        hint_Ad: Float[Tensor, "A d"],
    ) -> Float[Tensor, "A d"]:
        """Output of each question's mask token. present_BLM: False on padding. hint_Ad: what the question says of its answer."""
        length = request_BL.shape[1]
        token_BLMd = token_BLMd * self.gain + self.modality + self.position[1 : length + 1, None]
        question_Ad = self.mask + hint_Ad * self.gain + self.position[asked.seen_A + 1]
        window, place, modality = present_BLM.nonzero(as_tuple=True)
        row = torch.cat([window, asked.window_A])
        order = torch.argsort(row, stable=True)
        row = row[order]
        count_B = torch.bincount(row, minlength=len(request_BL))
        column = torch.arange(len(row), device=row.device) - (count_B.cumsum(0) - count_B)[row]
        shape = (len(request_BL), int(count_B.max()))
        token = torch.cat([token_BLMd[window, place, modality], question_Ad])[order]
        token_BSd = token.new_zeros(*shape, token.shape[1]).index_put((row, column), token)
        # A behaviour of request r is seen by those that look up to r; a question looks up to r - 1 and is seen by itself alone.
        never = torch.iinfo(torch.int64).max
        seen_at = torch.cat([request_BL[window, place], torch.full_like(asked.request_A, never)])[order]
        looks_to = torch.cat([request_BL[window, place], asked.request_A - 1])[order]
        seen_at_BS = torch.full(shape, never, device=row.device).index_put((row, column), seen_at)
        looks_to_BS = torch.full(shape, -1, device=row.device).index_put((row, column), looks_to)
        itself = torch.eye(shape[1], dtype=torch.bool, device=row.device)
        visible_BSS = (seen_at_BS[:, None, :] <= looks_to_BS[:, :, None]) | itself
        out_BSd = self._through(self._dropped(token_BSd), visible_BSS)
        questions = torch.empty_like(column).index_put((order,), column)[len(window) :]
        return out_BSd[asked.window_A, questions]

    def _or_blank(self, token_NMd: Tensor, present_NM: Tensor) -> tuple[Tensor, Tensor]:
        blank_N = ~present_NM.any(1)
        first = torch.where(blank_N[:, None], self.blank, token_NMd[:, 0])
        token_NMd = torch.cat([first[:, None], token_NMd[:, 1:]], 1)
        return token_NMd, torch.cat([present_NM[:, :1] | blank_N[:, None], present_NM[:, 1:]], 1)

    def _dropped(self, token: Tensor) -> Tensor:
        return functional.dropout(token, self.dropout, self.training)

    def _through(self, token_BSd: Tensor, visible_BSS: Tensor) -> Tensor:
        for layer in self.layers:
            token_BSd = layer(token_BSd, visible_BSS)
        return self.norm(token_BSd)


class Layer(nn.Module):
    """Multi-head self-attention and a feed-forward part, each on normalised input and added to it."""

    def __init__(self, dim: int, num_heads: int, dropout: float, generator: torch.Generator) -> None:
        super().__init__()
        self.num_heads, self.dropout = num_heads, dropout
        self.first, self.second = nn.LayerNorm(dim), nn.LayerNorm(dim)
        # What a layer adds starts small, so that content that resembles itself does so from the first step.
        self.joint, self.out = _linear(dim, 3 * dim, generator), _linear(dim, dim, generator, 0.1)
        self.wide, self.narrow = _linear(dim, 2 * dim, generator), _linear(2 * dim, dim, generator, 0.1)

    def forward(self, token_BSd: Float[Tensor, "B S d"], visible_BSS: Bool[Tensor, "B S S"]) -> Float[Tensor, "B S d"]:
        """visible_BSS: which tokens (last axis) each token reads; at least one."""
        parts = self.joint(self.first(token_BSd)).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        query, key, value = parts.unbind(0)
        read = functional.scaled_dot_product_attention(query, key, value, attn_mask=visible_BSS[:, None])
        token_BSd = token_BSd + self._dropped(self.out(read.transpose(1, 2).flatten(2)))
        return token_BSd + self._dropped(self.narrow(functional.gelu(self.wide(self.second(token_BSd)))))

    def _dropped(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.dropout, self.training)


def _linear(rows: int, columns: int, generator: torch.Generator, gain: float = 1.0) -> nn.Linear:
    layer = nn.Linear(rows, columns)
    with torch.no_grad():
        layer.weight.copy_(torch.randn(columns, rows, generator=generator) * gain / math.sqrt(rows))
        layer.bias.zero_()
    return layer
