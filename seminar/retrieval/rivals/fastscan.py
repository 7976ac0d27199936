"""faiss FastScan: 4-bit product codes and look-up tables in registers, 32 bytes a behaviour at 4 channels of 64 side by side.

The strongest library rival: the same trick as the 4-bit multi-modal scan, over concatenated keys, with one set of codebooks
trained on gated keys instead of one a channel trained on unit vectors. So its codes go stale with the gate.
"""

from jaxtyping import Float32
from numpy import ndarray

from seminar.faiss_extra import faiss_module
from seminar.retrieval.key_space import KeySpace
from seminar.retrieval.rivals.faiss_codes import CodeRetriever, train
from seminar.retrieval.rivals.forms import Form

DIMS = 4
"""Dimensions a code of 4 bits: 16 sub-quantisers a channel of 64."""


class FastScanRetriever(CodeRetriever):
    """faiss.IndexPQFastScan, inner product. form: `gated` (or `merged`, `parts`), of which sample_ND holds keys to train on.

    Raises ConfigError without faiss or with fewer than 16 keys to train on.
    """

    def __init__(self, space: KeySpace, sample_ND: Float32[ndarray, "N D"], form: Form = "gated", dims: int = DIMS) -> None:
        faiss = faiss_module("a faiss retriever")
        width = sample_ND.shape[1]
        index = faiss.IndexPQFastScan(width, width // dims, 4, faiss.METRIC_INNER_PRODUCT)
        super().__init__(space, form, f"faiss FastScan, {form}", train(index, sample_ND), first_of_equals=True)
