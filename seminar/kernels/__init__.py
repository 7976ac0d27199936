"""Inner loops in vector instructions, by numba: scans of quantised keys fused with top-K, re-scoring, and the ESU's attention."""
