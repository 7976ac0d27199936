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
from seminar.retrieval.regime import OVERFETCH
from seminar.retrieval.rescored import RescoredIndex
from seminar.schema import NUM_CHANNELS


def esu_call(world: World, keys: Keys, probe: Probe, k: int) -> Callable[[], object]:
    """Top-K of packed keys, re-scored from merged ones, and an ESU with all its switches on: 4 heads, SimTier, semantic, ages.

    Rows of the behaviours' and targets' vectors are looked up before: what a request of a user with packed keys finds at hand.
    """
    key_Ld, targets = world.space.merged(keys), len(probe.query_Td)
    index = RescoredIndex(Int8Index(PackedKeys.of(key_Ld.numpy())), MergedIndex(key_Ld), OVERFETCH["int8"])
    esu = ESU(ModelConfig(dim=world.space.dim), torch.Generator().manual_seed(0)).eval()
    unit = torch.cat([world.space.parts(keys), world.space.parts(keys[:targets])])
    pairs = Pairs(unit, torch.cat([keys.present_LM, keys.present_LM[:targets]]))
    assert pairs.unit_NMd.shape[1] == NUM_CHANNELS
    table = torch.cat([key_Ld, key_Ld[:targets]])
    target_BT, hours_L = torch.arange(targets)[None] + len(keys), torch.linspace(20_000, 0, len(keys))

    @torch.inference_mode()
    def both() -> object:
        kept = index.top_k(probe, k).index_TK[None]
        return esu(probe.query_Td[None], Kept(pairs, table, target_BT, kept, hours_L[kept]))

    return both
