"""The two-stage ranker: channels -> GSU (keep K of the whole history) -> ESU (exact attention) -> CTR and PSR heads.

The stages are separate methods, so training, offline evaluation and both serving topologies run this one code:
`encode` and `relevance` are the GSU's half, `rank` the ESU's half, and `forward` is all of it on a Batch.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from seminar.artifacts import Artifact
from seminar.batching import Batch
from seminar.channels import ChannelEncoder, ChannelSource, UnitTables, VectorTables, encoders_of
from seminar.config import ModelConfig
from seminar.encoded import Encoded, encode, pick
from seminar.errors import VersionMismatch, explain
from seminar.esu import ESU, Interest, Kept, TargetGate
from seminar.gathered import gathered_dot
from seminar.gsu import GSU, keep_top_k, target_gate_weights
from seminar.heads import CatalogueStats, Heads, own_task, task_losses
from seminar.schema import NONE, NUM_CHANNELS


@dataclass(frozen=True)
class Ranked:
    """logit_BTS: one logit a task (CTR, PSR); what the ESU saw and made of it."""

    logit_BTS: Float[Tensor, "B T S"]
    interest: Interest
    kept: Kept


class Ranker(nn.Module):
    """SEMINAR's fine-tuned model. `channels` is the trainable encoder or a bundle's UnitTables."""

    def __init__(self, config: ModelConfig, channels: ChannelSource, stats: CatalogueStats, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        self.channels = channels
        self.gsu = GSU(config, generator)
        self.esu = ESU(config, generator)
        self.heads = Heads(config, stats, self.esu.num_features, generator)
        self.distillation = 0.0
        if config.freeze_psu and isinstance(channels, nn.Module):
            channels.requires_grad_(False)

    @classmethod
    def build(cls, config: ModelConfig, tables: VectorTables, generator: torch.Generator) -> "Ranker":
        """A fresh ranker over a vectors artefact."""
        return cls(config, ChannelEncoder(tables, config, generator), CatalogueStats.of(tables), generator)

    def load_psu(self, state: dict[str, Tensor]) -> None:
        """Restore a PSU's channel encoder and gate as initialisation."""
        assert isinstance(self.channels, ChannelEncoder), "a bundle's tables are not trained"
        for prefix, module in (("channels.", self.channels), ("gate.", self.gsu.gate)):
            module.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})

    def forward(self, batch: Batch) -> Ranked:
        """Both stages on a batch, exact GSU."""
        encoded = self.encode(batch)
        with torch.no_grad():
            kept = keep_top_k(self.relevance(encoded), batch.mask_BL, self.config.top_k)
        return self.rank(batch, encoded, kept, self.cross(batch))

    def score(self, batch: Batch) -> Float[Tensor, "B T"]:
        """Logit of each target under its own task; padding targets are -inf."""
        with torch.no_grad():
            return own_task(self.forward(batch).logit_BTS, batch)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy of the targets under their tasks, and the GSU's distillation from the ESU."""
        ranked = self.forward(batch)
        losses = task_losses(ranked.logit_BTS, batch)
        distillation = distillation_loss(ranked.interest, self.kept_relevance(ranked.kept), batch.mask_BT)
        total = sum(losses.values()) + self.distillation * distillation
        return {"total": total, **losses, "distillation": distillation}

    def encode(self, batch: Batch, source: ChannelSource | None = None) -> Encoded:
        """Project each distinct pair of the batch once; `source` replaces the ranker's own channels (unseen queries)."""
        return encode(batch, source or self.channels, self.gsu)

    def relevance(self, encoded: Encoded) -> Float[Tensor, "B T L"]:
        """Exact GSU relevance of every behaviour to every target."""
        folded = self.gsu.fold(encoded.target_BTd)
        if self.config.gate != "target":
            return folded @ functional.embedding(encoded.history_BL, encoded.merged_Pd).transpose(1, 2)
        vector = torch.einsum("mde,bte->btmd", self.gsu.key_transform, folded)
        per_channel = torch.einsum("btmd,blmd->btlm", vector, encoded.gated.pairs.unit_NMd[encoded.history_BL])
        return (per_channel * self._target_weights(encoded)).sum(-1)

    def cross(self, batch: Batch) -> Float[Tensor, "B T F"]:
        """User-x-item features over the whole visible history."""
        return self.heads.cross(batch)

    def rank(self, batch: Batch, encoded: Encoded, kept_BTK: Int[Tensor, "B T K"], cross_BTF: Float[Tensor, "B T F"]) -> Ranked:
        """ESU and heads, given what the GSU kept (positions in this batch's history, -1 padding)."""
        kept = self._gather(batch, encoded, kept_BTK)
        interest = self.esu(encoded.target_BTd, kept)
        logit_BTS = self.heads(batch, encoded, interest.interest_BTd, interest.tiers_BTF, cross_BTF)
        return Ranked(logit_BTS, interest, kept)

    def kept_relevance(self, kept: Kept) -> Float[Tensor, "B T K"]:
        """GSU relevance of the kept behaviours, -inf for padding. Targets and keys are detached: Wq, Wk and bq alone learn."""
        table, row = kept.keys
        folded = self.gsu.fold(functional.embedding(kept.target_BT, kept.merged_Pd.detach()))
        relevance = gathered_dot(folded[:, :, None], table.detach(), row).squeeze(2)
        return relevance.masked_fill(~kept.mask_BTK, -torch.inf)

    def contributions(self, encoded: Encoded, kept_BTK: Int[Tensor, "B T K"]) -> Float[Tensor, "B T K M"]:
        """Each channel's part of the GSU relevance of the kept behaviours; the parts add up to it. Padding: zero."""
        vector = torch.einsum("mde,bte->btmd", self.gsu.key_transform, self.gsu.fold(encoded.target_BTd))
        pair = pick(encoded.history_BL, kept_BTK.clamp_min(0))
        parts = torch.einsum("btmd,btkmd->btkm", vector, encoded.gated.pairs.unit_NMd[pair])
        return parts * self._kept_weights(encoded, pair) * (kept_BTK >= 0)[..., None]

    def _gather(self, batch: Batch, encoded: Encoded, kept_BTK: Tensor) -> Kept:
        position = kept_BTK.clamp_min(0)
        pair = pick(encoded.history_BL, position)
        gate = None
        if self.config.gate == "target":
            gate = TargetGate(self._kept_weights(encoded, pair), self.gsu.key_transform)
        row, hours = torch.where(kept_BTK >= 0, pair, NONE), pick(batch.hours_BL, position)
        return Kept(encoded.gated.pairs, encoded.merged_Pd, encoded.target_BT, row, hours, gate)

    def _target_weights(self, encoded: Encoded) -> Tensor:
        gated = encoded.gated
        return target_gate_weights(gated.gate_logit_NM[encoded.target_BT], gated.pairs.present_NM[encoded.history_BL])

    def _kept_weights(self, encoded: Encoded, pair_BTK: Tensor) -> Tensor:
        """gamma of each kept behaviour's channels, [B, T, K, M]; under gate mode `target` the target's."""
        gated = encoded.gated
        if self.config.gate != "target":
            return gated.weight_NM[pair_BTK]
        # A behaviour has one of 2^M sets of channels: a softmax a set, not one a behaviour.
        bit = 2 ** torch.arange(NUM_CHANNELS, device=pair_BTK.device)
        sets = torch.arange(2**NUM_CHANNELS, device=pair_BTK.device)
        weight = target_gate_weights(
            gated.gate_logit_NM[encoded.target_BT], (sets[:, None] & bit > 0).expand(len(pair_BTK), -1, -1)
        )
        target = torch.arange(encoded.target_BT.numel(), device=pair_BTK.device).view(*encoded.target_BT.shape, 1)
        of_pair = (gated.pairs.present_NM * bit).sum(-1)
        return functional.embedding(target * len(sets) + of_pair[pair_BTK], weight.flatten(0, 2))


def distillation_loss(
    interest: Interest, relevance_BTK: Float[Tensor, "B T K"], mask_BT: Bool[Tensor, "B T"]
) -> Float[Tensor, ""]:
    """KL from the ESU's mean attention to the GSU's softmax over the kept behaviours: what the GSU keeps is what the ESU wants.

    Mean over real targets (mask_BT) of users with a history. The teacher is detached: the ESU does not learn from the GSU.
    """
    teacher = interest.attention_BTHK.detach().mean(2)
    mask = relevance_BTK > -torch.inf
    rows = mask.any(-1, keepdim=True) & mask_BT[..., None]
    student = torch.where(rows, relevance_BTK, 0.0).log_softmax(-1)
    divergence = torch.where((teacher > 0) & rows, teacher * (teacher.clamp_min(1e-12).log() - student), 0.0).sum(-1)
    return divergence.sum() / rows.sum().clamp_min(1)


def load_ranker(model: Artifact, vectors: Artifact) -> Ranker:
    """The trained ranker of a `model` artefact, over the vectors it was trained with or those of a catalogue that continues it.

    Items appended since have no ID embedding and live by their content. VersionMismatch for any other vectors.
    """
    _check_vectors(model, vectors)
    state = load_file(model.file("model.safetensors"))
    config = ModelConfig.model_validate(model.manifest.config["model"])
    tables, generator = VectorTables.load(vectors), torch.Generator()
    encoder = ChannelEncoder(tables, config, generator, num_ids=len(state["channels.seen"]))
    ranker = Ranker(config, encoder, CatalogueStats.of(tables), generator)
    ranker.load_state_dict(state)
    return ranker.eval()


def _check_vectors(model: Artifact, vectors: Artifact) -> None:
    """The vectors of training, or those of a later catalogue whose rows and encoders are the same."""
    trained, pairs = model.manifest.inputs["vectors"], model.manifest.inputs["pairs"]
    later = vectors.manifest.inputs["pairs"].checksum != pairs.checksum
    continued = later and pairs.checksum in vectors.manifest.config["lineage"]
    alike = encoders_of(vectors) == model.manifest.config.get("encoders")
    if vectors.manifest.checksum != trained.checksum and not (continued and alike):
        raise VersionMismatch(
            explain(
                f"model {model.version}",
                got=f"vectors {vectors.version} by {encoders_of(vectors)}",
                expected=f"vectors {trained.version}, or by the same encoders of a continuation of pairs {pairs.version}",
                fix="use the vectors it was trained with",
            )
        )


def serving_ranker(config: ModelConfig, tables: UnitTables, stats: CatalogueStats, state: dict[str, Tensor]) -> Ranker:
    """A ranker over precomputed unit vectors: everything but the encoder."""
    ranker = Ranker(config, tables, stats, torch.Generator())
    ranker.load_state_dict({k: v for k, v in state.items() if not k.startswith("channels.")})
    return ranker.eval()
