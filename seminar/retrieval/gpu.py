"""Top-K on a GPU: histories of many users in one call over merged keys of 16 bits, 128 bytes a behaviour at d = 64.

On CUDA with Triton two passes that write no score matrix (`gpu_two_pass.py`), otherwise one matrix product and a selection. Exact
for the rounded keys and queries: products of 16-bit floats are exact in float32, sums are float32.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from seminar.errors import ConfigError, explain
from seminar.retrieval.base import Keys, Probe, TopK, best
from seminar.retrieval.exact import require_no_gate
from seminar.retrieval.key_space import KeySpace

SCRATCH_BYTES = 1 << 29
"""What the kernels may use beside their result; larger batches run in parts."""
SCORES_A_CALL = 1 << 24
"""Scores that the plain form holds at once: with masks and positions about 600 MiB."""

BatchTopK = tuple[Int[Tensor, "U T K"], Float[Tensor, "U T K"]]


@torch.no_grad()
def batched_top_k(
    query_UTd: Float[Tensor, "U T d"], key_ULd: Float[Tensor, "U L d"], length_U: Int[Tensor, " U"], k: int
) -> BatchTopK:
    """The k behaviours of largest <query, key> of each target among its user's first `length`, oldest first, newest of equals.

    index_UTK: positions, increasing, -1 last where fewer than k; relevance_UTK: float32, -inf at -1. Padding has no influence
    whatever stands there, and a behaviour whose relevance is NaN counts as padding. Takes float16 or bfloat16 on one device,
    raises ConfigError for anything else. Deterministic. Waits for the GPU once, to learn whether some row needs the plain form:
    with K = 100 one with some 900 repeats of its K-th behaviour.
    """
    _check(query_UTd, key_ULd, length_U, k)
    if not key_ULd.is_cuda or not _kernels_fit(key_ULd, query_UTd.shape[1], k):
        return plain_top_k(query_UTd, key_ULd, length_U, k)
    return two_pass_top_k(query_UTd, key_ULd, length_U, k)


def two_pass_top_k(
    query_UTd: Float[Tensor, "U T d"], key_ULd: Float[Tensor, "U L d"], length_U: Int[Tensor, " U"], k: int
) -> BatchTopK:
    """`batched_top_k` by the Triton kernels, rows that they leave incomplete by the plain form."""
    from seminar.retrieval.gpu_two_pass import Tiling, two_pass

    (users, targets, _), longest = query_UTd.shape, key_ULd.shape[1]
    index, relevance, complete = [], [], []
    for part in _users(users, SCRATCH_BYTES // (targets * Tiling.of(users, targets, longest, k).scratch_bytes(longest))):
        arguments = query_UTd[part].contiguous(), key_ULd[part].contiguous(), length_U[part].contiguous()
        index_UTK, relevance_UTK, complete_UT = two_pass(*arguments, k)
        index.append(index_UTK), relevance.append(relevance_UTK), complete.append(complete_UT)
    index_UTK, relevance_UTK, missed_UT = torch.cat(index), torch.cat(relevance), ~torch.cat(complete)
    if missed_UT.any():
        users = missed_UT.any(1).nonzero()[:, 0]
        plain_index, plain_relevance = plain_top_k(query_UTd[users], key_ULd[users], length_U[users], k)
        missed_UT1 = missed_UT[users, :, None]
        index_UTK[users] = torch.where(missed_UT1, plain_index, index_UTK[users])
        relevance_UTK[users] = torch.where(missed_UT1, plain_relevance, relevance_UTK[users])
    return index_UTK, relevance_UTK


def plain_top_k(
    query_UTd: Float[Tensor, "U T d"], key_ULd: Float[Tensor, "U L d"], length_U: Int[Tensor, " U"], k: int
) -> BatchTopK:
    """`batched_top_k` as a matrix product and a selection, on any device."""
    (users, targets, _), longest = query_UTd.shape, key_ULd.shape[1]
    at_once = SCORES_A_CALL // max(targets * longest, 1)
    parts = [_plain(query_UTd[part], key_ULd[part], length_U[part], k) for part in _users(users, at_once)]
    index_NK, relevance_NK = torch.cat([top.index_TK for top in parts]), torch.cat([top.relevance_TK for top in parts])
    return index_NK.view(users, targets, k), relevance_NK.view(users, targets, k)


def _plain(query_UTd: Tensor, key_ULd: Tensor, length_U: Tensor, k: int) -> TopK:
    # In 16 bits scores would be rounded to a few hundred values and order within them lost.
    score_UTL = torch.bmm(query_UTd.float(), key_ULd.float().mT)
    position_L = torch.arange(key_ULd.shape[1], device=key_ULd.device)
    real_UTL = (position_L < length_U[:, None])[:, None] & ~score_UTL.isnan()
    return best(score_UTL.flatten(0, 1), k, torch.where(real_UTL, position_L, -1).flatten(0, 1))


def _users(count: int, at_once: int) -> list[slice]:
    at_once = max(at_once, 1)
    return [slice(start, start + at_once) for start in range(0, max(count, 1), at_once)]


def _kernels_fit(key_ULd: Tensor, targets: int, k: int) -> bool:
    from seminar.retrieval.gpu_two_pass import supports

    return supports(key_ULd.shape[1], key_ULd.shape[2], k) and targets * len(key_ULd) > 0


def _check(query_UTd: Tensor, key_ULd: Tensor, length_U: Tensor, k: int) -> None:
    types, devices = {query_UTd.dtype, key_ULd.dtype}, {query_UTd.device, key_ULd.device, length_U.device}
    if len(types) > 1 or not types <= {torch.float16, torch.bfloat16}:
        got = " and ".join(sorted(map(str, types)))
        raise ConfigError(explain("types of queries and keys", got=got, expected="float16 or bfloat16, the same", fix="cast"))
    if len(devices) > 1:
        got = " and ".join(sorted(map(str, devices)))
        raise ConfigError(explain("devices of queries, keys and lengths", got=got, expected="one", fix="move them"))
    if k < 0:
        raise ConfigError(explain("k", got=k, expected="0 or more", fix="ask for the number of behaviours to keep"))


class GpuRetriever:
    """Merged keys of one history on a GPU. float16 keeps 11 bits of each number, bfloat16 8 and the range of float32.

    For a server that scores many users, keep their keys on the device and call `batched_top_k`.
    """

    def __init__(self, space: KeySpace, device: torch.device, dtype: torch.dtype = torch.float16) -> None:
        self.space, self.device, self.dtype = space, device, dtype
        self.name = f"gpu {str(dtype).removeprefix('torch.')}"
        self.bytes_per_behaviour = float(space.dim * dtype.itemsize)

    @torch.no_grad()
    def index(self, keys: Keys) -> "GpuIndex":
        """Merge every behaviour's channels, round and move them."""
        return GpuIndex(self.space.merged(keys).to(self.device, self.dtype))


class GpuIndex:
    """Rounded merged keys of one history. Answers come back to the probe's device."""

    def __init__(self, key_Ld: Float[Tensor, "L d"]) -> None:
        self.key_Ld = key_Ld
        self._length_U = torch.tensor([len(key_Ld)], dtype=torch.int32, device=key_Ld.device)

    def __len__(self) -> int:
        return len(self.key_Ld)

    @torch.no_grad()
    def relevance(self, probe: Probe) -> Float[Tensor, "T L"]:
        """<u, key> of the rounded vectors."""
        relevance_TL = self._query(probe).float() @ self.key_Ld.float().T
        return relevance_TL.to(probe.query_Td.device)

    @torch.no_grad()
    def top_k(self, probe: Probe, k: int) -> TopK:
        """The k best of all."""
        index_UTK, relevance_UTK = batched_top_k(self._query(probe)[None], self.key_Ld[None], self._length_U, k)
        device = probe.query_Td.device
        return TopK(index_UTK[0].to(device), relevance_UTK[0].to(device))

    def _query(self, probe: Probe) -> Float[Tensor, "T d"]:
        require_no_gate(probe, "keys on a GPU")
        return probe.query_Td.to(self.key_Ld.device, self.key_Ld.dtype)
