"""Inner loops in vector instructions, by numba: scans of quantised keys fused with top-K, re-scoring, and the ESU's attention.

Numba's cache of a compiled kernel looks only at the file that holds it, and kernels here are made of each other's parts: a
release that changes a part must not find kernels made of the old one. So the cache's folder is named by the content of all.
"""

import hashlib
from pathlib import Path

import numba

ASSOCIATIVE = {"reassoc", "contract", "nsz"}
"""fastmath flags: sums may be vectorised; NaN and infinity keep their meaning."""


def cache_folder(sources: Path) -> Path:
    """Where kernels compiled from these sources are kept: another folder whenever any of them changes."""
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(sources.glob("*.py")):
        digest.update(path.read_bytes())
    return sources / "__pycache__" / f"kernels-{digest.hexdigest()}"


if not numba.config.CACHE_DIR:  # type: ignore[missing-attribute]
    numba.config.CACHE_DIR = str(cache_folder(Path(__file__).parent))  # type: ignore[missing-attribute]
