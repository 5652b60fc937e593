"""Features of tokens that no model is asked for. V ids of the vocabulary."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def log_odds(curated_V: NDArray[np.int64], corpus_V: NDArray[np.int64]) -> NDArray[np.float32]:
    """log((c + 1) / (C + V)) - log((k + 1) / (K + V)) of each id's counts c and k in C curated and K corpus tokens [V]."""
    shares = [(counts + 1.0) / (counts.sum() + len(counts)) for counts in (curated_V, corpus_V)]
    found: NDArray[np.float32] = (np.log(shares[0]) - np.log(shares[1])).astype(np.float32)
    return found
