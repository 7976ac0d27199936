"""Product quantisation as in the textbook: 8-bit codes of merged keys, one table a sub-space, one look-up a code."""

from jaxtyping import Float32
from numpy import ndarray

from seminar.faiss_extra import faiss_module
from seminar.retrieval.key_space import KeySpace
from seminar.retrieval.rivals.faiss_codes import CodeRetriever, train


class PlainPQRetriever(CodeRetriever):
    """faiss.IndexPQ over merged keys, inner product; num_subquantizers bytes a behaviour.

    Raises ConfigError without faiss, with fewer than 256 keys to train on, or for a probe with a gate of the target.
    """

    def __init__(self, space: KeySpace, sample_Nd: Float32[ndarray, "N d"], num_subquantizers: int = 16) -> None:
        faiss = faiss_module("a faiss retriever")
        index = faiss.IndexPQ(space.dim, num_subquantizers, 8, faiss.METRIC_INNER_PRODUCT)
        super().__init__(space, "merged", "plain pq", train(index, sample_Nd), first_of_equals=False)
