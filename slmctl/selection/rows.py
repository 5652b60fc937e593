"""Which rows of a step are trained on, known before any forward pass: by what is stored of their tokens, or blindly.

B rows, T tokens of a row.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from slmctl.selection.select import selected_count

Floats = NDArray[np.float32]
Mask = NDArray[np.bool_]
Gather = Literal["mean", "top_mass"]


def row_scores(token_scores_BT: Floats, valid_BT: Mask, gather: Gather = "mean", top: float = 0.1) -> NDArray[np.float64]:
    """A row's score [B]: the mean of its valid tokens' scores, or of the highest ceil(top x valid) of them. A row without valid
    tokens is -inf; a score that is not finite counts as the lowest of its row."""
    found = np.full(len(valid_BT), -np.inf)
    for b, (scores_T, valid_T) in enumerate(zip(token_scores_BT, valid_BT, strict=True)):
        values = scores_T[valid_T].astype(np.float64)
        if not len(values):
            continue
        finite = np.isfinite(values)
        values = np.where(finite, values, values[finite].min() if finite.any() else 0.0)
        if gather == "top_mass":
            values = np.sort(values)[::-1][: selected_count(len(values), top)]
        found[b] = values.mean()
    return found


def kept_rows(scores_B: NDArray[np.float64], share: float, temperature: float = 0.0, seed: int = 0) -> Mask:
    """The ceil(share x B) rows of the highest scores [B]; ties: the earlier row. With a temperature they are drawn without
    replacement, each time in proportion to exp(standardised score / temperature) (Gumbel top-k: Kool et al. 2019, 1903.06059)."""
    count = selected_count(len(scores_B), share)
    scores_B = scores_B.copy()
    if temperature > 0:
        known = np.isfinite(scores_B)
        spread = scores_B[known].std() if known.any() else 0.0
        scores_B[known] = (scores_B[known] - scores_B[known].mean()) / (spread or 1.0) / temperature
        scores_B[known] += np.random.default_rng(seed).gumbel(size=len(scores_B))[known]
    kept = np.zeros(len(scores_B), bool)
    kept[np.argsort(-scores_B, kind="stable")[:count]] = True
    return kept


def random_rows(rows: int, share: float, seed: int) -> Mask:
    """As many, drawn blindly [B]."""
    return kept_rows(np.random.default_rng(seed).random(rows), share)
