"""How the loss of each token moves over training: falls, rises, stays low, stays high (section 2.1, App. D.1, Fig. 3).

Shapes: C checkpoints in order, N tokens. Losses are nats; NaN marks a token that is not predicted, which counts nowhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

CATEGORIES = ("H→H", "L→H", "H→L", "L→L")
HH, LH, HL, LL = range(4)
ABSENT = -1
"""Category of a token that some checkpoint has no finite loss for."""
CHANGE = 0.2
"""Nats by which a fitted line must rise or fall."""
ROUNDING = 1e-6
"""Nats that float32 losses and their sums are not exact to: what equals a bound to within this is not beyond it."""


@dataclass(frozen=True)
class Lines:
    """The least-squares line a x + b of each token's losses over checkpoints x = 0 .. n, n = C - 1."""

    start_N: NDArray[np.float64]
    """L_start = b."""
    end_N: NDArray[np.float64]
    """L_end = a n + b."""
    spread_N: NDArray[np.float64]
    """Root of the mean squared distance of the losses from the line, nats."""


def fit_lines(losses_CN: ArrayLike) -> Lines:
    """Fits each token's line; NaN where a loss of it is. Raises `ValueError` for fewer than two checkpoints."""
    losses_CN = np.asarray(losses_CN, np.float64)
    if losses_CN.ndim != 2 or len(losses_CN) < 2:
        raise ValueError(f"losses of at least two checkpoints [C, N] are wanted, not of shape {losses_CN.shape}")
    n = len(losses_CN) - 1
    centred_C = np.arange(n + 1) - n / 2
    with np.errstate(invalid="ignore"):  # infinite losses
        mean_N = losses_CN.mean(axis=0)
        slope_N = centred_C @ losses_CN / (centred_C**2).sum()
        off_CN = losses_CN - mean_N - centred_C[:, None] * slope_N
        return Lines(mean_N - slope_N * n / 2, mean_N + slope_N * n / 2, np.sqrt((off_CN**2).mean(axis=0)))


def categorise(losses_CN: ArrayLike) -> NDArray[np.int8]:
    """Each token's index into `CATEGORIES`, `ABSENT` for those not predicted. [N]

    L_end - L_start below -0.2 is H→L, above 0.2 L→H; of the others those whose last loss is at most the last
    checkpoint's mean loss are L→L, the rest H→H (App. D.1).
    """
    losses_CN = np.asarray(losses_CN, np.float64)
    lines = fit_lines(losses_CN)
    there_N = np.isfinite(losses_CN).all(axis=0)
    last_N = losses_CN[-1]
    mean = last_N[there_N].mean() if there_N.any() else np.nan
    with np.errstate(invalid="ignore"):
        change_N = lines.end_N - lines.start_N
        level_N = np.where(last_N <= mean + ROUNDING, LL, HH)
        moved_N = np.where(change_N < -CHANGE - ROUNDING, HL, np.where(change_N > CHANGE + ROUNDING, LH, level_N))
    return np.where(there_N, moved_N, ABSENT).astype(np.int8)


def category_curves(losses_CN: ArrayLike, category_N: NDArray[np.int8]) -> dict[str, dict[str, Any]]:
    """Of each category its share of the tokens that have one, how many, and their mean loss at each checkpoint [C].

    The mean of a category without tokens is NaN, as are all shares where there are no tokens.
    """
    losses_CN = np.asarray(losses_CN, np.float64)
    there = int((category_N != ABSENT).sum())
    found = {}
    for index, name in enumerate(CATEGORIES):
        chosen_CK = losses_CN[:, category_N == index]
        tokens = chosen_CK.shape[1]
        mean_C = chosen_CK.mean(axis=1) if tokens else np.full(len(losses_CN), np.nan)
        found[name] = {"share": tokens / there if there else np.nan, "tokens": tokens, "mean": mean_C.tolist()}
    return found


def fluctuating(
    losses_CN: ArrayLike, category_N: NDArray[np.int8], count: int, seed: int, top: float = 0.03
) -> NDArray[np.int64]:
    """Tokens to show, whose loss neither falls nor rises but swings (Fig. 3 b and c): up to `count` of L→L, then up to
    `count` of H→H, each drawn by seed among those `top` of their category (but no fewer than `count`) that lie furthest
    from their own line. None with two checkpoints, through which every line goes."""
    losses_CN = np.asarray(losses_CN, np.float64)
    rng, found = np.random.default_rng(seed), [np.zeros(0, np.int64)]
    if len(losses_CN) > 2:
        spread_N = fit_lines(losses_CN).spread_N
        for category in (LL, HH):
            among = np.flatnonzero((category_N == category) & (spread_N > ROUNDING))
            furthest = among[np.argsort(-spread_N[among], kind="stable")][: max(count, round(top * len(among)))]
            found.append(rng.permutation(furthest)[:count])
    return np.concatenate(found)
