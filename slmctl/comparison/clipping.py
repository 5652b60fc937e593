"""What gradient clipping did to a run: how many of its steps it shortened, and by how much."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np


def clipping(metrics: Sequence[dict[str, Any]], grad_clip: float | None) -> dict[str, float | None]:
    """Over the steps of a log (metrics.jsonl) that were taken: `clip`, the largest norm that was let through (None: no
    clipping), `clipped_share` of the steps whose gradient's norm was above it, `mean_factor` by which they were all
    multiplied on average (1 where none was clipped), and `median_norm` before clipping.

    None for what no step tells, and for the first three's effects where nothing was clipped by setting (`grad_clip` 0).
    """
    norms = [m.get("grad_norm") for m in metrics if m.get("skipped") is None]
    norm_S = np.array([n for n in norms if n is not None and math.isfinite(n)], np.float64)
    median = float(np.median(norm_S)) if len(norm_S) else None
    if not grad_clip or not len(norm_S):
        return {"clip": grad_clip or None, "clipped_share": None, "mean_factor": None, "median_norm": median}
    factor_S = np.minimum(1.0, grad_clip / np.maximum(norm_S, 1e-12))
    share, mean = float(np.mean(norm_S > grad_clip)), float(factor_S.mean())
    return {"clip": grad_clip, "clipped_share": share, "mean_factor": mean, "median_norm": median}
