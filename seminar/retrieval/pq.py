"""GSU over multi-modal product codes: 64 bytes a behaviour at 4 channels of 16 sub-spaces (32 at 4 bits) instead of 1 KiB.

The paper quantises the target too and reads M^2 tables (`seminar/retrieval/symmetric.py`). The target is fixed, so the sum over
its channels moves in front, T_j[s][c] = <v_j,s, C_j,s,c> with v_j = A_j u: one pass of M S look-ups a behaviour gives the same
relevance. Codes alone recall too little: candidates are over-fetched and re-scored exactly.
"""

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from seminar.codes.codebook import CatalogueCodes, Codebooks
from seminar.errors import ArtifactError, explain
from seminar.retrieval.base import Keys
from seminar.retrieval.key_space import KeySpace
from seminar.retrieval.lookup_index import LookupCodec, LookupIndex


class PQRetriever:
    """Scores every behaviour by its codes; where behaviours weigh their channels differently, a scan reads a byte a channel more.

    Runs on the CPU. Raises VersionMismatch if the codes were made with other codebooks or another PSU, ArtifactError if they hold
    values outside the codebooks.
    """

    name = "pq"

    def __init__(self, space: KeySpace, codebooks: Codebooks, codes: CatalogueCodes) -> None:
        check_codes(codebooks, codes)
        self.space = space
        self.bytes_per_behaviour = codebooks.bytes_per_behaviour
        transform_Mde = rotated_transform(space, codebooks)
        self._codec = LookupCodec.of(transform_Mde, codebooks.centroid_MSCw, codebooks.num_centroids_M)
        self._query_code = self._codec.prepared(codes.query_code_QS[:, None])
        self._item_code = self._codec.prepared(codes.item_code_I3S)

    def index(self, keys: Keys) -> LookupIndex:
        """Gather the codes of every behaviour."""
        return LookupIndex(self._codec, self._query_code, self._item_code, keys)


def rotated_transform(space: KeySpace, codebooks: Codebooks) -> Float32[ndarray, "M d e"]:
    """R_j^T A_j: what makes keys of a channel's centroids, which stand for x R_j; targets u ask them for R_j^T A_j u."""
    return np.einsum("mdr,mde->mre", codebooks.rotation_Mdd, space.transform.numpy(), optimize=True).astype(np.float32)


def check_codes(codebooks: Codebooks, codes: CatalogueCodes) -> None:
    """Raise VersionMismatch for codes of other codebooks, ArtifactError for codes outside them: scans do not check bounds."""
    codes.stamp.require(codebooks.stamp, "codes")
    limit = codebooks.centroid_MSCw.shape[2]
    largest = max(int(codes.item_code_I3S.max(initial=0)), int(codes.query_code_QS.max(initial=0)))
    spaces = {codes.item_code_I3S.shape[2], codes.query_code_QS.shape[1]}
    if largest >= limit or spaces != {codebooks.num_subquantizers}:
        got = f"codes up to {largest} in {spaces} sub-spaces"
        expected = f"below {limit} in {codebooks.num_subquantizers}"
        raise ArtifactError(explain(f"{codes.stamp}", got=got, expected=expected, fix="run fit-codebooks"))
