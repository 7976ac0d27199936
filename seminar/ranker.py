"""The two-stage ranker: channels -> GSU (keep K of the whole history) -> ESU (exact attention) -> CTR and PSR heads.

The stages are separate methods, so training, offline evaluation and both serving topologies run this one code:
`encode` and `relevance` are the GSU's half, `rank` the ESU's half, and `forward` is all of it on a Batch.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from seminar.artifacts import Artifact
from seminar.batching import Batch
from seminar.channels import ChannelEncoder, ChannelSource, UnitTables, VectorTables, encode_pairs, encoders_of
from seminar.config import ModelConfig
from seminar.distillation import distilled, distilled_plainly
from seminar.encoded import Encoded, encode, pick
from seminar.errors import VersionMismatch, explain
from seminar.esu import ESU, Interest, Kept, TargetGate
from seminar.gate import GatedPairs, load_psu
from seminar.gathered import gathered_dot, gathered_sum
from seminar.gsu import GSU, keep_nearest, keep_top_k, target_gate_weights
from seminar.heads import CatalogueStats, Heads, own_task, task_losses
from seminar.rows import for_kernels
from seminar.schema import NONE, NUM_CHANNELS
from seminar.taste import Taste

M = TypeVar("M", bound=nn.Module)


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
        self.taste = Taste(config)
        self.heads = Heads(config, stats, self.esu.num_features + self.taste.num_features, generator)
        self.distillation = 0.0
        self.quantised_search = False
        if config.freeze_psu and isinstance(channels, nn.Module):
            channels.requires_grad_(False)

    @classmethod
    def build(cls, config: ModelConfig, tables: VectorTables, generator: torch.Generator, num_ids: int | None = None) -> "Ranker":
        """A fresh ranker over a vectors artefact; num_ids as in ChannelEncoder."""
        return cls(config, ChannelEncoder(tables, config, generator, num_ids), CatalogueStats.of(tables), generator)

    def load_psu(self, state: dict[str, Tensor]) -> None:
        """Restore a PSU's channel encoder and gate as initialisation."""
        assert isinstance(self.channels, ChannelEncoder), "a bundle's tables are not trained"
        load_psu(state, self.channels, self.gsu.gate)

    def forward(self, batch: Batch) -> Ranked:
        """Both stages on a batch, exact GSU."""
        encoded = self.encode(batch)
        return self.rank(batch, encoded, self._keep(batch, encoded), self.cross(batch), self.pooled(batch, encoded))

    def score(self, batch: Batch) -> Float[Tensor, "B T"]:
        """Logit of each target under its own task; padding targets are -inf."""
        with torch.no_grad():
            return own_task(self.forward(batch).logit_BTS, batch)

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy of the targets under their tasks, and the GSU's distillation from the ESU."""
        ranked = self.forward(batch)
        losses = task_losses(ranked.logit_BTS, batch)
        distillation = self._distillation(ranked, batch.mask_BT)
        total = sum(losses.values()) + self.distillation * distillation
        return {"total": total, **losses, "distillation": distillation}

    def encode(self, batch: Batch, source: ChannelSource | None = None) -> Encoded:
        """Project each distinct pair of the batch once; `source` replaces the ranker's own channels (unseen queries)."""
        return encode(batch, source or self.channels, self.gsu)

    def relevance(self, encoded: Encoded, key_Pd: Float[Tensor, "P d"] | None = None) -> Float[Tensor, "B T L"]:
        """Exact GSU relevance of every behaviour to every target; key_Pd: other merged keys, where the gate allows them."""
        folded = self.gsu.fold(encoded.target_BTd)
        if self.config.gate != "target":
            key_Pd = encoded.merged_Pd if key_Pd is None else key_Pd
            return folded @ functional.embedding(encoded.history_BL, key_Pd).transpose(1, 2)
        vector = torch.einsum("mde,bte->btmd", self.gsu.key_transform, folded)
        per_channel = torch.einsum("btmd,blmd->btlm", vector, encoded.gated.pairs.unit_NMd[encoded.history_BL])
        return (per_channel * self._target_weights(encoded)).sum(-1)

    def _distillation(self, ranked: Ranked, mask_BT: Bool[Tensor, "B T"]) -> Float[Tensor, ""]:
        kept = ranked.kept
        if kept.gate is not None or not for_kernels(kept.merged_Pd):
            return distilled_plainly(ranked.interest.attention_BTHK.mean(2), self.kept_relevance(kept), mask_BT)
        folded = self.gsu.fold(functional.embedding(kept.target_BT, kept.merged_Pd.detach()))
        return distilled(folded, kept.merged_Pd, kept.row_BTK, ranked.interest.attention_BTHK.mean(2), mask_BT)

    @torch.no_grad()
    def _keep(self, batch: Batch, encoded: Encoded) -> Int[Tensor, "B T K"]:
        """Positions that the GSU keeps."""
        key = rounded(encoded.merged_Pd) if self.training and self.quantised_search else encoded.merged_Pd
        if self.config.gate == "target" or not for_kernels(key):
            return keep_top_k(self.relevance(encoded, key), batch.mask_BL, self.config.top_k)
        return keep_nearest(self.gsu.fold(encoded.target_BTd), key, encoded.history_BL, batch.length_B, self.config.top_k)

    def cross(self, batch: Batch) -> Float[Tensor, "B T F"]:
        """User-x-item features over the whole visible history."""
        return self.heads.cross(batch)

    def pooled(self, batch: Batch, encoded: Encoded) -> Float[Tensor, "B S d"]:
        """The whole history's pools for `Taste`."""
        weight_BSL = self.taste.weights(batch.hours_BL, batch.mask_BL)
        return gathered_sum(weight_BSL[:, None], encoded.merged_Pd, encoded.history_BL[:, None])[:, 0]

    def pooled_of_pairs(self, gated: GatedPairs, weight_SN: Float[Tensor, "S N"]) -> Float[Tensor, "S d"]:
        """The same of N behaviours of one user, summed a channel before the channels merge: no key is made."""
        by_channel = torch.einsum("sn,nm,nmd->smd", weight_SN, gated.weight_NM, gated.pairs.unit_NMd)
        return torch.einsum("smd,mde->se", by_channel, self.gsu.key_transform)

    def pooled_newest(self, batch: Batch) -> Float[Tensor, "S d"]:
        """The pools of a batch of one user, from the behaviours that count alone."""
        weight_SL = self.taste.weights(batch.hours_BL, batch.mask_BL)[0]
        counted = slice(max(0, weight_SL.shape[1] - self.taste.newest), None)
        pairs = encode_pairs(self.channels, batch.item_BL[0, counted], batch.query_BL[0, counted])
        return self.pooled_of_pairs(self.gsu.gated(pairs), weight_SL[:, counted])

    def rank(
        self,
        batch: Batch,
        encoded: Encoded,
        kept_BTK: Int[Tensor, "B T K"],
        cross_BTF: Float[Tensor, "B T F"],
        pooled_BSd: Float[Tensor, "B S d"],
    ) -> Ranked:
        """ESU and heads, given what the GSU kept (positions in this batch's history, -1 padding) and what it made of the rest."""
        kept, target = self._gather(batch, encoded, kept_BTK), encoded.target_BTd
        interest = self.esu(target, kept)
        extra = torch.cat([interest.tiers_BTF, self.taste(pooled_BSd, target)], -1)
        return Ranked(self.heads(batch, encoded, interest.interest_BTd, extra, cross_BTF), interest, kept)

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


def rounded(key_Pd: Float[Tensor, "P d"]) -> Float[Tensor, "P d"]:
    """Keys as their 8-bit levels give them back (`retrieval/int8.py`), with the levels of these keys."""
    low_d, high_d = key_Pd.aminmax(dim=0)
    centre_d, step = (low_d + high_d) / 2, ((high_d - low_d).max() / 2 / 127).clamp_min(1e-12)
    return centre_d + step * ((key_Pd - centre_d) / step).round()


def load_ranker(model: Artifact, vectors: Artifact) -> Ranker:
    """The trained ranker of a `model` artefact, over the vectors it was trained with or those of a catalogue that continues it.

    Items appended since have no ID embedding and live by their content. VersionMismatch for any other vectors, and for a model
    of another kind: only SEMINAR's is searched by codes and served.
    """
    kind = ModelConfig.model_validate(model.manifest.config["model"]).kind
    if kind != "seminar":
        fix = "train it with model.kind = seminar, or run `seminar versions use model VERSION`"
        raise VersionMismatch(explain(f"model {model.version}", got=f"kind {kind!r}", expected="kind 'seminar'", fix=fix))
    return restored(model, vectors, Ranker.build)


def restored(model: Artifact, vectors: Artifact, build: Callable[..., M]) -> M:
    """What `build(config, tables, generator, num_ids)` makes, with the weights of a `model` artefact."""
    _check_vectors(model, vectors)
    state = load_file(model.file("model.safetensors"))
    config = ModelConfig.model_validate(model.manifest.config["model"])
    unit = build(config, VectorTables.load(vectors), torch.Generator(), len(state["channels.seen"]))
    unit.load_state_dict(state)
    return unit.eval()


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
