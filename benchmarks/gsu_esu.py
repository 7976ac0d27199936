"""Both stages of one request: GSU over the whole history with re-scoring, then the ESU module over what it kept."""

from collections.abc import Callable

import torch

from benchmarks.gsu_worlds import World
from seminar.channels import Pairs
from seminar.config import ModelConfig
from seminar.esu import ESU, Kept
from seminar.retrieval.base import Keys, Probe
from seminar.retrieval.exact import MergedIndex
from seminar.retrieval.int8 import Int8Index, PackedKeys
from seminar.retrieval.key_store import KeyStore
from seminar.retrieval.regime import OVERFETCH
from seminar.retrieval.rescored import LookedUp, RescoredIndex
from seminar.schema import NUM_CHANNELS


def esu_call(world: World, keys: Keys, probe: Probe, k: int, store: KeyStore | None = None) -> Callable[[], object]:
    """Top-K of packed keys, re-scored, and an ESU with all its switches on: 4 heads, SimTier, semantic, ages.

    store: packed keys come from it, and candidates are looked up and merged, as in serving; without, float keys are at hand. The
    rows that the ESU reads are looked up before.
    """
    key_Ld, targets = world.space.merged(keys), len(probe.query_Td)
    at_hand = RescoredIndex(Int8Index(PackedKeys.of(key_Ld.numpy())), MergedIndex(key_Ld), OVERFETCH["int8"])
    esu = ESU(ModelConfig(dim=world.space.dim), torch.Generator().manual_seed(0)).eval()
    unit = torch.cat([world.space.parts(keys), world.space.parts(keys[:targets])])
    pairs = Pairs(unit, torch.cat([keys.present_LM, keys.present_LM[:targets]]))
    assert pairs.unit_NMd.shape[1] == NUM_CHANNELS
    table = torch.cat([key_Ld, key_Ld[:targets]])
    target_BT, hours_L = torch.arange(targets)[None] + len(keys), torch.linspace(20_000, 0, len(keys))

    def search() -> torch.Tensor:
        if store is None:
            return at_hand.top_k(probe, k).index_TK
        with store.index("user", keys) as packed:
            return RescoredIndex(packed, LookedUp(world.space, keys), OVERFETCH["int8"]).top_k(probe, k).index_TK

    @torch.inference_mode()
    def both() -> object:
        kept = search()[None]
        return esu(probe.query_Td[None], Kept(pairs, table, target_BT, kept, hours_L[kept]))

    return both
