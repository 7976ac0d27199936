"""How the channels of a pair become one vector: a learned scale a channel, the gate gamma, and the transforms G_j."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from seminar.channels import ChannelEncoder, Pairs
from seminar.config import ModelConfig
from seminar.gathered import gathered_sum
from seminar.schema import NUM_CHANNELS


class ChannelGate(nn.Module):
    """Learned scale a channel and gate gamma = softmax over the present channels, in three modes (SPEC 2).

    constant: one logit a channel. target: plus a linear term in the target's own unit vectors; the target's gate weighs the
    behaviours' channels too. behaviour: plus a linear term in each pair's own unit vectors.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.mode = config.gate
        self.log_scale = nn.Parameter(torch.zeros(NUM_CHANNELS))
        self.logit = nn.Parameter(torch.zeros(NUM_CHANNELS))
        if config.gate != "constant":
            self.direction = nn.Parameter(torch.zeros(NUM_CHANNELS, config.dim))

    @property
    def scale(self) -> Float[Tensor, " M"]:
        return self.log_scale.exp()

    def logits(self, pairs: Pairs) -> Float[Tensor, "N M"]:
        """Gate logits g_j of each pair before the softmax over present channels."""
        if self.mode == "constant":
            return self.logit.expand(len(pairs.present_NM), -1)
        return self.logit + torch.einsum("nmd,md->nm", pairs.unit_NMd, self.direction)

    def weights(self, pairs: Pairs) -> Float[Tensor, "N M"]:
        """gamma of each pair: a distribution over its present channels, all zero for a pair without any."""
        return gate_softmax(self.logits(pairs), pairs.present_NM)


def gate_softmax(logits: Float[Tensor, "*N M"], present: Bool[Tensor, "*N M"]) -> Float[Tensor, "*N M"]:
    """Softmax over present channels; all zero where none is present."""
    weights = logits.masked_fill(~present, -1e30).softmax(-1)
    return torch.where(present, weights, torch.zeros_like(weights))


@dataclass(frozen=True)
class GatedPairs:
    """Pairs with what the gate says of them: weight_NM = gamma (zero where missing), gate_logit_NM before the softmax."""

    pairs: Pairs
    weight_NM: Float[Tensor, "N M"]
    gate_logit_NM: Float[Tensor, "N M"]


def load_psu(state: Mapping[str, Tensor], channels: ChannelEncoder, gate: ChannelGate) -> None:
    """Restore a PSU's channel encoder and gate from its state dict, as an initialisation."""
    for prefix, module in (("channels.", channels), ("gate.", gate)):
        module.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})


def load_content(state: Mapping[str, Tensor], channels: ChannelEncoder) -> None:
    """Restore what a PSU made of content: its projections of query, text and image. IDs, attribute tokens and gate stay fresh."""
    for name in ("project_query", "project_text", "project_image"):
        getattr(channels, name).data.copy_(state[f"channels.{name}"])


class ChannelMerge(nn.Module):
    """x^(j) = s_j unit_j G_j and their gated sum, with G_j the identity at first (SEMINAR, fine-tuning)."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate = ChannelGate(config)
        self.transform = nn.Parameter(torch.eye(config.dim).repeat(NUM_CHANNELS, 1, 1), requires_grad=config.learn_transform)

    def gated(self, pairs: Pairs) -> GatedPairs:
        """Gate of each pair on its own channels."""
        logits = self.gate.logits(pairs)
        return GatedPairs(pairs, gate_softmax(logits, pairs.present_NM), logits)

    def merged(self, gated: GatedPairs) -> Float[Tensor, "N d"]:
        """sum_j gamma_j s_j unit_j G_j: merged query of a target, merged key of a behaviour (unless the gate is the target's).

        Each distinct vector passes through G_j once where pairs still know which they share.
        """
        columns = gated.pairs.columns
        if columns is not None:
            parts = zip(columns.unit_Ud.split(columns.sizes), self.key_transform, strict=True)
            table = torch.cat([unit @ transform for unit, transform in parts])
            return gathered_sum(gated.weight_NM[None, :, None], table, columns.row_NM[None])[0, :, 0]
        weighted = gated.pairs.unit_NMd * (gated.weight_NM * self.gate.scale)[..., None]
        return weighted.flatten(1) @ self.transform.flatten(0, 1)

    @property
    def key_transform(self) -> Float[Tensor, "M d d"]:
        """A_j = s_j G_j: what turns a channel's unit vectors into keys."""
        return self.transform * self.gate.scale[:, None, None]
