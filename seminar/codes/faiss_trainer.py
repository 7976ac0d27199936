"""k-means by faiss, on every GPU it sees: for samples far beyond the default. Sums are float32 in an order of its own choosing.

The exact trainer takes about 3 s of one core for four channels of 65,536 vectors, so a GPU pays only for larger samples.
"""

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from seminar.faiss_extra import faiss_module


def faiss_kmeans(
    point_NSw: Float32[ndarray, "N S w"], initial_SCw: Float32[ndarray, "S C w"], iterations: int
) -> Float32[ndarray, "S C w"]:
    """Centroids of every sub-space after `iterations` from the initial ones; ConfigError without faiss."""
    faiss = faiss_module("codebooks.trainer")
    count, width = initial_SCw.shape[1:]
    centroids = []
    for space, initial_Cw in enumerate(initial_SCw):
        trainer = faiss.Kmeans(
            width,
            count,
            niter=iterations,
            gpu=faiss.get_num_gpus() > 0,
            min_points_per_centroid=1,
            max_points_per_centroid=len(point_NSw),
        )
        trainer.train(np.ascontiguousarray(point_NSw[:, space]), init_centroids=initial_Cw)
        centroids.append(np.asarray(trainer.centroids).reshape(count, width))
    return np.stack(centroids)
