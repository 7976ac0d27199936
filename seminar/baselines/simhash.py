"""SimHash inside a model: embeddings to packed signs of fixed random projections, and the K nearest by Hamming distance.

On the CPU a signature is a row of 64-bit words, each distinct pair is hashed once a batch, and distances are population counts
of the retrieval rival's kernel: bits / 64 words a target and behaviour. Elsewhere signs stay +-1 and one matrix product counts
agreements, which orders behaviours alike.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt64
from numpy import ndarray
from torch import Tensor, nn
from torch.nn import functional

from seminar.gsu import keep_top_k
from seminar.retrieval.rivals.simhash import WORD, nearest


class SimHash(nn.Module):
    """Random hyperplanes, drawn once and kept with the model; they never learn."""

    plane_db: Tensor

    def __init__(self, dim: int, bits: int, generator: torch.Generator) -> None:
        super().__init__()
        self.register_buffer("plane_db", torch.randn(dim, bits, generator=generator))

    @torch.no_grad()
    def nearest(
        self,
        embedding_Pd: Float[Tensor, "P d"],
        history_BL: Int[Tensor, "B L"],
        target_BT: Int[Tensor, "B T"],
        mask_BL: Bool[Tensor, "B L"],
        k: int,
    ) -> Int[Tensor, "B T K"]:
        """Positions of the K = min(k, L) behaviours that differ from each target in fewest bits, newest of equals; -1 padding.

        history_BL and target_BT are rows of the embeddings; histories are padded on the right.
        """
        positive_Pb = embedding_Pd @ self.plane_db > 0
        if embedding_Pd.device.type != "cpu":
            sign = positive_Pb.float() * 2 - 1
            agreement = functional.embedding(target_BT, sign) @ functional.embedding(history_BL, sign).transpose(1, 2)
            return keep_top_k(agreement, mask_BL, k)
        word_PW, kept_BTK = pack(positive_Pb), np.full((*target_BT.shape, min(k, history_BL.shape[1])), -1, np.int64)
        for b, length in enumerate(mask_BL.sum(1).tolist()):
            if length:
                signature_WL = np.ascontiguousarray(word_PW[history_BL[b, :length].numpy()].T)
                kept_BTK[b] = nearest(signature_WL, word_PW[target_BT[b].numpy()], kept_BTK.shape[2])[0]
        return torch.from_numpy(kept_BTK)


def pack(positive_Pb: Bool[Tensor, "P b"]) -> UInt64[ndarray, "P W"]:
    """Bits to 64-bit words, the last filled up with zeros, on which all rows agree."""
    rows, bits = positive_Pb.shape
    packed = np.zeros((rows, -(-bits // WORD) * WORD // 8), np.uint8)
    packed[:, : -(-bits // 8)] = np.packbits(positive_Pb.numpy(), axis=1, bitorder="little")
    return packed.view(np.uint64)
